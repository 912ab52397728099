"""The claims of the paper: every outcome from planted tables, and what is declared of them."""

import numpy as np
import pandas as pd
import pytest

from mixshare.chapters import chapter_path, claims, grids, results, statistics, studies
from mixshare.config import METHODS, PROFILES, RunConfig
from mixshare.files import project_root

SEEDS, IMAGES = 4, 1000


def compared(lead: float, noise: float = 0.002, seeds: int = SEEDS, method="a", other="b"):
    """Return a row of `paired`: method a leads b by so much, give or take the noise, per seed."""
    leads = lead + noise * np.linspace(-1, 1, seeds)
    first = np.zeros((seeds, IMAGES))
    second = np.zeros((seeds, IMAGES))
    for k, each in enumerate(leads):
        winner = first if each > 0 else second
        winner[k, : round(abs(each) * IMAGES)] = 1
    return {
        **{"method": method, "other": other, "figure": "accuracy_ensemble"},
        **statistics.difference(first, second),
    }


def claim(*evidence, chapter="05_results", text="claim", **fields):
    named = {"claim": text, "place": "here", "falsified": "f", "open": "o"}
    return claims.Claim(**named, chapter=chapter, evidence=evidence, **fields)


def judged(tables, *declared) -> list[str]:
    if isinstance(tables, list):
        tables = {"compared": pd.DataFrame(tables)}
    tables = {"compared": pd.DataFrame(columns=["method", "other"])} | tables
    found = claims.evidence(tables, declared)
    return [verdict for _, verdict in claims.verdicts(found, declared)]


BETTER = {"better": "a", "than": "b"}
SAME = {"same": "a", "as": "b", "within": 1}
BY_ONE = {"better": "a", "than": "b", "by": 1}


class TestDifferences:
    @pytest.mark.parametrize(
        ("evidence", "lead", "noise", "verdict"),
        [
            (BETTER, 0.05, 0.002, claims.SUPPORTED),
            (BETTER, -0.05, 0.002, claims.CONTRADICTED),
            (BETTER, 0.02, 0.06, claims.UNDECIDED),  # the interval over seeds holds 0
            (BETTER, 0.004, 0.0005, claims.UNDECIDED),  # four images differ
            (SAME, 0.002, 0.0005, claims.SUPPORTED),
            (SAME, 0.05, 0.002, claims.CONTRADICTED),
            (SAME, -0.05, 0.002, claims.CONTRADICTED),
            (SAME, 0.02, 0.06, claims.UNDECIDED),
            (SAME, 0.012, 0.001, claims.UNDECIDED),  # it differs, but not wholly beyond a point
            (BY_ONE, 0.05, 0.002, claims.SUPPORTED),
            (BY_ONE, 0.002, 0.0005, claims.CONTRADICTED),  # no more than a point
            (BY_ONE, -0.05, 0.002, claims.CONTRADICTED),
            (BY_ONE, 0.01, 0.002, claims.UNDECIDED),
            (BY_ONE, -0.01, 0.002, claims.UNDECIDED),
        ],
    )
    def test_every_outcome(self, evidence, lead, noise, verdict):
        assert judged([compared(lead, noise)], claim(evidence)) == [verdict]

    @pytest.mark.parametrize(
        ("accuracy", "verdicts"),
        [
            (0.9, [claims.CONTRADICTED, claims.SUPPORTED]),
            (0.998, [claims.UNDECIDED, claims.UNDECIDED]),
        ],
    )
    def test_a_margin_says_nothing_where_the_other_errs_on_less(self, accuracy, verdicts):
        runs_of_a = pd.DataFrame({"method": ["a", "a"], "accuracy_ensemble": accuracy})
        tables = {"compared": pd.DataFrame([compared(0.002, 0.0005)]), "runs": runs_of_a}
        assert [judged(tables, claim(each))[0] for each in (BY_ONE, SAME)] == verdicts

    @pytest.mark.parametrize(
        ("fitted", "verdict"), [(0.99, claims.CONTRADICTED), (0.9, claims.UNDECIDED)]
    )
    def test_a_network_that_does_not_fit_its_images_contradicts_nothing(self, fitted, verdict):
        runs_of_b = {"method": ["b"], "accuracy_ensemble": 0.8, "accuracy_train": fitted}
        fits = BETTER | {"fits": 0.95}
        for lead, wanted in ((-0.05, verdict), (0.05, claims.SUPPORTED)):
            tables = {"compared": pd.DataFrame([compared(lead)]), "runs": pd.DataFrame(runs_of_b)}
            assert judged(tables, claim(fits)) == [wanted]

    @pytest.mark.parametrize("evidence", [BETTER, SAME, BY_ONE])
    def test_one_seed_decides_nothing(self, evidence):
        assert judged([compared(0.05, seeds=1)], claim(evidence)) == [claims.UNDECIDED]

    def test_a_pair_is_found_in_either_order(self):
        exchanged = pd.DataFrame([compared(-0.05, method="b", other="a")])
        tables = {"compared": claims.both_ways(exchanged)}
        piece = claims.evidence(tables, [claim(BETTER)]).iloc[0]
        assert piece["difference"] == pytest.approx(5, abs=0.1)
        assert 0 < piece["seeds_low"] < piece["difference"] < piece["seeds_high"]
        assert 0 < piece["images_low"] < piece["difference"] < piece["images_high"]
        assert piece["verdict"] == "supports"

    def test_all_pieces_must_hold_and_one_is_enough_against(self):
        both = claim(BETTER, {"better": "a", "than": "c"})
        clear, against = compared(0.05), compared(-0.05, other="c")
        weak = compared(0.02, 0.06, other="c")
        assert judged([clear, compared(0.05, other="c")], both) == [claims.SUPPORTED]
        assert judged([clear, against], both) == [claims.CONTRADICTED]
        assert judged([clear, weak], both) == [claims.UNDECIDED]

    def test_a_piece_that_was_not_run_leaves_it_undecided_and_is_named(self):
        both = claim(BETTER, {"better": "a", "than": "mimo"})
        assert judged([compared(0.05)], both) == [claims.UNDECIDED]
        assert judged([compared(-0.05)], both) == [claims.CONTRADICTED]
        tables = {"compared": pd.DataFrame([compared(0.05)])}
        found = claims.evidence(tables, [both])
        assert found["verdict"].tolist() == ["supports", claims.NOT_RUN]
        assert found["label"].tolist() == ["a minus b", "a minus MIMO"]

    def test_without_results_there_is_no_verdict(self):
        assert judged([compared(0.05, other="c")], claim(BETTER)) == [claims.NO_RESULTS]

    def test_what_has_no_evidence_is_true_by_construction(self):
        assert judged([], claim(holds="so it is built")) == [claims.BY_CONSTRUCTION]


class TestHolm:
    leads = [compared(0.03, 0.016, other=name) for name in "bcdef"]  # p of each: 0.02

    def test_corrects_over_the_claims_of_a_chapter(self):
        one = [claim({"better": "a", "than": "b"})]
        many = [claim({"better": "a", "than": name}, text=name, family="") for name in "bcdef"]
        assert 0.01 < self.leads[0]["p"] < 0.05  # so that five times it is not significant
        assert judged(self.leads, *one) == [claims.SUPPORTED]
        assert judged(self.leads, *many) == [claims.UNDECIDED] * 5

    def test_but_not_over_those_of_other_chapters_or_families(self):
        apart = [
            claim({"better": "a", "than": name}, text=name, family=f"family of {name}")
            for name in "bcdef"
        ]
        assert judged(self.leads, *apart) == [claims.SUPPORTED] * 5

    def test_corrects_over_the_pieces_of_a_claim(self):
        pieces = [{"better": "a", "than": name} for name in "bcdef"]
        assert judged(self.leads, claim(*pieces)) == [claims.UNDECIDED]


def runs(values, **columns):
    seeds = range(1, len(values) + 1)
    return pd.DataFrame({"method": "m", "seed": list(seeds), "value": values, **columns})


class TestMeasurements:
    item = {"table": "t", "where": "method == 'm'", "value": "value - start", "sign": -1}
    item |= {"unit": "", "label": "change"}

    @pytest.mark.parametrize(
        ("values", "verdict"),
        [
            ([0.5, 0.52, 0.48], claims.SUPPORTED),
            ([1.5, 1.52, 1.48], claims.CONTRADICTED),
            ([0.5, 1.9, 0.6], claims.UNDECIDED),
            ([0.5], claims.UNDECIDED),
        ],
    )
    def test_the_mean_over_seeds_decides_by_its_sign(self, values, verdict):
        assert judged({"t": runs(values, start=1.0)}, claim(self.item)) == [verdict]

    def test_are_taken_away_from_one_another_seed_by_seed(self):
        other = runs([0.9, 0.5, 0.7], start=0.0).assign(method="other")
        table = pd.concat([runs([0.1, -0.31, -0.09], start=0.0), other])
        item = self.item | {"minus": "method == 'other'"}
        found = claims.evidence({"t": table, "compared": table[:0]}, [claim(item)])
        assert found["difference"].tolist() == pytest.approx([-0.8], abs=1e-9)

    def test_a_table_without_the_column_is_no_evidence(self):
        assert judged({"t": runs([0.5, 0.6])}, claim(self.item)) == [claims.NO_RESULTS]
        assert judged({}, claim(self.item)) == [claims.NO_RESULTS]


class TestCounts:
    item = {"table": "t", "where": "method == 'm'", "is": ["shared", "separated"], "label": "m"}

    def verdict(self, *verdicts, untrained="neither"):
        columns = {"block": 1, "verdict": list(verdicts), "init_verdict": untrained}
        return judged({"t": runs([0.0] * len(verdicts), **columns)}, claim(self.item))[0]

    def test_decide_where_chance_is_an_unlikely_reason(self):
        assert self.verdict("shared", "shared", "shared") == claims.SUPPORTED
        assert self.verdict("shared", "shared", "neither") == claims.SUPPORTED  # p is 0.7 %
        assert self.verdict("shared", "neither", "neither") == claims.UNDECIDED
        assert self.verdict("separated", "separated", "neither") == claims.CONTRADICTED
        assert self.verdict("shared", "separated", "neither") == claims.UNDECIDED
        assert self.verdict("shared") == claims.UNDECIDED  # p is 5 %

    def test_what_untrained_networks_have_does_not_count(self):
        shared = ["shared"] * 3
        assert self.verdict(*shared, untrained=shared) == claims.UNDECIDED
        assert self.verdict(*shared, untrained="separated") == claims.SUPPORTED
        assert self.verdict(*shared, untrained=["neither", "neither", "shared"]) == claims.SUPPORTED
        assert self.verdict(*["separated"] * 3, untrained=shared) == claims.CONTRADICTED

    def test_every_group_must_hold(self):
        blocks = {"block": [1, 1, 1, 2, 2, 2], "init_verdict": "neither"}
        table = runs([0.0] * 6, verdict=["shared"] * 3 + ["neither"] * 3, **blocks)
        assert judged({"t": table}, claim(self.item)) == [claims.UNDECIDED]


class TestDeclared:
    def test_every_claim_is_whole_and_said_once(self):
        declared = claims.all_claims()
        assert len({each.claim for each in declared}) == len(declared) > 12
        for each in declared:
            assert chapter_path(each.chapter)
            assert bool(each.holds) != bool(each.evidence)
            texts = (each.claim, each.falsified, each.open)
            assert all(text.endswith(".") for text in texts) and len(set(texts)) == 3
        places = " ".join(each.place for each in declared)
        assert all(f"appendix {letter}" in places for letter in "ABCD") and "abstract" in places

    def test_the_runs_that_they_compare_are_trained_somewhere(self):
        names = {config.name for config in studies.adjusted_runs("digits", [1])}
        names |= {config.name for config in studies.aligned_runs("digits", [1])}
        names |= {
            *METHODS,
            *(each.name for each in grids.select("", "digits", ["single"], [1], "single").controls),
        }
        for file in (project_root() / "workflow" / "grids").glob("*.yml"):
            names |= {config.name for config in grids.read(file).configs}
        wanted = {
            item[key]
            for each in claims.all_claims()
            for item in each.evidence
            for key in ("better", "than", "same", "as")
            if key in item
        }
        assert len(wanted) > 8 and wanted <= names

    def test_what_is_claimed_to_be_better_is_a_method_as_it_is(self):
        pieces = [item for each in claims.all_claims() for item in each.evidence]
        assert {item["better"] for item in pieces if "better" in item} == {"mixshare", "cut_mixmo"}

    def test_the_recipe_is_the_appendixes(self):
        config = RunConfig.preset("paper", "mixshare")
        assert (config.depth, config.width, config.members, config.batch_repetition) == (
            28,
            2,
            2,
            2,
        )
        assert config.learning_rate == 0.1 / 2 * 64 / 128 and config.batch_size == 64
        assert config.milestones == (75, 150, 225) and config.decay == 0.1
        assert (config.epochs, config.warmup_epochs, config.l2) == (300, 1, 3e-4)


def test_a_verdict_of_equality_is_the_same_with_chapter_02s_table_as_with_chapter_05s(tmp_path):
    """In chapter 02 the accuracy, and so the room for a difference, is known from its own table."""
    pair = compared(0.0, 0.005, other="b") | {"figure": "accuracy_ensemble"}
    for name in ("alignment.csv", "runs.csv"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        pd.DataFrame([pair]).to_csv(folder / "alignment_paired.csv", index=False)
        for accuracy, wanted in ((0.7, claims.SUPPORTED), (0.998, claims.UNDECIDED)):
            rows = {"method": "a", "seed": [1, 2], "accuracy_ensemble": accuracy}
            pd.DataFrame(rows).to_csv(folder / name, index=False)
            same = claim({"same": "a", "as": "b", "within": 1})
            found = claims.evidence(claims.read_tables(folder), [same])
            assert [verdict for _, verdict in claims.verdicts(found, [same])] == [wanted]


def test_the_published_claims_follow_from_the_published_tables(published_profiles):
    for profile in published_profiles:
        folder = claims.studies_folder(profile)
        found = claims.evidence(claims.read_tables(folder))
        fresh = {each.claim: verdict for each, verdict in claims.verdicts(found)}
        kept = pd.read_csv(folder / "claims.csv").set_index("claim")["verdict"].to_dict()
        assert kept == fresh and profile in PROFILES
        assert set(kept.values()) & {claims.SUPPORTED, claims.CONTRADICTED}


@pytest.fixture
def published_profiles(outputs):
    folders = (project_root() / "outputs" / "published").glob("*/studies")
    return [folder.parent.name for folder in folders]


def test_an_evidence_table_of_a_grid_counts_as_well(tmp_path):
    (tmp_path / "pixels").mkdir()
    row = compared(0.05, method="mixshare", other="single+pixel_cutmix=true")
    table = pd.DataFrame([row]).reindex(
        columns=["method", "other", "figure", *row.keys()][:3]
        + [name for name in statistics.COLUMNS if name in row]
    )
    results.save_table(table, tmp_path / "pixels" / "paired.csv", index=False)
    found = claims.evidence(claims.read_tables(tmp_path))
    assert set(found["verdict"]) == {"supports", claims.NOT_RUN}
    assert (found["verdict"] == "supports").sum() == 1


def test_the_evidence_is_the_readers_own_before_what_is_published(outputs):
    own = outputs / "digits" / "studies"
    own.mkdir(parents=True)
    (own / "claims.csv").touch()  # alone it says nothing
    assert claims.studies_folder("digits").is_relative_to(project_root() / "outputs" / "published")
    (own / "sharing.csv").touch()
    assert claims.studies_folder("digits") == own


def tables_of_a_world(right: bool) -> dict[str, pd.DataFrame]:
    """Return tables in which every claim of the paper holds clearly, or none does."""
    sign = 1 if right else -1
    pairs = [
        (item.get("better", item.get("same")), item.get("than", item.get("as")), "same" in item)
        for each in claims.all_claims()
        for item in each.evidence
        if "table" not in item
    ]
    rows = [
        compared(0.001 if same and right else 0.05 * sign, 0.002, 6, first, second)
        for first, second, same in pairs
    ]
    seeds, always = range(1, 7), "cut_mixmo+mix_fade=0+mix_probability=1"
    noise = np.linspace(0, 0.01, 6)
    # What NLL summed encodings cost more than cut ones.
    gaps = {"mixshare": noise / 5 if right else 0.9 + noise, always: sign * (0.9 + noise)}
    gaps["mixshare+input_repetition=0"] = 0.3 + 2 * noise
    gap = [
        pd.DataFrame({"method": m, "seed": seeds, "nll_summed": more, "nll_cut": 0})
        for m, more in gaps.items()
    ]
    names = [name for pair in pairs for name in pair[:2]]
    figures = {"accuracy_ensemble": 0.8, "accuracy_train": 0.99}
    start, end = (1.5, 1.1) if right else (1.1, 1.5)
    kernels = {"init_kernel_norm_ratio": start, "kernel_norm_ratio": end + noise}
    cosines = {"init_cosine": 0.5, "cosine": 0.5 + 0.4 * sign + noise, "block": "output"}
    kinds = dict.fromkeys(["mimo", "cut_mixmo"], "separated" if right else "shared")
    kinds["mixshare"] = "neither"
    overlaps = {"init_verdict": "neither", "overlap": 0.5 + 0.4 * sign + noise}
    blocks = [
        pd.DataFrame({"method": m, "seed": seeds, "block": k, "verdict": kind} | overlaps)
        for m, kind in kinds.items()
        for k in (1, 2, 3)
    ]
    colinear = "mixshare+encoder_init=colinear"
    return {
        "compared": pd.DataFrame(rows),
        "runs": pd.DataFrame({"method": names} | figures),
        "gap": pd.concat(gap),
        "alignment": pd.DataFrame({"method": colinear, "seed": seeds} | kernels),
        "norms": pd.DataFrame({"method": "mixshare", "seed": seeds} | cosines),
        "sharing": pd.concat(blocks).assign(init_overlap=0.5),
    }


@pytest.mark.parametrize(
    ("right", "verdict"), [(True, claims.SUPPORTED), (False, claims.CONTRADICTED)]
)
def test_where_all_that_the_paper_says_holds_each_claim_is_supported_else_none(right, verdict):
    found = claims.evidence(tables_of_a_world(right))
    judged = {
        each.claim: each_verdict for each, each_verdict in claims.verdicts(found) if each.evidence
    }
    assert len(judged) == 16 and set(judged.values()) == {verdict}, judged
