"""Tables over runs: mean ± deviation, the deep ensemble, paired differences, costs."""

import math
import shutil
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from references import is_holm, scored

import mixshare
from mixshare import figures, metrics, runs
from mixshare.chapters import grids, results
from mixshare.checks import FileProblem
from mixshare.files import outputs_folder


@pytest.fixture(scope="module")
def smoke_runs(finished):
    return [finished(method, seed) for seed in (1, 2, 3) for method in ("single", "mimo")]


def table_of(**accuracies) -> pd.DataFrame:
    """Make rows as `per_run` does: accuracies by method and seed, all other figures a half."""
    rows = [
        {"method": method, "seed": str(seed), "accuracy_ensemble": value}
        for method, values in accuracies.items()
        for seed, value in values.items()
    ]
    others = [name for name in results.FIGURES if name != "accuracy_ensemble"]
    return pd.DataFrame(rows).assign(**dict.fromkeys(others, 0.5))


def test_a_row_of_the_table_is_the_mean_and_the_sample_deviation_over_seeds(smoke_runs):
    row = results.summary(results.per_run(smoke_runs)).loc["mimo"]
    mimo = [run for run in smoke_runs if run.config.method == "mimo"]
    accuracies = [run.metrics["accuracy_ensemble"] for run in mimo]
    assert row["n"] == 3
    assert row["accuracy_ensemble_mean"] == pytest.approx(np.mean(accuracies))
    assert row["accuracy_ensemble_std"] == pytest.approx(np.std(accuracies, ddof=1))


def test_a_figure_that_one_run_does_not_have_is_a_dash_not_a_mean_of_the_others():
    rows = table_of(mimo={1: 0.5, 2: 0.7})
    rows.loc[0, "diversity"] = np.nan
    texts = results.formatted(results.summary(rows), ["accuracy_ensemble", "diversity"])
    assert texts.loc["mimo", "diversity"] == "–"
    assert texts.loc["mimo", "ensemble accuracy, %"] == "60.00\u00a0±\u00a014.14"


def test_one_run_has_no_deviation():
    table = results.summary(table_of(mimo={1: 0.5}))
    texts = results.formatted(table, ["accuracy_ensemble"])
    assert texts.loc["mimo", "ensemble accuracy, %"] == "50.00"


@pytest.mark.parametrize("networks", [3, 4, 6])
def test_pairs_that_are_means_of_two_networks_deviate_as_the_networks_do(networks):
    """Pairs share networks: their own sample deviation would be smaller."""
    values = dict(enumerate(np.random.default_rng(networks).normal(0.9, 0.02, networks), start=1))
    pairs = {f"{a}+{b}": (values[a] + values[b]) / 2 for a, b in combinations(values, 2)}
    row = results.summary(table_of(pairs=pairs)).loc["pairs"]
    assert row["accuracy_ensemble_mean"] == pytest.approx(np.mean(list(values.values())))
    wanted = np.std(list(values.values()), ddof=1)
    assert row["accuracy_ensemble_std"] == pytest.approx(wanted)
    assert np.std(list(pairs.values()), ddof=1) < wanted


def test_the_deep_ensemble_averages_the_logits_of_every_pair_of_single_networks(smoke_runs):
    rows = results.deep_ensembles(smoke_runs)
    first, _, third = [run for run in smoke_runs if run.config.method == "single"]
    assert list(rows["seed"]) == ["1+2", "1+3", "2+3"]
    mean = (first.logits.double() + third.logits.double())[0] / 2
    accuracy = (mean.argmax(dim=1) == first.labels).double().mean().item()
    assert rows.loc[1, "accuracy_ensemble"] == accuracy
    nll = torch.nn.functional.cross_entropy(mean, first.labels).item()
    assert rows.loc[1, "nll"] == pytest.approx(nll)


def test_a_deep_ensemble_is_had_from_weights_too_and_not_without_both(copied):
    pair = [copied("single", 1), copied("single", 2)]
    from_logits = results.deep_ensembles(pair)
    assert len(from_logits) == 1
    (pair[1].folder / "test_logits.npz").unlink()
    pd.testing.assert_frame_equal(results.deep_ensembles(pair), from_logits, rtol=1e-3)
    (pair[1].folder / "weights.safetensors").unlink()
    assert results.deep_ensembles(pair).empty


def test_without_single_networks_there_is_no_deep_ensemble(smoke_runs):
    assert results.deep_ensembles([run for run in smoke_runs if run.config.method == "mimo"]).empty


def random_runs(methods=("single", "mimo", "mixshare"), seeds=(1, 2, 3), images=300):
    """Return runs of some scores; MixShare is right more often."""
    random, made = np.random.default_rng(0), []
    for method in methods:
        for seed in seeds:
            right = random.random(images) < (0.9 if method == "mixshare" else 0.6)
            made.append(scored(method, seed, right, random.exponential(1, images)))
    return made


class TestPairedDifferences:
    def test_have_a_row_a_comparison_and_figure_with_scipys_interval_over_seeds(self):
        runs = random_runs()
        table = results.paired(runs, "mixshare")
        pairs = [(row.method, row.other, row.figure) for row in table.itertuples()]
        assert pairs == [
            ("mixshare", other, figure)
            for figure in ("accuracy_ensemble", "nll")
            for other in ("single", "mimo")
        ]
        for row in table.itertuples():
            name = {"accuracy_ensemble": "right", "nll": "nll"}[row.figure]
            a, b = (
                [run.scores[name][0].mean(dtype=float) for run in runs if run.config.name == each]
                for each in ("mixshare", row.other)
            )
            ends = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
            assert (row.seeds_low, row.seeds_high) == pytest.approx(tuple(ends))
            assert row.difference == pytest.approx(np.mean(a) - np.mean(b))
            assert row.images_low < row.difference < row.images_high
        assert set(table.loc[table["figure"] == "accuracy_ensemble", "verdict"]) == {"higher"}

    def test_of_finished_runs_are_those_of_their_metrics(self, smoke_runs):
        for row in results.paired(smoke_runs, "mimo").itertuples():
            values = {
                method: [run.metrics[row.figure] for run in smoke_runs if run.config.name == method]
                for method in ("mimo", "single")
            }
            wanted = np.mean(values["mimo"]) - np.mean(values["single"])
            assert row.difference == pytest.approx(wanted, abs=1e-3)  # NLL is kept in float16

    def test_are_adjusted_by_holm_over_the_comparisons_of_a_figure(self):
        runs = random_runs(("single", "mimo", "linear_mixmo", "cut_mixmo", "mixshare"))
        table = results.paired(runs, "mixshare")
        for _, rows in table.groupby("figure"):
            assert len(rows) == 4 and is_holm(rows["holm"], rows["p"])
        assert not is_holm(table["holm"], table["p"])

    def test_are_of_common_seeds_and_one_gives_no_verdict(self):
        runs = random_runs(("single",), (1, 2)) + random_runs(("mixshare",), (2, 3))
        for row in results.paired(runs, "mixshare").itertuples():
            assert row.seeds == "1 of 1" and row.verdict == "not significant"
            assert (
                math.isnan(row.seeds_low) and math.isnan(row.p) and row.images_low < row.images_high
            )

    def test_of_none_is_a_table_with_the_same_columns(self):
        apart = random_runs(("single",), (1, 2)) + random_runs(("mixshare",), (3, 4))
        columns = list(results.paired(random_runs(), "mixshare").columns)
        assert columns[:4] == ["method", "other", "figure", "difference"]
        for each in (apart, random_runs(("mixshare",)), random_runs(("mimo", "single")), []):
            table = results.paired(each, "mixshare")
            assert table.empty and list(table.columns) == columns

    def test_leave_out_runs_whose_scores_are_not_published(self, copied):
        runs = [copied(method, seed) for method in ("single", "mimo") for seed in (1, 2)]
        (runs[0].folder / "test_scores.npz").unlink()  # the logits are enough
        assert results.paired(runs, "mimo")["seeds"].str.endswith("of 2").all()
        (runs[0].folder / "test_logits.npz").unlink()
        assert results.paired(runs, "mimo")["seeds"].str.endswith("of 1").all()

    def test_are_with_the_method_at_the_same_overrides_where_there_is_one(self):
        right, nll = [True, False], [0.5, 1.0]
        names = [("mimo", {}), ("mixshare", {}), ("mimo", {"width": 2.0}), ("mimo", {"width": 4.0})]
        runs = [scored(method, 1, right, nll, **overrides) for method, overrides in names]
        runs.append(scored("mixshare", 1, right, nll, width=2.0))
        table = results.paired(runs, "mixshare").query("figure == 'nll'")
        assert dict(zip(table["other"], table["method"], strict=True)) == {
            "mimo": "mixshare",
            "mimo+width=2": "mixshare+width=2",
            "mimo+width=4": "mixshare",
            "mixshare+width=2": "mixshare",
        }

    def test_that_survive_the_seeds_but_not_the_images_are_not_called_differences(self):
        """MIMO against MixShare on the digits: of few images that differ, some count for much."""
        random, runs = np.random.default_rng(0), []
        hard = np.where(np.arange(500) < 20, random.normal(0.6, 2.0, 500), 0.0)
        for seed in (1, 2, 3):
            base = random.uniform(2, 3, 500)
            runs.append(scored("mixshare", seed, base > 0, base))
            worse = base + hard + random.normal(0, 0.02, 500)
            runs.append(scored("mimo", seed, base > 0, worse))
        (row,) = results.paired(runs, "mimo", ["nll"]).itertuples()
        assert row.seeds == "3 of 3" and row.seeds_low > 0 and row.differing > 100
        assert row.images_low < 0 < row.images_high
        assert row.raw == row.verdict == "not significant"


def test_paired_holms_correction_is_over_the_comparisons_with_one_run():
    random = np.random.default_rng(0)
    runs = [
        scored(
            method, seed, random.random(200) < 0.5 + 0.1 * width, random.random(200), width=width
        )
        for method in ("single", "mimo", "mixshare")
        for width in (1.0, 2.0)
        for seed in (1, 2)
    ]
    table = results.paired(runs, "mixshare")
    sizes = table.groupby(["figure", "method"]).size().to_dict()
    names = product(("accuracy_ensemble", "nll"), ("mixshare", "mixshare+width=2"))
    # At width 1 the two others, and MixShare's own width 2; at width 2 the two others.
    assert sizes == dict(zip(names, (3, 2, 3, 2), strict=True))
    for _, family in table.groupby(["figure", "method"]):
        assert is_holm(family["holm"], family["p"])


def test_settings_change_each_method_and_the_lead_over_each_other():
    right = [True, False]
    nll = {("single", 1.0): [0.5, 1.0], ("mixshare", 1.0): [0.4, 0.7]}
    nll |= {("single", 2.0): [0.3, 0.6], ("mixshare", 2.0): [0.1, 0.9], ("mimo", 4.0): [1.0, 2.0]}
    runs = [
        scored(method, seed, right, np.array(values) + seed, width=width)
        for (method, width), values in nll.items()
        for seed in (1, 2)
    ]
    table = (
        results.settings(runs, "mixshare").query("figure == 'nll'").set_index(["method", "other"])
    )
    lead = "lead of MixShare over Single network"
    assert table["difference"].to_dict() == pytest.approx(
        {
            ("single+width=2", "single"): 0.45 - 0.75,
            ("mixshare+width=2", "mixshare"): 0.5 - 0.55,
            (f"{lead}+width=2", lead): (0.5 - 0.45) - (0.55 - 0.75),
        },
        abs=1e-3,  # NLL is kept in float16
    )
    assert set(table["seeds"]) == {"2 of 2"} and table["holm"].notna().all()
    assert figures.title(f"{lead}+width=2") == f"{lead} with width 2"
    plain = [run for run in runs if run.config.width == 1]
    assert results.settings(plain, "mixshare").empty


def test_costs_are_counted_and_the_deep_ensemble_pays_for_each_network(smoke_runs):
    table = results.costs(smoke_runs, repeats=3)
    model = mixshare.MimoWideResNet(depth=10, width=1, members=2, classes=10, channels=1)
    assert table.loc["mimo", "parameters"] == sum(p.numel() for p in model.parameters())
    assert table.loc["mimo", "multiply_adds"] == slow_multiply_adds(model, 16)
    assert table.loc["mimo", "training_rows"] == 9 * 64 * 2
    assert table.loc["single", "training_rows"] == 4 * 64 * 2
    for column in ("parameters", "multiply_adds", "training_rows", "latency_ms"):
        assert table.loc["deep ensemble of 2", column] == 2 * table.loc["single", column] > 0


def test_folded_a_network_costs_what_a_single_one_does_and_a_deep_ensemble_can_not_be(smoke_runs):
    table = results.costs(smoke_runs, repeats=1)
    plain = mixshare.MimoWideResNet(depth=10, width=1, members=1, classes=10, channels=1)
    for method in ("single", "mimo"):
        assert table.loc[method, "folded_parameters"] == sum(p.numel() for p in plain.parameters())
        assert table.loc[method, "folded_multiply_adds"] == slow_multiply_adds(plain, 16)
        assert table.loc[method, "folded_latency_ms"] > 0
    ensemble = table.loc["deep ensemble of 2"]
    assert ensemble.filter(like="folded").isna().all() and ensemble.filter(like="folded").size == 3
    text = results.formatted(results.summary(results.per_run(smoke_runs)).join(table))
    assert (
        text.loc["mimo", "folded: parameters"] == f"{table.loc['mimo', 'folded_parameters']:,.0f}"
    )


def test_every_network_of_a_deep_ensemble_has_the_learning_rate_of_one(smoke_runs):
    rates = results.costs(smoke_runs, repeats=1)["learning_rate"]
    assert rates.to_dict() == {"single": 0.1, "mimo": 0.1, "deep ensemble of 2": 0.1}


def slow_multiply_adds(model, size: int) -> int:
    """Add up, from hooks, each layer's weights times the positions where they are applied."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        convolution = isinstance(module, torch.nn.Conv2d)
        positions = output.shape[2] * output.shape[3] if convolution else 1
        total += module.weight.numel() * positions

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    model.eval()(torch.zeros(model.members, 1, model.encoders[0].in_channels, size, size))
    return total


def test_the_paper_networks_multiply_adds_are_243_million():
    model = mixshare.MimoWideResNet()
    assert slow_multiply_adds(model, 32) == pytest.approx(243e6, rel=0.005)


class TestTheControlOfEqualRows:
    """Single networks that train on as many rows as the methods of two inputs."""

    def test_is_one_run_a_seed(self):
        for profile in ("smoke", "digits"):
            controls = grids.select("", profile, ["single"], [1, 2, 3], "single").controls
            named = [(config.name, config.seed, config.learning_rate) for config in controls]
            assert named == [("single+batch_repetition=2", seed, 0.1) for seed in (1, 2, 3)]

    def test_has_half_the_rate_where_that_is_appendix_as(self):
        """0.1 / b · batch / 128, of batches of 64."""
        for profile in ("photographs", "paper"):
            repeated = grids.select("", profile, ["single"], [4, 5], "single").controls
            assert [(each.seed, each.learning_rate) for each in repeated] == [
                (4, 0.025),
                (5, 0.025),
            ]

    def test_sees_as_many_rows_as_mimo_of_the_same_profile(self, finished):
        made = [finished("single", 1, batch_repetition=2), finished("mimo", 1)]
        rows = results.costs(made, repeats=1)["training_rows"]
        assert rows["single+batch_repetition=2"] == rows["mimo"] > 0

    def test_joins_the_default_batch_if_there_is_a_single_network(self):
        def controls(methods):
            return grids.select("", "photographs", methods, [1, 2], "mixshare").controls

        assert [config.name for config in controls(["single", "mixshare"])] == [
            "single+batch_repetition=2",
            "single+batch_repetition=2",
        ]
        assert not controls(["mimo", "mixshare"])
        study = grids.select("", "digits", ["single", "mixshare"], [1, 2], "mixshare")
        assert len(study.configs) == 2 * 2 + 2 and study.configs[-1] == study.controls[-1]
        assert not study.varied


def test_runs_that_are_missing_are_named(finished, copied):
    copied("mimo", 1)
    wanted = [mixshare.RunConfig.preset("smoke", method, 1) for method in ("mimo", "mixshare")]
    collected, missing = results.collect(wanted, outputs_folder())
    assert [run.config.method for run in collected] == ["mimo"]
    assert missing == ["mixshare seed 1: not trained"]


def test_available_are_the_readers_own_runs_then_the_published_ones_and_no_others(
    copied, tmp_path, monkeypatch
):
    own, other = copied("mimo", 1), copied("mimo", 2)
    published = tmp_path / "published"
    for run in (own, other):
        shutil.copytree(run.folder, runs.run_folder(run.config, published))
    shutil.rmtree(other.folder)
    monkeypatch.setattr(results, "published_folder", lambda: published)
    missing = mixshare.RunConfig.preset("smoke", "mixshare", 1)
    found = results.available([other.config, missing, own.config])
    assert [run.config for run in found] == [other.config, own.config]
    assert [run.folder.is_relative_to(published) for run in found] == [True, False]


def test_available_are_trained_where_that_is_asked_for(outputs):
    wanted = [mixshare.RunConfig.preset("smoke", "single", 1, epochs=1)]
    with pytest.raises(FileProblem, match="none of 1 runs is finished, such as single.epochs=1"):
        results.available(wanted)
    assert [run.config for run in results.available(wanted, train_missing=True)] == wanted
    assert [run.folder for run in results.available(wanted)] == [runs.run_folder(wanted[0])]


def test_a_damaged_run_is_named_with_its_reason(copied):
    run = copied("mimo", 1)
    (run.folder / "metrics.json").write_text('{"accuracy_ens')
    _, (reason,) = results.collect([run.config], outputs_folder())
    assert "metrics.json is damaged" in reason and "\n" not in reason


def test_a_table_survives_being_written(tmp_path, smoke_runs):
    table = results.summary(results.per_run(smoke_runs))
    results.save_table(table, tmp_path / "results.csv")
    pd.testing.assert_frame_equal(results.read_summary(tmp_path / "results.csv"), table)


class TestTheMarkdownTable:
    @pytest.fixture
    def folder(self, tmp_path, smoke_runs):
        """Folder of a profile in which chapter 05 has saved its results, and those of a grid."""
        runs = results.per_run(smoke_runs)
        table = results.summary(runs).join(results.costs(smoke_runs, repeats=1))
        results.save_table(table, tmp_path / "studies" / "results.csv")
        grid = table.rename(index={"mimo": "mimo+width=2"})
        results.save_table(grid, tmp_path / "studies" / "wide" / "results.csv")
        return tmp_path

    def test_has_a_row_a_method_and_the_columns_of_the_readme(self, folder):
        heading, rule, single, mimo = results.results_table(folder).splitlines()
        names = [results.COLUMNS[name][0] for name in results.TABLE_COLUMNS]
        assert heading == f"| method | {' | '.join(names)} | n |"
        assert rule == "|---" + "|---:" * (len(names) + 1) + "|"
        assert single.startswith("| Single network | ") and mimo.startswith("| MIMO | ")
        table = results.read_summary(folder / "studies" / "results.csv")
        assert f" {table.loc['mimo', 'multiply_adds']:,.0f} " in mimo and mimo.endswith(" 3 |")

    def test_of_a_grid_is_the_grids_own(self, folder):
        *_, row = results.results_table(folder, "wide").splitlines()
        assert row.startswith("| MIMO with width 2 | ")

    def test_that_was_not_saved_is_missed_in_a_line(self, tmp_path, in_a_line):
        with pytest.raises(OSError) as caught:
            results.results_table(tmp_path)
        assert "results.csv" in in_a_line(caught.value)


def test_the_ensembles_figures_come_from_the_saved_logits(smoke_runs):
    for run in smoke_runs:
        again = metrics.evaluate(run.logits, run.labels)
        assert {name: run.metrics[name] for name in again} == again
