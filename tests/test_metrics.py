"""The figures of a run against torchmetrics, scikit-learn and counts by hand, on random predictions."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from mixshare import metrics

random = settings(deadline=None, max_examples=60)
FIGURES = ("accuracy", "top5", "nll", "ece", "brier")


@st.composite
def predictions(draw, members=(1, 4), classes=(2, 12), rows=(1, 80), ties=False):
    """Logits (M, N, K), from nearly flat to very sure, that lean towards the label in varying degree, and labels (N,)."""
    size = [draw(st.integers(*bounds)) for bounds in (members, rows, classes)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    labels = torch.randint(size[2], (size[1],), generator=generator)
    hint = draw(st.sampled_from([0, 1, 3])) * torch.nn.functional.one_hot(labels, size[2])
    logits = torch.randn(size, generator=generator, dtype=torch.float64) + hint
    return (logits.round() if ties else logits * draw(st.sampled_from([0.1, 1, 2]))), labels


def expected(probabilities, labels):
    """The five figures of one predictor by torchmetrics and scikit-learn: (N, K), (N,)."""
    classes = probabilities.shape[1]
    scores, indices = torch.from_numpy(probabilities), range(classes)
    top5 = (
        MulticlassAccuracy(classes, top_k=5, average="micro")(scores, labels).item()
        if classes >= 5
        else None
    )
    return {
        "accuracy": MulticlassAccuracy(classes, average="micro")(scores, labels).item(),
        "top5": top5,
        "nll": log_loss(labels, probabilities, labels=indices),
        "ece": MulticlassCalibrationError(classes, n_bins=15, norm="l1")(scores, labels).item(),
        "brier": brier_score_loss(labels, probabilities, labels=indices, scale_by_half=False),
    }


def same(found, wanted):
    assert [f is None for f in found] == [w is None for w in wanted]
    np.testing.assert_allclose(
        *([x for x in values if x is not None] for values in (found, wanted)), rtol=1e-5, atol=1e-6
    )


@random
@given(predictions())
def test_each_members_figures_are_those_of_the_reference_libraries(case):
    logits, labels = case
    found = metrics.evaluate(logits, labels)
    wanted = [expected(softmax(member.numpy(), axis=1), labels) for member in logits]
    for name in FIGURES:
        same(found[f"{name}_members"], [member[name] for member in wanted])


@random
@given(predictions())
def test_the_ensemble_averages_logits_and_as_a_second_form_probabilities(case):
    logits, labels = case
    found = metrics.evaluate(logits, labels)
    of_logits = expected(softmax(logits.numpy().mean(0), axis=1), labels)
    of_probabilities = expected(softmax(logits.numpy(), axis=2).mean(0), labels)
    same(
        [found[name] for name in ("accuracy_ensemble", "top5_ensemble", "nll", "ece", "brier")],
        [of_logits[name] for name in FIGURES],
    )
    same(
        [found[f"{name}_probabilities"] for name in FIGURES],
        [of_probabilities[name] for name in FIGURES],
    )


@random
@given(predictions())
def test_what_every_epoch_says_is_what_the_last_figures_say(case):
    logits, labels = case[0].half(), case[1]
    found = metrics.evaluate(logits, labels)
    assert metrics.accuracies(logits, labels) == {
        name: found[name] for name in ("accuracy_ensemble", "accuracy_individual")
    }


def test_the_two_ensembles_differ_where_one_member_is_sure_and_another_is_not():
    logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]], [[0.0, 2.0, 0.0]]])
    sure, unsure = (log_softmax(member[0].numpy().astype(float)) for member in logits[:2])
    found = metrics.evaluate(logits, torch.tensor([0]))
    assert found["nll"] == pytest.approx(-log_softmax([3, 4 / 3, 0])[0])
    assert found["nll_probabilities"] == pytest.approx(
        -np.log((np.exp(sure[0]) + 2 * np.exp(unsure[0])) / 3)
    )
    assert found["accuracy_ensemble"] == 1 and found["accuracy_probabilities"] == 0


@random
@given(predictions(members=(1, 1)))
def test_with_one_member_the_ensemble_is_the_member_and_nothing_is_said_of_pairs(case):
    found = metrics.evaluate(*case)
    same(
        [found["accuracy_ensemble"], *(found[name] for name in ("nll", "ece", "brier"))],
        [found[f"{n}_members"][0] for n in FIGURES if n != "top5"],
    )
    same(
        [found[f"{name}_probabilities"] for name in FIGURES],
        [found[f"{name}_members"][0] for name in FIGURES],
    )
    assert found["diversity"] is None and found["agreement"] is None


@random
@given(predictions(members=(2, 4), rows=(1, 30)))
def test_diversity_and_agreement_are_means_over_the_pairs_of_members_of_counts_of_rows(case):
    logits, labels = case
    said, ratios, agreements = logits.argmax(2).tolist(), [], []
    for a, b in combinations(said, 2):
        rows = list(zip(a, b, labels.tolist(), strict=True))
        n00 = sum(x != y and z != y for x, z, y in rows)
        one_wrong = sum((x == y) != (z == y) for x, z, y in rows)
        ratios.append(one_wrong / n00 if n00 else None)
        agreements.append(sum(x == z for x, z, _ in rows) / len(rows))
    found = metrics.evaluate(logits, labels)
    assert found["agreement"] == pytest.approx(np.mean(agreements))
    assert found["diversity"] == (None if None in ratios else pytest.approx(np.mean(ratios)))


def test_three_members_diversity_is_the_mean_of_three_ratios():
    labels = torch.zeros(6, dtype=torch.int64)
    said = torch.tensor(
        [[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 2, 2, 2, 2, 0]]
    )  # N00 = 2, 3, 3 and N01 + N10 = 2, 2, 2
    assert metrics.diversity(said, labels) == pytest.approx((2 / 2 + 2 / 3 + 2 / 3) / 3)
    assert metrics.agreement(said) == pytest.approx((4 + 2 + 2) / 18)


def test_diversity_is_undefined_where_no_row_defeats_both_members():
    labels = torch.tensor([0, 1, 2])
    assert metrics.diversity(torch.tensor([[0, 1, 0], [0, 0, 2]]), labels) is None
    assert metrics.diversity(torch.tensor([[0, 1, 0], [0, 1, 0]]), labels) == 0


@pytest.mark.parametrize(("classes", "defined"), [(2, False), (4, False), (5, True)])
def test_top_5_needs_five_classes(classes, defined):
    found = metrics.evaluate(torch.zeros(2, 3, classes), torch.tensor([0, 1, 0]))
    wanted = 1.0 if defined else None
    assert (found["top5_ensemble"], found["top5_probabilities"], found["top5_members"]) == (
        wanted,
        wanted,
        [wanted] * 2,
    )


def test_a_perfect_and_certain_prediction_has_no_error_of_any_kind():
    labels = torch.arange(6)
    found = metrics.evaluate(100.0 * torch.eye(6).expand(2, -1, -1), labels)
    assert (
        found["accuracy_ensemble"]
        == found["accuracy_individual"]
        == found["top5_ensemble"]
        == found["agreement"]
        == 1
    )
    assert [found[name] for name in ("nll", "ece", "brier")] == pytest.approx([0, 0, 0], abs=1e-12)
    assert found["diversity"] is None


def test_a_certain_and_wrong_prediction_has_the_greatest_error_of_each_kind():
    labels = torch.arange(6)
    found = metrics.evaluate(100.0 * torch.eye(6).roll(1, 0).expand(2, -1, -1), labels)
    assert (found["accuracy_ensemble"], found["diversity"]) == (0, 0)
    assert [found[name] for name in ("nll", "ece", "brier")] == pytest.approx([100, 1, 2])


@pytest.mark.parametrize("size", [1.0, 200.0, 2000.0, 60_000.0])
def test_every_figure_stays_finite_however_sure_and_wrong_the_members_are(size):
    logits = size * torch.eye(6).roll(1, 0).expand(2, -1, -1)
    found = metrics.evaluate(logits, torch.arange(6))
    json.dumps(found, allow_nan=False)
    assert (
        found["nll_probabilities"]
        == pytest.approx(found["nll"])
        == pytest.approx(size + math.log1p(5 * math.exp(-size)))
    )


@pytest.mark.parametrize(
    ("confidence", "ece"), [(1 / 3, 0), (0.4, 0.4 - 1 / 3), (0.6, 0.6 - 1 / 3)]
)
def test_confidences_of_one_bin_are_compared_with_the_share_that_is_right(confidence, ece):
    probabilities = torch.tensor(
        [[confidence, *[(1 - confidence) / 2] * 2]], dtype=torch.float64
    ).expand(3, 3)
    probabilities = probabilities + torch.tensor(
        [1e-9, 0, 0], dtype=torch.float64
    )  # so that the first class wins at 1/3 too
    assert metrics.ece(probabilities.log(), torch.tensor([0, 1, 2])) == pytest.approx(ece, abs=1e-6)


@random
@given(predictions(members=(2, 3), classes=(2, 7), ties=True))
def test_a_tie_is_decided_alike_for_the_accuracy_and_for_the_figures_of_pairs(case):
    logits, labels = case
    said = logits.argmax(dim=2)
    found = metrics.evaluate(logits, labels)
    assert found["accuracy_members"] == pytest.approx((said == labels).double().mean(1).tolist())


@random
@given(predictions(rows=(2, 40)), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_of_members_changes_nothing_that_is_said_of_all(case, shuffler):
    logits, labels = case
    rows, members = (shuffler.sample(range(n), n) for n in (len(labels), len(logits)))
    one, other = (
        metrics.evaluate(logits, labels),
        metrics.evaluate(logits[members][:, rows], labels[rows]),
    )
    names = [name for name in one if not name.endswith("_members")]
    same([one[name] for name in names], [other[name] for name in names])
    for name in FIGURES:
        same([one[f"{name}_members"][i] for i in members], other[f"{name}_members"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saved_logits_of_any_precision_are_judged_in_double_precision(dtype):
    logits = torch.randn(2, 500, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(500) % 10
    assert metrics.evaluate(logits, labels) == metrics.evaluate(logits.double(), labels)


@random
@given(predictions())
def test_the_record_has_the_promised_figures_as_plain_fractions_that_json_can_hold(case):
    logits, labels = case
    found = json.loads(json.dumps(metrics.evaluate(logits, labels), allow_nan=False))
    promised = {
        "accuracy_ensemble",
        "accuracy_members",
        "accuracy_individual",
        "nll",
        "ece",
        "brier",
        "diversity",
        "agreement",
    }
    assert promised <= set(found) and {f"{name}_probabilities" for name in FIGURES} <= set(found)
    assert found["accuracy_individual"] == pytest.approx(
        np.mean(found["accuracy_members"])
    ) and len(found["accuracy_members"]) == len(logits)
    assert (
        all(0 <= found[name] <= 1 for name in ("accuracy_ensemble", "accuracy_individual", "ece"))
        and 0 <= found["brier"] <= 2
    )
