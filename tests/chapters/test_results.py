"""Tables over runs: mean ± deviation, the deep ensemble, paired differences, costs."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import mixshare
from mixshare import metrics
from mixshare.chapters import results
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
    assert texts.loc["mimo", "ensemble accuracy, %"] == "60.00 ± 14.14"


def test_one_run_has_no_deviation():
    table = results.summary(table_of(mimo={1: 0.5}))
    texts = results.formatted(table, ["accuracy_ensemble"])
    assert texts.loc["mimo", "ensemble accuracy, %"] == "50.00"


def test_the_deep_ensemble_averages_the_logits_of_every_pair_of_single_networks(smoke_runs):
    rows = results.deep_ensembles(smoke_runs)
    first, _, third = [run for run in smoke_runs if run.config.method == "single"]
    assert list(rows["seed"]) == ["1+2", "1+3", "2+3"]
    mean = (first.logits.double() + third.logits.double())[0] / 2
    accuracy = (mean.argmax(dim=1) == first.labels).double().mean().item()
    assert rows.loc[1, "accuracy_ensemble"] == accuracy
    nll = torch.nn.functional.cross_entropy(mean, first.labels).item()
    assert rows.loc[1, "nll"] == pytest.approx(nll)


def test_runs_whose_logits_are_not_published_are_in_no_deep_ensemble(copied):
    pair = [copied("single", 1), copied("single", 2)]
    assert len(results.deep_ensembles(pair)) == 1
    (pair[1].folder / "test_logits.npz").unlink()
    assert results.deep_ensembles(pair).empty


def test_without_single_networks_there_is_no_deep_ensemble(smoke_runs):
    assert results.deep_ensembles([run for run in smoke_runs if run.config.method == "mimo"]).empty


def test_paired_differences_have_the_interval_that_scipy_gives():
    single, mimo = {1: 0.50, 2: 0.55, 3: 0.52}, {1: 0.58, 2: 0.57, 3: 0.61}
    (row,) = results.paired(table_of(single=single, mimo=mimo), "mimo").itertuples()
    test = scipy.stats.ttest_rel(list(mimo.values()), list(single.values()))
    interval = test.confidence_interval(0.95)
    assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
    assert (row.method, row.other, row.n) == ("mimo", "single", 3)
    assert row.difference == pytest.approx(0.19 / 3)


def test_only_common_seeds_are_paired_and_one_pair_gives_no_interval():
    assert results.paired(table_of(single={1: 0.5, 2: 0.6}, mimo={2: 0.7, 3: 0.9}), "mimo").empty


def test_a_method_that_is_not_in_the_table_has_no_differences():
    assert results.paired(table_of(mimo={1: 0.5, 2: 0.6}), "mixshare").empty


def test_costs_are_counted_and_the_deep_ensemble_pays_for_each_network(smoke_runs):
    table = results.costs(smoke_runs, repeats=3)
    model = mixshare.MimoWideResNet(depth=10, width=1, members=2, classes=10, channels=1)
    assert table.loc["mimo", "parameters"] == sum(p.numel() for p in model.parameters())
    assert table.loc["mimo", "multiply_adds"] == slow_multiply_adds(model, 16)
    assert table.loc["mimo", "training_rows"] == 9 * 64 * 2
    assert table.loc["single", "training_rows"] == 4 * 64 * 2
    for column in ("parameters", "multiply_adds", "training_rows", "latency_ms"):
        assert table.loc["deep ensemble of 2", column] == 2 * table.loc["single", column] > 0


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
    model.eval()(torch.zeros(2, 1, model.encoders[0].in_channels, size, size))
    return total


def test_the_paper_networks_multiply_adds_are_243_million():
    model = mixshare.MimoWideResNet()
    assert slow_multiply_adds(model, 32) == pytest.approx(243e6, rel=0.005)


def test_runs_that_are_missing_are_named(finished, copied):
    copied("mimo", 1)
    wanted = [mixshare.RunConfig.preset("smoke", method, 1) for method in ("mimo", "mixshare")]
    collection = results.collect(wanted, outputs_folder())
    assert [run.config.method for run in collection.runs] == ["mimo"]
    assert collection.missing == ["mixshare seed 1: not trained"]


def test_a_damaged_run_is_named_with_its_reason(copied):
    run = copied("mimo", 1)
    (run.folder / "metrics.json").write_text('{"accuracy_ens')
    (reason,) = results.collect([run.config], outputs_folder()).missing
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
        names = [results.HEADINGS[name] for name in results.TABLE_COLUMNS]
        assert heading == f"| method | {' | '.join(names)} | n |"
        assert rule == "|---" + "|---:" * (len(names) + 1) + "|"
        assert single.startswith("| Single network | ") and mimo.startswith("| MIMO | ")
        table = results.read_summary(folder / "studies" / "results.csv")
        assert f" {table.loc['mimo', 'multiply_adds']:,.0f} " in mimo and mimo.endswith(" 3 |")

    def test_of_a_grid_is_the_grids_own(self, folder):
        *_, row = results.results_table(folder, "wide").splitlines()
        assert row.startswith("| MIMO, width 2 | ")

    def test_that_was_not_saved_is_missed_in_a_line(self, tmp_path, in_a_line):
        with pytest.raises(OSError) as caught:
            results.results_table(tmp_path)
        assert "results.csv" in in_a_line(caught.value)


def test_the_ensembles_figures_come_from_the_saved_logits(smoke_runs):
    for run in smoke_runs:
        again = metrics.evaluate(run.logits, run.labels)
        assert {name: run.metrics[name] for name in again} == again
