"""What the project publishes: whole, computed from what lies beside it, naming nobody's machine, and shown in the README."""

import dataclasses
import json
import re

import pandas as pd
import pytest
import torch

import mixshare
from mixshare import grids, metrics, publish, results, runs, targets, verify
from mixshare.data import KNOWN_DIGESTS, load_data
from mixshare.errors import FileProblem
from mixshare.files import project_root, published_folder
from mixshare.training import test_logits as logits_of

DIGITS = [
    mixshare.RunConfig.preset("digits", method, seed)
    for method in targets.DEFAULT_METHODS
    for seed in targets.DEFAULT_SEEDS
]


@pytest.fixture
def published(outputs):
    """`published(config)`: loaded from what is published, since this test's outputs folder is empty."""
    return mixshare.load


@pytest.mark.parametrize("config", DIGITS, ids=lambda c: f"{c.name}-{c.seed}")
class TestEachPublishedRun:
    def test_is_of_the_present_configuration_and_data(self, published, config):
        provenance = published(config).metrics["provenance"]
        assert (
            provenance["config_digest"] == config.digest
            and provenance["data_digest"] == load_data("digits").digest
        )
        assert provenance["git_clean"] and re.fullmatch("[0-9a-f]{40}", provenance["git_commit"])

    def test_has_figures_that_follow_from_its_logits(self, published, config):
        run = published(config)
        again = metrics.evaluate(run.logits, run.labels)
        assert {name: run.metrics[name] for name in again} == again
        assert (
            run.history["test_accuracy_ensemble"].iloc[-1] == run.metrics["accuracy_ensemble"]
            and len(run.history) == config.epochs
        )

    def test_has_logits_that_follow_from_its_weights(self, published, config):
        run = published(config)
        logits = logits_of(run.model, load_data("digits"))
        assert (
            logits.float() - run.logits.float()
        ).abs().max() < 0.05  # another machine rounds otherwise
        assert (logits.mean(0).argmax(1) == run.logits.mean(0).argmax(1)).float().mean() > 0.99

    def test_has_its_chapter_beside_it(self, published, config):
        chapter = json.loads((published(config).folder / "01_training.ipynb").read_text())
        assert chapter["metadata"]["papermill"]["parameters"] == {
            "profile": "digits",
            "method": config.method,
            "seed": config.seed,
            "overrides": {},
        }


DECLARED = [
    grids.read(file)
    for file in sorted((project_root() / "workflow" / "grids").glob("*.yml"))
    if file.stem != "smoke"
]
GRIDS = [
    *DECLARED,
    grids.chosen("", "cifar100-lite", list(targets.DEFAULT_METHODS), [1, 2, 3], "mixshare"),
]


@pytest.mark.parametrize("config", GRIDS[-1].configs, ids=lambda c: f"{c.name}-{c.seed}")
def test_each_published_run_on_real_photographs_is_whole_but_for_its_answers_which_are_too_large_for_git(
    config,
):
    run = runs.Run(config, runs.run_folder(config, published_folder()))
    provenance = run.metrics["provenance"]
    assert (
        provenance["config_digest"] == config.digest
        and provenance["data_digest"] == KNOWN_DIGESTS["cifar100"]
    )
    assert (
        provenance["git_clean"]
        and provenance["train_images"] == 50_000
        and len(run.history) == config.epochs
    )
    assert run.model.encoders[0].weight.isfinite().all() and not run.has_logits
    assert run.history["test_accuracy_ensemble"].iloc[-1] == run.metrics["accuracy_ensemble"]


@pytest.mark.cifar100
@pytest.mark.parametrize("method", targets.DEFAULT_METHODS)
def test_the_figures_published_of_a_run_on_real_photographs_follow_from_its_weights(method):
    config = mixshare.RunConfig.preset("cifar100-lite", method, 1)
    run, data = runs.Run(config, runs.run_folder(config, published_folder())), load_data("cifar100")
    found = metrics.evaluate(
        logits_of(run.model.to(memory_format=torch.channels_last), data), data.test_labels
    )
    for name in ("accuracy_ensemble", "accuracy_members", "nll", "ece"):
        assert found[name] == pytest.approx(run.metrics[name], abs=verify.EVALUATED)


def test_on_real_photographs_mixshare_shares_and_the_others_separate_after_every_block_as_the_readme_says():
    table = pd.read_csv(published_folder() / "cifar100-lite" / "studies" / "sharing.csv")
    assert table.groupby("method")["verdict"].agg(list).to_dict() == {
        "mimo": ["separated"] * 9,
        "cut_mixmo": ["separated"] * 9,
        "mixshare": ["shared"] * 9,
    }
    means = table.groupby(["method", "block"])["overlap"].mean()
    numbers = (
        ", ".join(f"{value:.2f}" for value in means[method])
        for method in ("mimo", "cut_mixmo", "mixshare")
    )
    assert "(mean overlap after block 1, 2, 3: {} and {} against {};".format(*numbers) in README


def test_the_members_of_every_published_run_solve_the_digits():
    """The method works: no member at chance, the ensembles near 99 % (a bound far below what any seed reached)."""
    for config in DIGITS:
        run = runs.Run(config, runs.run_folder(config, published_folder()))
        assert (
            min(run.metrics["accuracy_members"]) > 0.95 and run.metrics["accuracy_ensemble"] > 0.97
        )


def test_no_published_file_names_this_machine_its_folders_or_its_user():
    for path in published_folder().rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in publish.private_words() if word.encode() in content], path
            assert not re.search(rb"/(home|root|Users|tmp)/\w", content), path


@pytest.mark.parametrize(
    "folder", sorted(published_folder().iterdir()), ids=lambda folder: folder.name
)
def test_a_published_profile_stays_under_20_megabytes(folder):
    assert (
        0
        < sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        < publish.MOST_BYTES
    )


def test_the_published_tables_follow_from_the_published_runs(outputs):
    found = results.collect(DIGITS, published_folder())
    assert not found.missing
    by_seed = sorted(
        found.runs,
        key=lambda run: (run.config.seed, targets.DEFAULT_METHODS.index(run.config.method)),
    )
    rows = pd.concat([results.per_run(by_seed), results.deep_ensembles(by_seed)], ignore_index=True)
    kept = results.read_summary(published_folder() / "digits" / "studies" / "results.csv")
    fresh = results.summary(rows).join(results.costs(by_seed, repeats=1))
    same = [name for name in fresh.columns if name != "latency_ms"]
    pd.testing.assert_frame_equal(kept[same], fresh[same], check_dtype=False)
    pd.testing.assert_frame_equal(
        pd.read_csv(published_folder() / "digits" / "studies" / "paired.csv"),
        results.paired(rows, "mixshare"),
        check_dtype=False,
    )


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name or grid.profile)
def test_the_tables_of_a_published_grid_follow_from_the_published_runs(grid, outputs):
    found = results.collect(grid.configs, published_folder())
    assert not found.missing
    rows, place = (
        results.per_run(found.runs),
        published_folder() / grid.profile / "studies" / grid.name,
    )
    kept = results.read_summary(place / "results.csv")
    fresh = results.summary(rows)
    pd.testing.assert_frame_equal(kept.loc[fresh.index, fresh.columns], fresh, check_dtype=False)
    pairs, again = pd.read_csv(place / "paired.csv"), results.paired(rows, grid.baseline)
    assert bool(len(again)) == (len(grid.seeds) > 1) and len(
        pairs[pairs["other"].isin(again["other"])]
    ) == len(again)
    pd.testing.assert_frame_equal(
        pairs[pairs["other"].isin(again["other"])].reset_index(drop=True), again, check_dtype=False
    )


def test_the_readme_says_of_photographs_what_the_published_pairs_say():
    pairs = pd.read_csv(published_folder() / "cifar100-lite" / "studies" / "paired.csv").set_index(
        "other"
    )
    assert set(pairs["method"]) == {"mixshare"} and set(pairs["n"]) == {3}
    cut, mimo, single = (
        100 * pairs.loc[other, ["difference", "low", "high"]]
        for other in ("cut_mixmo", "mimo", "single")
    )
    assert (
        "is {:.2f} percentage points above Cut-MixMo's (95 % t interval {:.2f} to {:.2f})".format(
            *cut
        )
        in README
    )
    assert (
        "and {:.2f} above MIMO's ({:.2f} to {:.2f}). It".format(*mimo) in README and mimo["low"] > 0
    )
    assert (
        "can't be told from a single network's ({:+.2f}, {:+.2f} to {:+.2f})".format(*single)
        in README
    )
    assert single["low"] < 0 < single["high"] and "though it is below it in each seed" in README
    runs_of = pd.read_csv(published_folder() / "cifar100-lite" / "studies" / "runs.csv").pivot(
        index="seed", columns="method", values="accuracy_ensemble"
    )
    assert (runs_of["mixshare"] < runs_of["single"]).loc[["1", "2", "3"]].all()
    means = results.read_summary(published_folder() / "cifar100-lite" / "studies" / "results.csv")[
        "accuracy_ensemble_mean"
    ]
    assert (
        means.idxmax() == "deep ensemble of 2"
        and "which together see as many rows as MixShare, have the highest mean" in README
    )


def test_the_readme_says_of_photographs_at_two_widths_what_the_published_runs_say():
    rows = pd.read_csv(
        published_folder() / "cifar100-lite" / "studies" / "photographs-width" / "runs.csv"
    )
    assert set(rows["seed"]) == {1} and "seed 1 alone, so without an interval" in README
    wide = 100 * rows.set_index("method")["accuracy_ensemble"]
    apart = [wide[f"mixshare{name}"] - wide[f"cut_mixmo{name}"] for name in ("+width=2", "")]
    said = "MixShare has {:.2f} % and Cut-MixMo {:.2f} %: {:.2f} percentage points apart ({:.2f} at width 1)."
    assert said.format(wide["mixshare+width=2"], wide["cut_mixmo+width=2"], *apart) in README


def test_the_readme_says_of_widths_what_the_published_runs_say():
    rows = pd.read_csv(
        published_folder() / "digits" / "studies" / "width" / "runs.csv", dtype={"seed": str}
    )
    accuracy, nll = (
        results.paired(rows, "mixshare", figure) for figure in ("accuracy_ensemble", "nll")
    )
    assert ((accuracy["low"] < 0) & (accuracy["high"] > 0)).all()
    found = nll.set_index("other")
    for name in ("", "+width=2", "+width=4"):
        pair, single = found.loc[f"cut_mixmo{name}"], found.loc[f"single{name}"]
        numbers = f"{-pair['difference']:.3f}", f"{-pair['high']:.3f} to {-pair['low']:.3f}"
        assert (
            all(number in README for number in numbers)
            and pair["high"] < 0
            and single["low"] < 0 < single["high"]
        )
    wide = rows.pivot(index="seed", columns="method", values="nll").loc[
        ["1", "2", "3"]
    ]  # without the pairs of the deep ensemble
    shrinks, low, high = results.interval(
        (wide["mixshare+width=4"] - wide["cut_mixmo+width=4"])
        - (wide["mixshare"] - wide["cut_mixmo"])
    )
    assert (
        f"from width 1 to 4 the lead shrinks by {shrinks:.3f} ({low:.3f} to {high:.3f})" in README
    )
    leads = (
        (wide[f"cut_mixmo{name}"] - wide[f"single{name}"]).mean()
        for name in ("", "+width=2", "+width=4")
    )
    assert f"shares nothing with anybody ({', '.join(f'{lead:.3f}' for lead in leads)})" in README


def test_the_readme_says_of_the_digits_what_the_published_runs_say():
    tables = published_folder() / "digits" / "studies"
    rows = pd.read_csv(tables / "runs.csv", dtype={"seed": str})
    assert ((found := results.paired(rows, "mixshare"))["low"] < 0).all() and (
        found["high"] > 0
    ).all()
    nll = results.paired(rows, "mixshare", "nll").set_index("other")
    for name, told in {
        "cut_mixmo": "ahead of Cut-MixMo (by {} nats, {} to {})",
        "mimo": "of MIMO (by {}, {} to {})",
    }.items():
        assert (
            told.format(*(f"{-nll.loc[name, end]:.3f}" for end in ("difference", "high", "low")))
            in README
        )
    assert (
        nll.loc["single", "low"] < 0 < nll.loc["single", "high"]
        and "and can't be told from the single network" in README
    )
    assert (
        rows.loc[rows["method"] == "mixshare", "agreement"] == 1
    ).all() and "two members give one label to every test image" in README
    tied = (
        pd.read_csv(tables / "adjustments.csv")
        .set_index("change")
        .loc["control: one network, same cutmix and pooling"]
    )
    assert tied["low"] <= 0 <= tied["high"] and tied["nll_low"] <= 0 <= tied["nll_high"]
    assert "one network trained with its CutMix and unmixing does as well" in README


def test_the_readme_says_of_photographs_how_often_the_members_agree():
    rows = pd.read_csv(published_folder() / "cifar100-lite" / "studies" / "runs.csv").set_index(
        "method"
    )
    ends = (
        rows.loc[name, "agreement"].agg(["min", "max"])
        for name in ("mixshare", "cut_mixmo", "mimo")
    )
    told = "give one label to {} of the test images (Cut-MixMo's to {}, MIMO's to {})"
    assert told.format(*(f"{100 * low:.0f} to {100 * high:.0f} %" for low, high in ends)) in README


def test_the_readme_says_of_speed_what_the_published_chapter_measured():
    found = json.loads((published_folder() / "digits" / "studies" / "speed.json").read_text())
    assert (
        f"has {found['rows_per_second']:.0f} rows a second of MixShare through the paper's WRN-28-2 in float32, the default"
        in README
    )
    (low, high), half = found["ratio_to_peer_quartiles"], found["switches"]["bfloat16 / float32"]
    assert (
        "a step takes {median:.2f} of the time (quartiles {low:.2f} to {high:.2f})".format(**half)
        in README
    )
    assert (
        f"A step of MIMO there is {found['ratio_to_peer']:.2f} times (quartiles {low:.2f} to {high:.2f}) as fast"
        in README
    )
    assert (
        "{median:.2f} times ({low:.2f} to {high:.2f}) with both in half precision".format(
            **found["ratio_to_peer_bfloat16"]
        )
        in README
    )


@pytest.mark.parametrize(
    "path",
    sorted(published_folder().glob("*/chapters/05_results*.ipynb")),
    ids=lambda path: path.stem,
)
def test_a_published_chapter_shows_no_older_published_runs(path):
    (there, equal), *more = re.findall(
        r"published runs: (\d+) of \d+; with a history equal to yours, to the bit: (\d+)",
        path.read_text(),
    )
    assert there == equal and not more


def test_the_readme_says_of_half_precision_what_the_published_runs_say():
    rows = pd.read_csv(
        published_folder() / "digits" / "studies" / "precision" / "runs.csv", dtype={"seed": str}
    ).set_index(["method", "seed"])
    for method in ("single", "cut_mixmo", "mixshare"):
        for figure in ("accuracy_ensemble", "nll"):
            _, low, high = results.interval(
                rows.loc[f"{method}+precision=bfloat16", figure] - rows.loc[method, figure]
            )
            assert low <= 0 <= high
    assert (
        "can't tell half precision from float32, neither by accuracy nor by NLL of `single`, `cut_mixmo` or `mixshare`"
        in README
    )
    worse = rows.loc["mixshare+precision=bfloat16", "nll"] - rows.loc["mixshare", "nll"]
    assert (
        worse.min() > 0
        and f"though MixShare's NLL was {worse.min():.3f} to {worse.max():.3f} nats higher in each"
        in README
    )


README = (project_root() / "README.md").read_text()
MARKED = re.findall(re.escape(publish.MARKS[0]).replace(r"\{\}", "([^ ]+)"), README)


@pytest.mark.parametrize("name", MARKED)
def test_the_readme_shows_the_published_table(name):
    profile, _, grid = name.partition("/")
    shown = README.split(publish.MARKS[0].format(name) + "\n")[1].split(publish.MARKS[1])[0]
    assert (
        shown == publish.readme_table(profile, published_folder() / profile, grid)
        and shown.count("\n") >= 4
    )


def test_the_readme_shows_a_table_of_every_published_profile():
    assert {name.partition("/")[0] for name in MARKED} == {
        folder.name for folder in published_folder().iterdir()
    }


def test_a_table_goes_between_its_marks_and_nothing_else_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "project_root", lambda: tmp_path)
    monkeypatch.setattr(
        publish, "readme_table", lambda profile, folder, grid: f"| {profile} \\1 {grid}|\n"
    )
    first, second, end = (
        publish.MARKS[0].format("digits"),
        publish.MARKS[0].format("digits/width"),
        publish.MARKS[1],
    )
    (tmp_path / "README.md").write_text(f"a\n{first}\nold\n{end}\nb\n{second}\nx\n{end}\n")
    publish.write_readme_tables()
    wanted = f"a\n{first}\n| digits \\1 |\n{end}\nb\n{second}\n| digits \\1 width|\n{end}\n"
    assert (tmp_path / "README.md").read_text() == wanted
    (tmp_path / "README.md").write_text("a\n")
    with pytest.raises(FileProblem, match="has lost the marks"):
        publish.write_readme_tables()


class TestPublishing:
    @pytest.fixture
    def ready(self, committed, outputs, tmp_path, monkeypatch):
        """A batch of one run that is ready to be published, into this test's own folder, with a README of its own."""
        source = committed("single", 1)
        table = outputs / "smoke" / "studies" / "results.csv"
        table.parent.mkdir()
        table.write_text("method,n\nsingle,1\n")
        target = dataclasses.replace(targets.training(source.config), writes=(table,))
        monkeypatch.setattr(publish, "batch", lambda *selection: [target])
        monkeypatch.setattr(targets.Target, "is_done", lambda self: True)
        monkeypatch.setattr(publish, "published_folder", lambda: tmp_path / "published")
        monkeypatch.setattr(publish, "write_readme_tables", lambda: None)
        return source.folder

    def test_copies_what_lasts_and_no_checkpoint(self, ready, tmp_path):
        (ready / "checkpoint.pt").write_bytes(b"1")
        publish.publish("smoke")
        names = {
            path.name for path in (tmp_path / "published" / "smoke").rglob("*") if path.is_file()
        }
        assert names == {*runs.RUN_FILES, "01_training.ipynb", "results.csv"}

    def test_replaces_what_was_published_before(self, ready, tmp_path):
        old = tmp_path / "published" / "smoke" / "old.txt"
        old.parent.mkdir(parents=True)
        old.write_text("")
        publish.publish("smoke")
        assert not old.exists()

    def test_keeps_what_is_published_of_a_grid_that_is_not_done_here(self, ready, tmp_path):
        place = tmp_path / "published" / "smoke"
        grid = [
            place / "single+width=0.5" / "seed-1" / "metrics.json",
            place / "studies" / "smoke" / "runs.csv",
        ]
        gone = [
            place / "single+width=3" / "seed-1" / "metrics.json",
            place / "studies" / "other.csv",
        ]
        for path in [*grid, *gone]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("old")
        publish.publish("smoke")
        assert [path.is_file() for path in [*grid, *gone]] == [True, True, False, False]
        assert (place / "single" / "seed-1" / "metrics.json").read_bytes() == (
            ready / "metrics.json"
        ).read_bytes()

    def test_refuses_a_file_that_names_this_machine(self, ready, tmp_path):
        (ready / "01_training.ipynb").write_text(json.dumps({"path": str(project_root())}))
        with pytest.raises(FileProblem, match="names this machine"):
            publish.publish("smoke")
        assert not (tmp_path / "published").exists()

    def test_refuses_runs_of_uncommitted_code(self, ready, tmp_path):
        path = ready / "metrics.json"
        path.write_text(path.read_text().replace('"git_clean": true', '"git_clean": false'))
        with pytest.raises(FileProblem, match="in no commit"):
            publish.publish("smoke")
        assert not (tmp_path / "published").exists()

    def test_refuses_what_is_not_done(self, ready, monkeypatch):
        monkeypatch.setattr(targets.Target, "is_done", lambda self: False)
        with pytest.raises(FileProblem, match="make reproduce PROFILE=smoke"):
            publish.publish("smoke")

    def test_drops_large_files_where_they_are_too_large_answers_before_weights_and_later_seeds_before_the_first(
        self, ready, committed, tmp_path, monkeypatch
    ):
        batch = [targets.training(committed("single", seed).config) for seed in (2, 3)]
        monkeypatch.setattr(publish, "batch", lambda *selection: batch)
        answers, weights = (
            [(f"seed-{seed}", name) for seed in (2, 3)] for name in runs.LARGE_FILES
        )
        for target in batch:
            (target.output.parent / "test_logits.npz").write_bytes(
                bytes(2 * 10**6)
            )  # far larger than the weights, as on CIFAR-100
        size = sum(
            path.stat().st_size
            for target in batch
            for path in target.output.parent.iterdir()
            if path.name != ".lease"
        )
        steps = {
            0: [*answers, *weights],
            1: [answers[0], *weights],
            2 * 10**6 + 1: weights,
            4 * 10**6 + 1: weights[:1],
        }
        for less, kept in steps.items():
            monkeypatch.setattr(publish, "MOST_BYTES", size - less)
            publish.publish("smoke")
            found = [
                path
                for path in (tmp_path / "published" / "smoke").rglob("*")
                if path.name in runs.LARGE_FILES
            ]
            assert {(path.parent.name, path.name) for path in found} == set(kept)

    def test_refuses_what_is_too_large_for_git(self, ready, monkeypatch):
        monkeypatch.setattr(publish, "MOST_BYTES", 1000)
        with pytest.raises(FileProblem, match="MB to publish"):
            publish.publish("smoke")
