"""What chapters say of their tables: words by sign and interval, tables for people, boxes."""

import numpy as np
import pandas as pd
import pytest

from mixshare.chapters import claims, report, statistics
from mixshare.files import published_folder

INTERVALS = {"seeds_low": -0.01, "seeds_high": 0.03, "images_low": 0.0, "images_high": 0.02}
PAIR = {
    **{"method": "mixshare", "other": "mimo", "figure": "accuracy_ensemble", "difference": 0.01},
    **INTERVALS,
    **{"p": 0.2, "seeds": "2 of 3", "differing": 40, "holm": 0.4, "raw": "x", "verdict": "higher"},
}


def pairs(*changes) -> pd.DataFrame:
    return pd.DataFrame([PAIR | change for change in changes])


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.5, 2, "+0.50"), (-0.5, 2, "−0.50"), (-0.001, 2, "0.00"), (0.0, 1, "0.0"), (-12, 0, "−12")],
)
def test_a_number_has_its_sign_unless_it_rounds_to_zero(value, digits, text):
    assert report.signed(value, digits) == text


def test_words_are_listed_with_an_and():
    assert report.listed(["a"]) == "a"
    assert report.listed(["a", "b"]) == "a and b"
    assert report.listed(iter("abc")) == "a, b and c"


@pytest.mark.parametrize(
    ("values", "words"),
    [([1, 1.1, 0.9], "up"), ([-1, -1.1, -0.9], "down"), ([-1, 1, 0.1], "open"), ([5], "open")],
)
def test_a_direction_is_chosen_by_the_interval_over_seeds(values, words):
    assert report.direction(values, "up", "down", "open") == words


def test_text_is_shown_where_it_applies_and_as_markdown():
    assert report.where(False, "text") is None
    shown = report.where(True, "**text**")
    assert shown._repr_markdown_() == repr(shown) == "**text**"
    assert report.see("One.", "", "Two.") == "**What we see.** One. Two."


def test_an_interval_names_the_kinds_that_there_are():
    row = PAIR
    assert report.interval(row) == "+1.00 points (95 %: seeds −1.00 to +3.00, images 0.00 to +2.00)"
    only_seeds = row | {"images_low": np.nan, "images_high": np.nan}
    assert report.interval(only_seeds, "", 1) == "+0.01 (95 %: seeds −0.01 to +0.03)"
    equal = row | {"seeds_low": 0.01, "seeds_high": 0.01}
    text = "+1.00 points (95 %: seeds none, as all are equal, images 0.00 to +2.00)"
    assert report.interval(equal) == text
    none = row | dict.fromkeys(INTERVALS, np.nan)
    assert report.interval(none) == "+1.00 points (one seed, no interval)"


class TestDifferences:
    def test_are_grouped_by_what_is_significant(self):
        table = pairs(
            {},
            {"other": "single", "verdict": "lower", "difference": -0.02},
            {"other": "cut_mixmo", "verdict": statistics.UNDECIDED},
            {"other": "cut_mixmo+unmix=true", "verdict": statistics.UNDECIDED},
            {"figure": "nll"},
        )
        assert report.differences(table, "accuracy_ensemble") == (
            "The ensemble accuracy of MixShare, in points and after Holm's correction over 4 "
            "comparisons, is significantly higher than that of MIMO (+1.00); significantly lower "
            "than that of Single network (−2.00); not significantly different from that of "
            "Cut-MixMo (+1.00) and Cut-MixMo with unmixing (+1.00)."
        )
        assert report.differences(table, "nll").startswith("The NLL of MixShare, in nats, is")

    def test_say_where_there_is_little_to_go_by(self):
        few = pairs({"verdict": statistics.TOO_FEW}, {"other": "single"})
        text = "(fewer than ten test images differ) against that of MIMO (+1.00); significantly hi"
        assert text in report.differences(few, "accuracy_ensemble")
        one = pairs({"seeds": "1 of 1", "verdict": statistics.UNDECIDED})
        text = report.differences(one, "accuracy_ensemble")
        assert "is not tested against that of MIMO (+1.00). One" in text and "Holm" not in text
        assert report.differences(one, "accuracy_ensemble").endswith(
            "One seed gives no interval, so no difference counts as significant."
        )
        assert "nothing to compare" in report.differences(few[:0], "nll")

    def test_name_those_that_only_holms_correction_leaves_open(self):
        text = report.differences(pairs({"verdict": statistics.AFTER_HOLM}), "accuracy_ensemble")
        assert "not significantly different, after Holm's correction, from that of MIMO" in text

    def test_count_the_comparisons_with_each_run(self):
        others = [{"other": other, "method": "mixshare+width=2"} for other in ("mimo", "single")]
        text = report.differences(pairs({}, *others), "accuracy_ensemble")
        assert "The ensemble accuracy of MixShare, in points, is" in text
        corrected = (
            "MixShare with width 2, in points and after Holm's correction over 2 comparisons"
        )
        assert text.count("Holm") == 1 and corrected in text


def test_changes_by_training_that_only_holm_leaves_open_are_not_called_unclear():
    verdicts = ["rises", statistics.AFTER_HOLM, statistics.UNDECIDED]
    table = pd.DataFrame({"method": ["mimo", "mixshare", "single"], "verdict": verdicts})
    text = report.changes(table.assign(change=[0.5, -0.204, -0.001]), "{method} ({change})")
    assert text == (
        "rises in MIMO (+0.50); does not change significantly, after Holm's correction, in "
        "MixShare (−0.20); has no clear change in Single network (0.00)"
    )


def test_rows_are_grouped_by_their_verdicts():
    table = pd.DataFrame({"method": ["mimo", "mixshare", "single"], "verdict": ["up", "?", "up"]})
    text = report.grouped(table, "{method}", {"up": "rises in"}, "is open in")
    assert text == "rises in MIMO and Single network; is open in MixShare"


class TestTheAnswerOfAGrid:
    def test_counts_and_names_the_significant_differences(self):
        undecided = {"verdict": statistics.UNDECIDED}
        nll = [undecided | {"figure": "nll", "other": other} for other in ("mimo", "single")]
        assert report.answer("Is it so?", pairs({}, {"other": "single"} | undecided, *nll)) == (
            "**Is it so?** 1 of 2 differences in ensemble accuracy are significant: MixShare minus "
            "MIMO (+1.00 points). 0 of 2 differences in NLL are significant. What these do not "
            "show is open."
        )

    def test_of_nothing_is_open_and_without_a_question_there_is_none(self):
        assert (
            report.answer("Is it so?", pairs({})[:0])
            == "**Is it so?** These runs do not answer it."
        )
        assert report.answer("", pairs({})) is None


class TestReadable:
    def test_comparisons_have_their_figures_unit_and_both_intervals(self):
        table = report.readable(pairs({}, {"figure": "nll", "difference": -0.0123}))
        assert table.index.names == ["figure", "method", "other"]
        accuracy = table.loc[("ensemble accuracy, points", "MixShare", "MIMO")]
        column = "difference (95 %: over seeds; over test images)"
        assert list(table)[:2] == ["verdict", column]
        assert accuracy[column] == "+1.00 (−1.00\u00a0to\u00a0+3.00; 0.00\u00a0to\u00a0+2.00)"
        assert accuracy["seeds with the mean's sign"] == "2 of 3"
        assert table.loc[("NLL, nats", "MixShare", "MIMO"), column].startswith("−0.012 (")

    def test_scores_are_in_percent_where_they_are_shares(self):
        scores = {"method": ["mixshare"], "seed": [1], "accuracy_ensemble": [0.9912], "nll": [0.5]}
        table = report.readable(pd.DataFrame(scores))
        assert table.index.names == ["method", "seed"] and table.index[0] == ("MixShare", 1)
        assert table.loc[("MixShare", 1)].to_dict() == {"accuracy ensemble, %": 99.12, "NLL": 0.5}

    def test_a_score_and_its_interval_are_one_column_and_the_verdict_comes_first(self):
        numbers = {"cka": [0.5], "cka_low": [0.25], "cka_high": [0.75], "init_overlap": [0.3]}
        scores = {"method": ["mimo"], "block": [1]} | numbers | {"verdict": ["shared"]}
        table = report.readable(pd.DataFrame(scores))
        wanted = {"verdict": "shared", "CKA": "0.50 (0.25 to 0.75)", "untrained: overlap": 0.3}
        assert table.loc[("MIMO", 1)].to_dict() == wanted and list(table)[0] == "verdict"
        alone = pd.DataFrame(scores | {"cka_low": [np.nan], "cka_high": [np.nan]})  # of one seed
        assert report.readable(alone).loc[("MIMO", 1), "CKA"] == "0.50"


class TestClaims:
    folder = published_folder() / "digits" / "studies"

    def test_a_chapter_ends_with_its_own_claims_alone(self):
        box = report.box(self.folder, "03_subnetwork_features")
        declared = [c for c in claims.all_claims() if c.chapter == "03_subnetwork_features"]
        assert box.count("> **Claim**") == box.count("> **Verdict: ") == len(declared) == 3
        assert all(each.claim in box and each.open in box for each in declared)
        assert "> - MIMO, block 1: 3 of 3 runs separated by training: supports it" in box
        assert report.box(self.folder).count("> **Claim**") == len(claims.all_claims()) - 1

    def test_without_tables_there_is_no_evidence(self, tmp_path):
        box = report.box(tmp_path, "04_adjustments")
        claimed = [each.claim for each in claims.all_claims() if each.chapter == "04_adjustments"]
        assert box == f"> **Not tested by these results.** {' '.join(claimed)}"
        (tmp_path / "adjustments.csv").write_text(
            (self.folder / "adjustments.csv").read_text(encoding="utf-8"), encoding="utf-8"
        )
        box = report.box(tmp_path, "04_adjustments")
        assert (
            box.count("> **Claim**") == 3 and box.count("> **Not tested by these results.**") == 1
        )

    def test_the_overview_has_a_row_for_each_and_a_column_for_each_profile(self, outputs):
        lines = report.overview({"digits": self.folder, "smoke": outputs}).splitlines()
        assert lines[0] == "| claim | digits | smoke | place | chapter |"
        assert len(lines) == 2 + len(claims.all_claims())
        assert all(line.count("|") == 6 for line in lines)
        assert lines[3].split(" | ")[2] == claims.NO_RESULTS
