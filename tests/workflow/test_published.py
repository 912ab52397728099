"""What the project publishes: whole, computed from what lies with it, and as the pages say."""

import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import needs
import pandas as pd
import publish
import pytest
import targets
import torch
import verify

import mixshare
from mixshare import files, metrics, runs
from mixshare.chapters import grids, report, results, statistics, trust
from mixshare.config import fields_digest
from mixshare.data import load_data
from mixshare.files import project_root, published_folder, read_json
from mixshare.training import test_logits as logits_of

README, *_ = TEXTS = [path.read_text() for path in publish.pages()]
PAGES = "\n".join(TEXTS)
PUBLISHED = published_folder()
METHODS, SEEDS = list(targets.DEFAULT_METHODS), list(targets.DEFAULT_SEEDS)
DIGITS = grids.select("", "digits", METHODS, SEEDS, "mixshare")
PHOTOGRAPHS = [
    mixshare.RunConfig.from_dict(read_json(path))
    for path in sorted((PUBLISHED / "photographs").glob("*/seed-*/config.json"))
]
KINDS = ("seeds", "images")
NARROW = ("single", "mixshare", "cut_mixmo")
SINGLE = ("single", "single+pixel_cutmix=true")
SAME_ROWS = "single+batch_repetition=2"
NO_UNMIXING = "mixshare+unmix=false"
UNDECIDED = {statistics.UNDECIDED, statistics.AFTER_HOLM, statistics.TOO_FEW}
DECLARED = [
    grids.read(file)
    for file in sorted((project_root() / "workflow" / "grids").glob("*.yml"))
    if (PUBLISHED / grids.read(file).profile / "studies" / file.stem).is_dir()
]


def published(config: mixshare.RunConfig) -> runs.Run:
    return runs.Run(config, runs.run_folder(config, PUBLISHED))


def table(profile: str, name: str, **options) -> pd.DataFrame:
    return pd.read_csv(PUBLISHED / profile / "studies" / name, **options)


def headings(path: Path) -> list[str]:
    """Return a notebook's."""
    cells = [cell for cell in read_json(path)["cells"] if cell["cell_type"] == "markdown"]
    lines = [line.rstrip("\n") for cell in cells for line in cell["source"]]
    return [line for line in lines if line.startswith("#")]


def check_paired(folder: Path, finished: list[runs.Run], baseline: str) -> None:
    """Check the tables of comparisons, but for what another machine rounds otherwise."""
    for name, compare in (("paired", results.paired), ("settings", results.settings)):
        kept, fresh = pd.read_csv(folder / f"{name}.csv"), compare(finished, baseline)
        assert kept.columns.tolist() == fresh.columns.tolist()
        rounded = dict(check_dtype=False, rtol=1e-3, atol=1e-5)  # of a float16's last place
        sort = partial(
            pd.DataFrame.sort_values, by=["figure", "method", "other"], ignore_index=True
        )
        pd.testing.assert_frame_equal(sort(kept), sort(fresh), **rounded)


def git(*words) -> None:
    """Call git with the configuration of a repository alone, not the user's or the system's."""
    free = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    subprocess.run(["git", *map(str, words)], check=True, env=free | alone)


# The runs


class TestRuns:
    def test_those_of_the_digits_are_of_the_present_configuration_and_data(self, outputs):
        for config in DIGITS.configs:
            run = mixshare.load(config)  # published, since this test's outputs folder is empty
            made_by = run.metrics["provenance"]
            assert made_by["config_digest"] == config.digest
            assert made_by["data_digest"] == load_data("digits").digest
            assert run.has_scores and 0.9 < run.metrics["accuracy_train"] <= 1
            assert made_by["git_clean"] and re.fullmatch("[0-9a-f]{40}", made_by["git_commit"])

    def test_those_of_photographs_are_whole_but_for_their_answers_which_are_too_large_for_git(self):
        for config in PHOTOGRAPHS:
            run = published(config)
            assert run.folder.is_dir()  # its name is that of its configuration
            made_by, stored = run.metrics["provenance"], read_json(run.folder / "config.json")
            assert made_by["config_digest"] == fields_digest(stored)
            assert made_by["git_clean"] and made_by["train_images"] == 6_000
            assert run.has_scores and not run.has_logits
            assert run.has_weights == ("weights.safetensors" in publish.run_files(config))
            assert not run.has_weights or run.model.encoders[0].weight.isfinite().all()
        digests = {published(each).metrics["provenance"]["data_digest"] for each in PHOTOGRAPHS}
        assert len(digests) == 1

    def test_their_figures_are_those_of_their_last_epoch(self):
        for config in [*DIGITS.configs, *PHOTOGRAPHS]:
            run = published(config)
            assert len(run.history) == config.epochs
            last = run.history["test_accuracy_ensemble"].iloc[-1]
            assert last == run.metrics["accuracy_ensemble"]

    def test_their_figures_follow_from_their_logits(self):
        for config in DIGITS.configs:
            run = published(config)
            again = metrics.evaluate(run.logits, run.labels)
            kept = {name: run.metrics[name] for name in again}
            verdicts = dict(verify.compare_figures("again", again, kept, verify.SUMS)).values()
            assert not [verdict for verdict in verdicts if verdict.startswith(verify.DIFFERENT)]

    @pytest.mark.parametrize("method", METHODS)
    def test_their_logits_follow_from_their_weights(self, method):
        run = published(mixshare.RunConfig.preset("digits", method, 1))
        logits = logits_of(run.model, load_data("digits"))
        difference = (logits.float() - run.logits.float()).abs().max()
        assert difference < verify.LOGITS  # another machine rounds otherwise
        same = logits.mean(0).argmax(1) == run.logits.mean(0).argmax(1)
        assert same.float().mean() > 0.99

    @pytest.mark.slow
    @pytest.mark.cifar100
    @pytest.mark.parametrize("method", sorted({config.method for config in PHOTOGRAPHS}))
    def test_their_figures_on_photographs_follow_from_their_weights(self, method):
        run = published(mixshare.RunConfig.preset("photographs", method, 1))
        data = load_data("cifar100-16px")
        assert data.digest == run.metrics["provenance"]["data_digest"]
        logits = logits_of(run.model.to(memory_format=torch.channels_last), data)
        found = metrics.evaluate(logits, data.test_labels)
        for name in ("accuracy_ensemble", "accuracy_members", "nll", "ece"):
            assert found[name] == pytest.approx(run.metrics[name], abs=verify.EVALUATED)

    def test_their_chapters_are_of_the_same_run_and_say_what_the_chapter_says_today(self):
        today = headings(project_root() / "notebooks" / "01_training.ipynb")
        paths = [*PUBLISHED.glob("*/*/seed-*/01_training.ipynb")]
        assert len(today) > 5 and len(paths) > 30
        for path in paths:
            config = mixshare.RunConfig.from_dict(read_json(path.with_name("config.json")))
            assert read_json(path)["metadata"]["papermill"]["parameters"] == {
                "profile": config.profile,
                "method": config.method,
                "seed": config.seed,
                "overrides": config.overrides,
            }
            assert headings(path) == today, path

    def test_their_members_solve_the_digits(self):
        """No member is at chance, and ensembles are near 99 %: far below what any seed reached."""
        for config in DIGITS.configs:
            figures = published(config).metrics
            assert min(figures["accuracy_members"]) > 0.95 and figures["accuracy_ensemble"] > 0.97


# The files


def test_no_published_file_names_this_machine_its_folders_or_its_user():
    private = [re.escape(word.encode()) for word in publish.private_words()]
    pattern = re.compile(b"|".join([*private, rb"/(home|root|Users|tmp)/\w"]))
    for path in PUBLISHED.rglob("*"):
        assert path.is_dir() or not pattern.search(path.read_bytes()), path


def test_a_published_profile_stays_under_its_limit():
    for folder in PUBLISHED.iterdir():
        sizes = [path.stat().st_size for path in publish.published_files(folder.name)]
        most = publish.MOST_BYTES[folder.name]
        assert 0 < sum(sizes) < most, folder


@pytest.mark.parametrize("attributes", [True, False], ids=["with", "without"])
def test_a_clone_that_converts_line_endings_keeps_published_bytes_by_our_gitattributes(
    attributes, tmp_path
):
    source, copy = tmp_path / "source", tmp_path / "copy"
    shutil.copytree(published(DIGITS.configs[0]).folder, source / "run")
    (source / "table.csv").write_bytes(b"method,n\nsingle,3\n")
    if attributes:
        shutil.copy(project_root() / ".gitattributes", source)
    git("init", "--quiet", source)
    git("-C", source, "add", ".")
    git("-C", source, "-c", "user.name=a", "-c", "user.email=a", "commit", "--quiet", "-m", "a")
    git("clone", "--quiet", "-c", "core.autocrlf=true", source, copy)
    assert (runs.first_corrupt_file(copy / "run") is None) == attributes
    assert (b"\r" not in (copy / "table.csv").read_bytes()) == attributes


# The tables


def test_the_published_tables_follow_from_the_published_runs():
    collected, missing = results.collect(DIGITS.configs, PUBLISHED)
    assert not missing
    made = [results.per_run(collected), results.deep_ensembles(collected)]
    rows = pd.concat(made, ignore_index=True)
    fresh = results.summary(rows).join(results.costs(collected, repeats=1))
    same = [name for name in fresh.columns if not name.endswith("latency_ms")]
    kept = results.read_summary(PUBLISHED / "digits" / "studies" / "results.csv")
    pd.testing.assert_frame_equal(kept[same], fresh[same], check_dtype=False)
    check_paired(PUBLISHED / "digits" / "studies", collected, "mixshare")


def test_the_published_comparisons_on_photographs_follow_from_the_published_runs():
    rows = table("photographs", "runs.csv", dtype={"seed": str})
    shown = {(row.method, row.seed) for row in rows.itertuples()}
    finished = [published(c) for c in PHOTOGRAPHS if (c.name, str(c.seed)) in shown]
    assert len(finished) == len(shown) - rows["seed"].str.contains("+", regex=False).sum()
    check_paired(PUBLISHED / "photographs" / "studies", finished, "mixshare")


@pytest.mark.parametrize("grid", DECLARED, ids=lambda grid: grid.name)
def test_the_tables_of_a_published_grid_follow_from_the_published_runs(grid):
    collected, missing = results.collect(grid.configs, PUBLISHED)
    assert not missing
    rows, folder = results.per_run(collected), PUBLISHED / grid.profile / "studies" / grid.name
    kept, fresh = results.read_summary(folder / "results.csv"), results.summary(rows)
    pd.testing.assert_frame_equal(kept.loc[fresh.index, fresh.columns], fresh, check_dtype=False)
    each = pd.read_csv(folder / "runs.csv", dtype={"seed": str})
    each = each[each["method"].isin(rows["method"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(each, rows, check_dtype=False)
    check_paired(folder, collected, grid.baseline)


def test_a_published_chapter_shows_no_older_published_runs():
    line = r"the table shows \d+ published ones|(\d+) of your (\d+) runs that are published too"
    paths = sorted(PUBLISHED.glob("*/chapters/05_results*.ipynb"))
    assert len(paths) > 2
    for path in paths:
        ((equal, both),) = set(re.findall(line, path.read_text()))
        assert equal == both, path


class TestTablesOfThePages:
    marked = re.findall(re.escape(publish.MARKS[0]).replace(r"\{\}", "([^ ]+)"), PAGES)

    def test_they_are_the_published_ones(self):
        begin, end = publish.MARKS
        for name in self.marked:
            shown = PAGES.split(begin.format(name) + "\n")[1].split(end)[0]
            assert shown == publish.page_table(name)
            assert shown.count("\n") >= 4

    def test_every_published_profile_has_one_once_its_runs_are_compared(self):
        profiles = {name.partition("/")[0] for name in self.marked}
        assert profiles == {"claims"} | {
            folder.parent.name for folder in PUBLISHED.glob("*/studies")
        }


# What the pages say


def lead(row: pd.Series, form: str = "", sign: int = 1, scale: float = 100) -> str:
    """Return a comparison's difference as the pages write it; -1 turns it round."""
    return f"{sign * scale * row['difference']:{form}.2f}"


def intervals(row: pd.Series, sign: int = 1, scale: float = 100, digits: int = 2) -> str:
    """Return its two intervals in the same way."""
    ends = ([sign * scale * row[f"{kind}_{end}"] for end in ("low", "high")] for kind in KINDS)
    texts = (" to ".join(f"{end:.{digits}f}" for end in sorted(each)) for each in ends)
    return "seeds {}, test images {}".format(*texts).replace("-", "−")


def test_the_page_says_what_repeating_block_1_takes():
    grid = grids.read("workflow/grids/photographs-methods.yml")
    finished, missing = results.collect(grid.configs, PUBLISHED)
    seconds = sum(run.metrics["provenance"]["wall_seconds"] for run in finished)
    assert not missing and f"Ours took {seconds / 3600:.0f} hours of one core" in PAGES
    assert f"its {len(finished)} runs, and chapter 05 on them" in PAGES
    assert re.fullmatch(r"on cpu .*: about \d+ hours in all, by .*", *needs.estimate(grid.configs))


class TestThePagesOnPhotographs:
    pairs = table("photographs", "paired.csv").set_index(["figure", "other"])
    accuracy, nll = pairs.loc["accuracy_ensemble"], pairs.loc["nll"]

    def test_on_the_claim(self):
        for other, words, level in (
            ("single", "a single network", "95 % intervals: "),
            ("cut_mixmo", "Cut-MixMo", ""),
        ):
            row = self.accuracy.loc[other]
            text = f"{lead(row)} points more than {words} ({level}{intervals(row)})"
            assert row["verdict"] == "higher" and text in PAGES and f"{lead(row)} " in README

    def test_on_the_reason(self):
        tied, pixels, same_rows = (
            self.accuracy.loc[name]
            for name in ("mixshare+tied=true", "single+pixel_cutmix=true", SAME_ROWS)
        )
        same = f"{lead(tied, '+')} points (95 % intervals: {intervals(tied)})"
        assert f"MixShare minus it is {same}" in PAGES
        assert f"MixShare is {lead(tied, '+')} points ahead" in README
        for row in (pixels, same_rows):
            assert f"right on {lead(row)} points more ({intervals(row)})" in PAGES
        assert f"{lead(same_rows)} more than one trained on as many rows" in README
        mimo = self.accuracy.loc["mimo"]
        assert f"on {lead(mimo)} points more than MIMO ({intervals(mimo)})" in PAGES
        assert f"{lead(mimo)} more than" in README

    def test_on_half_the_width(self):
        single, cut_mixmo = (self.accuracy.loc[f"{name}+width=0.5"] for name in NARROW[::2])
        text = "points more than the single network (95 % intervals: "
        assert f"{lead(single)} {text}{intervals(single)})" in PAGES
        assert f"the lead over a single network, {lead(single)} points, is not signif" in README
        assert f"{lead(cut_mixmo)} points more than Cut-MixMo ({intervals(cut_mixmo)})" in PAGES
        settings = table("photographs", "settings.csv").query("figure == 'accuracy_ensemble'")
        change = settings.set_index("other").loc["lead of MixShare over Single network"]
        shrinks = f"{lead(change, sign=-1)} points smaller than at width 1 ("
        assert f"{shrinks}{intervals(change, -1)})" in PAGES
        assert {single["verdict"], change["verdict"]} <= UNDECIDED
        assert cut_mixmo["verdict"] == "higher"

    def test_on_nll(self):
        narrow = self.nll.loc[[f"{name}+width=0.5" for name in NARROW[::2]]]
        assert "by {:.2f} and {:.2f} nats. The lead".format(*-narrow["difference"]) in PAGES
        rows = {name: self.nll.loc[name] for name in ("single", "cut_mixmo", "mimo")}
        for row, words in zip(rows.values(), ("by ", "Cut-MixMo by ", "MIMO by "), strict=True):
            assert f"{words}{lead(row, '', -1, 1)} nats ({intervals(row, -1, 1)})" in PAGES
        tied = self.nll.loc["mixshare+tied=true"]
        assert f"NLL is not significant ({lead(tied, '', -1, 1)} nats)" in PAGES
        assert {*narrow["verdict"], *(row["verdict"] for row in rows.values())} == {"lower"}
        assert tied["verdict"] in UNDECIDED

    def test_on_means(self):
        rows = table("photographs", "runs.csv", dtype={"seed": str})
        rows = rows.set_index("method").select_dtypes("number")
        means = 100 * rows.groupby("method").mean()
        mixshare, cut_mixmo, mimo = (means.loc[name] for name in ("mixshare", "cut_mixmo", "mimo"))
        deep = means["accuracy_ensemble"][[*map(results.ensemble_name, SINGLE)]]
        gains = means["accuracy_ensemble"] - means["accuracy_individual"]
        for text in (
            f"MixShare is right on {mixshare['accuracy_ensemble']:.1f} % of the test images",
            "deep ensemble of two single networks is right on {:.1f} %, at twice the price of one "
            "({:.1f} % with CutMix of pixels, or where".format(*deep),
            f"agree on {mixshare['agreement']:.1f} % of the images",
            f"on {gains['mixshare']:.2f} points more than each",
            f"members agree on {cut_mixmo['agreement']:.1f} %",
            f"together gain {gains['cut_mixmo']:.1f} points",
            f"MIMO's agree on {mimo['agreement']:.1f} %, and gain {gains['mimo']:.1f}.",
        ):
            assert text in PAGES, text

    def test_on_how_far_training_images_are_fitted(self):
        rows = table("photographs", "runs.csv")
        means = 100 * rows.groupby("method")["accuracy_train"].mean()
        fitted = means.map("{:.1f} %".format)
        narrow = (fitted[f"{name}+width=0.5"] for name in NARROW)
        for text in (
            f"({fitted['single']} right)",
            f"right on {fitted['single']} (on as many rows {fitted[SAME_ROWS]}), with CutMix of "
            f"pixels on {fitted['single+pixel_cutmix=true']}, MixShare on {fitted['mixshare']}, "
            f"MixShare with one subnetwork on {fitted['mixshare+tied=true']}, "
            f"MIMO on {fitted['mimo']} and Cut-MixMo on {fitted['cut_mixmo']}",
            "right on {} of them, MixShare on {} and Cut-MixMo on {}".format(*narrow),
        ):
            assert text in PAGES, text

    @pytest.mark.parametrize("grid", ["photographs-adjustments", "photographs-masked"])
    def test_on_a_block_of_ablations_compared_as_planned(self, grid):
        ablations = grids.read(f"workflow/grids/{grid}.yml").configs
        bases = [mixshare.RunConfig.preset("photographs", "mixshare", s) for s in (1, 2, 3)]
        finished, missing = results.collect([*bases, *ablations], PUBLISHED)
        pairs = results.paired(finished, "mixshare")  # Holm over the block, for each figure
        assert not missing and len(pairs) == 2 * len(ablations) / 3
        said = "difference (95 %: over seeds; over test images)"
        for other, both in report.readable(pairs).groupby("other", sort=False):
            cells = [other, *both[[said, "verdict"]].to_numpy().ravel()]
            assert f"| {' | '.join(cells)} |".replace("\u00a0", " ") in PAGES, cells

    def test_on_what_the_ablations_say(self):
        """Chapters 02 and 04, whose families are others than the plan's, have its verdicts."""
        kept = pd.concat(
            [table("photographs", f"{name}.csv") for name in ("adjustments", "alignment_paired")]
        )
        accuracy, nll = (kept[kept["figure"] == name] for name in ("accuracy_ensemble", "nll"))
        clear = {"supports", "contradicts", "higher", "lower"}
        assert accuracy[accuracy["verdict"].isin(clear)]["method"].tolist() == [NO_UNMIXING]
        changed = accuracy.set_index("method").loc[NO_UNMIXING]
        assert changed["verdict"] == "lower" and f"loses {lead(changed, sign=-1)} points" in README
        assert f"falls by {lead(changed, sign=-1)} points, and no other" in PAGES
        lower = nll[nll["verdict"].isin(clear)].set_index("method")
        masked = lower.loc["mixshare+unmix_normalize=false"]
        assert f"NLL is lower by {-masked['difference']:.3f} nats" in PAGES and len(lower) == 1
        of_seeds = [
            [
                published(mixshare.RunConfig.of("photographs", "mixshare", seed, overrides)).metrics
                for seed in (1, 2, 3)
            ]
            for overrides in ({"unmix": False}, {}, {"encoder_init": "independent"})
        ]
        agreed = [100 * sum(run["agreement"] for run in each) / 3 for each in of_seeds]
        assert "agree on {:.1f} % of the images in place of {:.1f} %".format(*agreed) in PAGES
        right = [100 * run["accuracy_ensemble"] for run in of_seeds[-1]]
        assert "right on {:.2f}, {:.2f} and {:.2f} %".format(*right) in PAGES
        claimed = table("photographs", "claims.csv").set_index("claim")["verdict"]
        assert claimed.filter(like="common language").tolist() == ["undecided"]

    def test_on_the_verdicts(self):
        claimed = table("photographs", "claims.csv").set_index("claim")["verdict"]
        for words, verdict in (
            ("Small networks gain", "supported"),
            ("having two subnetworks", "contradicted"),
            ("more than CutMix of pixels", "supported"),
            ("better use of the same training rows", "supported"),
        ):
            assert claimed.filter(like=words).tolist() == [verdict]


class TestThePagesOnTrust:
    def test_on_temperature(self):
        rows = table("photographs", "temperature.csv").groupby("method").mean(numeric_only=True)
        single, mixshare = rows.loc["single"], rows.loc["mixshare"]
        for sentence, row in (
            (
                "{:.2f} takes the single network's NLL from {:.2f} to {:.2f} and its ECE from",
                single,
            ),
            ("one of {:.2f} MixShare's from {:.2f} to {:.2f} and from", mixshare),
        ):
            start = sentence.format(row["temperature"], row["nll"], row["nll_scaled"])
            assert f"{start} {100 * row['ece']:.1f} to {100 * row['ece_scaled']:.1f} %" in PAGES
        pairs = table("photographs", "temperature_paired.csv").query("temperature == 'scaled'")
        pairs = pairs.set_index(["figure", "other"])
        for other, words in (("single", "the single network"), ("cut_mixmo", "Cut-MixMo")):
            row = pairs.loc["nll", other]
            start = f"{words} by {lead(row, '', -1, 1)}"
            start += " nats (95 % intervals: " if other == "single" else " ("
            assert row["verdict"] == "lower" and f"{start}{intervals(row, -1, 1)})" in PAGES
        assert set(pairs.loc["ece", "verdict"]) <= UNDECIDED
        assert "while their ECEs no longer differ significantly" in PAGES
        pairs = table("digits", "temperature_paired.csv").query("temperature == 'scaled'")
        assert set(pairs["verdict"]) <= UNDECIDED
        assert "Scaled, no difference of NLL or ECE is significant there" in PAGES
        for profile, verdict in (("digits", trust.UNDER), ("photographs", trust.OVER)):
            rows = table(profile, "calibration.csv").query("answer == 'mean of logits'")
            assert set(rows["verdict"]) == {verdict}
        assert "with six errors at most in a run" in PAGES
        assert table("digits", "detection.csv")["errors"].max() == 6

    def test_on_corrupted_images(self):
        rows = table("photographs", "corruption.csv")
        mce = 100 * trust.corruption_errors(rows, "single").groupby("method")["mce"].mean()
        sentence = "is {mixshare:.1f} % of the single network's, and Cut-MixMo's {cut_mixmo:.1f} %"
        assert sentence.format(**mce) in PAGES
        shaken = rows[rows["severity"] > 0].groupby(["corruption", "method"])
        kinds = shaken["accuracy"].mean().unstack()
        worse = set(kinds.index[kinds["mixshare"] < kinds["single"]])
        assert worse == {"noise", "blur", "JPEG"} and len(kinds) == 6
        assert (kinds["single"] - kinds["mixshare"])["blur"] < 0.002
        assert "under noise and JPEG, hardly more under blur, and fewer under" in PAGES
        right = 100 * rows[rows["severity"] > 0].groupby("method")["accuracy"].mean()
        sentence = (
            "right on {mixshare:.1f} %, the single network on {single:.1f} %, "
            "MIMO on {mimo:.1f} %, Cut-MixMo on {cut_mixmo:.1f} % and MixShare with "
            "one subnetwork on "
        )
        control = f"{right['mixshare+tied=true']:.1f} %"
        assert sentence.format(**right.filter(regex="^[a-z_]+$")) + control in PAGES
        digits = table("digits", "corruption.csv").query("severity > 0")
        right = 100 * digits.groupby("method")["accuracy"].mean()
        sentence = "on {mixshare:.1f} %, the single network on {single:.1f} % and Cut-MixMo on "
        assert (sentence + "{cut_mixmo:.1f} %.").format(**right) in PAGES
        errors = trust.corruption_errors(table("digits", "corruption.csv"), "single")
        mce = 100 * errors.groupby("method")["mce"].mean()
        sentence = "{mixshare:.0f} % of the single network's, lower than MIMO's ({mimo:.0f} %) and "
        assert (sentence + "Cut-MixMo's ({cut_mixmo:.0f} %)").format(**mce) in PAGES
        verdicts = trust.compared(errors, "mce", "mixshare").set_index("other")["verdict"]
        wanted = {"single": statistics.UNDECIDED, "mimo": "lower", "cut_mixmo": "lower"}
        assert verdicts.to_dict() == wanted

    def test_on_errors_found(self):
        rows = table("photographs", "detection.csv")
        together = 100 * rows.groupby("method")["agreement_wrong"].mean()
        sentence = (
            "On {mixshare:.1f} % of the images that MixShare's ensemble gets wrong its members "
            "agree, Cut-MixMo's on {cut_mixmo:.1f} % and MIMO's on {mimo:.1f} %"
        )
        assert sentence.format(**together[["mixshare", "cut_mixmo", "mimo"]]) in PAGES
        scores = rows.pivot(index=["method", "seed"], columns="score", values="auroc")
        change = 100 * (scores[trust.BOTH] - scores[trust.CONFIDENCE])
        lost = {name: -change[name].mean() for name in ("cut_mixmo", "mimo", "mixshare")}
        sentence = (
            "by {cut_mixmo:.1f} points in Cut-MixMo, {mimo:.1f} in MIMO and "
            "{mixshare:.1f} in MixShare"
        )
        assert sentence.format(**lost) in PAGES
        added = 100 * (scores[trust.BOTH] - scores[trust.ENTROPY])
        ends = {name: statistics.interval(added[name])[1:] for name in lost}
        assert f"gains {added['cut_mixmo'].mean():.2f} points of AUROC in Cut-MixMo" in PAGES
        assert ends["cut_mixmo"][0] > 0 and ends["mimo"][0] < 0 < ends["mimo"][1]
        assert ends["mixshare"][0] < 0 < ends["mixshare"][1]
        means = 100 * rows.groupby(["method", "score"])["auroc"].mean()
        kinds = (trust.DISAGREEMENT, trust.CONFIDENCE)
        cut, mixshare = (
            "{:.1f} against {:.1f} %".format(*(means[name, kind] for kind in kinds))
            for name in ("cut_mixmo", "mixshare")
        )
        assert f"({cut} in Cut-MixMo, and {mixshare} in MixShare)" in PAGES

    def test_the_digests_of_corrupted_images_come_out_again(self):
        images = load_data("digits").test_images
        made = table("digits", "corrupted_images.csv").query("corruption != 'JPEG'")
        for row in made.itertuples():
            again = trust.corrupted(images, row.corruption, row.severity)
            assert files.sha256(again.numpy().tobytes()) == row.sha256, row


class TestThePagesOnDigits:
    def test_on_the_methods(self):
        pairs = table("digits", "paired.csv").set_index(["figure", "other"])
        accuracy, nll = pairs.loc["accuracy_ensemble"], pairs.loc["nll"]
        assert set(accuracy["verdict"]) == {statistics.TOO_FEW}
        assert "differ on fewer than ten of the 500 test images" in PAGES
        assert set(nll.loc[["mimo", "single"], "verdict"]) <= UNDECIDED
        assert "its differences from MIMO and from the single network are not significant" in PAGES
        sentences = (
            ("cut_mixmo", "lower", -1, "is ahead of Cut-MixMo (by {:.3f} nats; 95 % intervals: "),
            ("single+batch_repetition=2", "higher", 1, "is ahead of MixShare (by {:.3f} nats; "),
        )
        for other, verdict, sign, start in sentences:
            row = nll.loc[other]
            text = start.format(sign * row["difference"]) + f"{intervals(row, sign, 1, 3)})"
            assert row["verdict"] == verdict and text in PAGES
        rows = table("digits", "runs.csv")
        assert (rows.loc[rows["method"] == "mixshare", "agreement"] == 1).all()
        assert "two members give one label to every test image" in PAGES

    def test_on_what_training_makes_of_the_classifiers(self):
        norms = table("digits", "norms.csv").query("block == 'output'")
        cosines = norms.groupby("method")[["init_cosine", "cosine"]].mean()
        assert cosines["init_cosine"].abs().max() < 0.1
        assert f"rises from about 0 to {cosines.loc['mixshare', 'cosine']:.2f} in MixShare" in PAGES
        assert cosines.loc[["mimo", "cut_mixmo"], "cosine"].abs().max() < 0.1

    def test_on_the_control_with_one_network(self):
        rows = table("digits", "adjustments.csv").set_index("change")
        tied = rows.loc["one subnetwork"]
        assert set(tied["figure"]) == {"accuracy_ensemble", "nll"}
        assert set(tied["verdict"]) <= UNDECIDED
        assert "it does not differ significantly from MixShare with one subnetwork" in PAGES

    def test_on_widths(self):
        pairs = table("digits", "width/paired.csv").set_index(["figure", "other"])
        widths = {"1": "", "2": "+width=2", "4": "+width=4"}
        names = [f"{name}{end}" for end in widths.values() for name in ("single", "cut_mixmo")]
        assert set(pairs.loc["accuracy_ensemble"].loc[names, "verdict"]) <= UNDECIDED
        for width, end in widths.items():
            pair = pairs.loc["nll", f"cut_mixmo{end}"]
            shown = f"{-pair['difference']:.3f} nats ({intervals(pair, -1, 1, 3)}) at width {width}"
            assert (shown in PAGES) == (pair["verdict"] == "lower")
        rows = table("digits", "width/runs.csv", dtype={"seed": str})
        nll = rows.pivot(index="seed", columns="method", values="nll").loc[["1", "2", "3"]]
        lead = {w: nll[f"mixshare{end}"] - nll[f"cut_mixmo{end}"] for w, end in widths.items()}
        shrinks = statistics.interval(lead["4"] - lead["1"])
        assert shrinks[1] > 0
        sentence = "From width 1 to 4 the lead shrinks by {:.3f} ({:.3f} to {:.3f} over seeds)"
        assert sentence.format(*shrinks) in PAGES
        behind = [(nll[f"cut_mixmo{end}"] - nll[f"single{end}"]).mean() for end in widths.values()]
        assert min(behind) > 0
        assert (
            "is ahead of Cut-MixMo in the mean as well, by {:.3f}, {:.3f} and {:.3f} nats".format(
                *behind
            )
            in PAGES
        )

    def test_on_half_precision(self):
        (precision,) = [grid for grid in DECLARED if grid.name == "precision"]
        finished = [published(config) for config in precision.configs]
        for method in ("single", "cut_mixmo", "mixshare"):
            both = [run for run in finished if run.config.method == method]
            pairs = results.paired(both, method)
            assert pairs["other"].tolist() == [f"{method}+precision=bfloat16"] * 2
            assert set(pairs["verdict"]) <= UNDECIDED
        sentence = (
            "no significant difference between half precision and float32, in accuracy or NLL, of "
            "`single`, `cut_mixmo` or `mixshare`"
        )
        assert sentence in PAGES

    def test_on_speed(self):
        measured = json.loads((PUBLISHED / "digits" / "studies" / "speed.json").read_text())
        rows, half = measured["rows_per_second"], measured["switches"]["bfloat16 / float32"]
        for sentence in (
            f"trains MixShare's WRN-28-2 at {rows:.0f} rows a second in float32, the default",
            "a step takes {median:.2f} of the time (quartiles {low:.2f} to {high:.2f})".format(
                **half
            ),
        ):
            assert sentence in PAGES
