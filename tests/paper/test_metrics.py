"""A run's figures against torchmetrics, scikit-learn and counts by hand."""

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

examples = settings(deadline=None, max_examples=60)
few_examples = settings(examples, max_examples=30)  # where the reference takes long
FIGURES = ("accuracy", "top5", "nll", "ece", "brier")


@st.composite
def predictions(draw, members=(1, 4), classes=(2, 12), rows=(1, 80), ties=False):
    """Draw logits (M, N, K) and labels (N,).

    The logits are from nearly flat to very sure, and lean towards the label or don't.
    """
    size = [draw(st.integers(*bounds)) for bounds in (members, rows, classes)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    labels = torch.randint(size[2], (size[1],), generator=generator)
    hint = draw(st.sampled_from([0, 1, 3])) * torch.nn.functional.one_hot(labels, size[2])
    logits = torch.randn(size, generator=generator, dtype=torch.float64) + hint
    if ties:
        return logits.round(), labels
    return logits * draw(st.sampled_from([0.1, 1, 2])), labels


def reference(probabilities, labels):
    """Return one predictor's figures by torchmetrics and scikit-learn: (N, K), (N,)."""
    classes = probabilities.shape[1]
    scores, indices = torch.from_numpy(probabilities), range(classes)
    top5 = None
    if classes >= 5:
        top5 = MulticlassAccuracy(classes, top_k=5, average="micro")(scores, labels).item()
    return {
        "accuracy": MulticlassAccuracy(classes, average="micro")(scores, labels).item(),
        "top5": top5,
        "nll": log_loss(labels, probabilities, labels=indices),
        "ece": MulticlassCalibrationError(classes, n_bins=15, norm="l1")(scores, labels).item(),
        "brier": brier_score_loss(labels, probabilities, labels=indices, scale_by_half=False),
    }


def assert_same(found, expected):
    assert [value is None for value in found] == [value is None for value in expected]
    numbers = [[value for value in values if value is not None] for values in (found, expected)]
    np.testing.assert_allclose(*numbers, rtol=1e-5, atol=1e-6)


def select(figures, names):
    return [figures[name] for name in names]


def of_ensemble(figures):
    """Return the ensemble's figures in the order of FIGURES."""
    return select(figures, ("accuracy_ensemble", "top5_ensemble", "nll", "ece", "brier"))


def by_probabilities(figures):
    return select(figures, [f"{name}_probabilities" for name in FIGURES])


# ---- against reference libraries


@few_examples
@given(predictions())
def test_each_members_figures_are_those_of_the_reference_libraries(case):
    logits, labels = case
    figures = metrics.evaluate(logits, labels)
    expected = [reference(softmax(member.numpy(), axis=1), labels) for member in logits]
    for name in FIGURES:
        assert_same(figures[f"{name}_members"], [member[name] for member in expected])


@few_examples
@given(predictions())
def test_the_ensemble_averages_logits_and_in_a_second_form_probabilities(case):
    logits, labels = case
    figures = metrics.evaluate(logits, labels)
    of_logits = reference(softmax(logits.numpy().mean(0), axis=1), labels)
    of_probabilities = reference(softmax(logits.numpy(), axis=2).mean(0), labels)
    assert_same(of_ensemble(figures), select(of_logits, FIGURES))
    assert_same(by_probabilities(figures), select(of_probabilities, FIGURES))


def test_the_two_ensembles_differ_where_one_member_is_sure_and_another_is_not():
    logits = torch.tensor([[[9.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]], [[0.0, 2.0, 0.0]]])
    sure, unsure = (log_softmax(member[0].numpy().astype(float)) for member in logits[:2])
    figures = metrics.evaluate(logits, torch.tensor([0]))
    mean = (np.exp(sure[0]) + 2 * np.exp(unsure[0])) / 3
    assert figures["nll"] == pytest.approx(-log_softmax([3, 4 / 3, 0])[0])
    assert figures["nll_probabilities"] == pytest.approx(-np.log(mean))
    assert figures["accuracy_ensemble"] == 1 and figures["accuracy_probabilities"] == 0


@examples
@given(predictions(members=(1, 1)))
def test_with_one_member_the_ensemble_is_the_member_and_figures_of_pairs_are_undefined(case):
    figures = metrics.evaluate(*case)
    member = [figures[f"{name}_members"][0] for name in FIGURES]
    assert_same(of_ensemble(figures), member)
    assert_same(by_probabilities(figures), member)
    assert figures["diversity"] is None and figures["agreement"] is None


# ---- each image's scores


def half(values):
    """Return a tolerance of half precision around values: half a unit in the last place."""
    return dict(desired=values, rtol=2**-11 * 1.001, atol=2**-24)


@examples
@given(predictions())
def test_image_scores_are_those_of_each_image_the_ensemble_before_the_members(case):
    logits, labels = case
    scores = np.concatenate([logits.numpy().mean(axis=0, keepdims=True), logits.numpy()])
    log_p = log_softmax(scores, axis=2)
    found = metrics.image_scores(logits, labels)
    assert [value.dtype for value in found.values()] == [
        torch.int16,
        torch.bool,
        torch.float16,
        torch.float16,
    ]
    np.testing.assert_array_equal(found["answer"], scores.argmax(axis=2))
    np.testing.assert_array_equal(found["right"], scores.argmax(axis=2) == labels.numpy())
    of_label = log_p[:, np.arange(len(labels)), labels]
    np.testing.assert_allclose(found["nll"], **half(-of_label))
    np.testing.assert_allclose(found["confidence"], **half(np.exp(log_p.max(axis=2))))


@examples
@given(predictions(ties=True))
def test_image_scores_average_to_the_figures_of_the_run_ties_included(case):
    logits, labels = case
    found, figures = metrics.image_scores(logits, labels), metrics.evaluate(logits, labels)
    accuracies = [figures["accuracy_ensemble"], *figures["accuracy_members"]]
    assert found["right"].double().mean(dim=1).tolist() == pytest.approx(accuracies)
    nlls = [figures["nll"], *figures["nll_members"]]
    assert found["nll"].double().mean(dim=1).tolist() == pytest.approx(nlls, rel=1e-3, abs=1e-6)


# ---- pairs of members


@examples
@given(predictions(members=(2, 4), rows=(1, 30)))
def test_diversity_and_agreement_are_means_over_the_pairs_of_members_of_counts_of_rows(case):
    logits, labels = case
    predicted, ratios, agreements = logits.argmax(2).tolist(), [], []
    for a, b in combinations(predicted, 2):
        rows = list(zip(a, b, labels.tolist(), strict=True))
        both_wrong = sum(x != label and y != label for x, y, label in rows)
        one_wrong = sum((x == label) != (y == label) for x, y, label in rows)
        ratios.append(one_wrong / both_wrong if both_wrong else None)
        agreements.append(sum(x == y for x, y, _ in rows) / len(rows))
    figures = metrics.evaluate(logits, labels)
    assert figures["agreement"] == pytest.approx(np.mean(agreements))
    assert figures["diversity"] == (None if None in ratios else pytest.approx(np.mean(ratios)))


def test_three_members_diversity_is_the_mean_of_three_ratios():
    labels = torch.zeros(6, dtype=torch.int64)
    predicted = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 2, 2, 2, 2, 0]])
    # N00 is 2, 3, 3 and N01 + N10 is 2, 2, 2
    assert metrics.diversity(predicted, labels) == pytest.approx((2 / 2 + 2 / 3 + 2 / 3) / 3)
    assert metrics.agreement(predicted) == pytest.approx((4 + 2 + 2) / 18)


def test_diversity_is_undefined_where_both_members_are_never_wrong_at_once():
    labels = torch.tensor([0, 1, 2])
    assert metrics.diversity(torch.tensor([[0, 1, 0], [0, 0, 2]]), labels) is None
    assert metrics.diversity(torch.tensor([[0, 1, 0], [0, 1, 0]]), labels) == 0


@examples
@given(predictions(members=(2, 3), classes=(2, 7), ties=True))
def test_a_tie_is_decided_alike_for_the_accuracy_and_for_the_figures_of_pairs(case):
    logits, labels = case
    correct = (logits.argmax(dim=2) == labels).double()
    figures = metrics.evaluate(logits, labels)
    assert figures["accuracy_members"] == pytest.approx(correct.mean(1).tolist())


# ---- extremes


@pytest.mark.parametrize(("classes", "defined"), [(2, False), (4, False), (5, True)])
def test_top_5_needs_five_classes(classes, defined):
    figures = metrics.evaluate(torch.zeros(2, 3, classes), torch.tensor([0, 1, 0]))
    top5 = 1.0 if defined else None
    names = ("top5_ensemble", "top5_probabilities", "top5_members")
    assert select(figures, names) == [top5, top5, [top5] * 2]


def test_a_perfect_and_certain_prediction_has_no_error_of_any_kind():
    labels = torch.arange(6)
    figures = metrics.evaluate(100.0 * torch.eye(6).expand(2, -1, -1), labels)
    perfect = ("accuracy_ensemble", "accuracy_individual", "top5_ensemble", "agreement")
    assert select(figures, perfect) == [1] * 4
    assert select(figures, ("nll", "ece", "brier")) == pytest.approx([0, 0, 0], abs=1e-12)
    assert figures["diversity"] is None


def test_a_certain_and_wrong_prediction_has_the_greatest_error_of_each_kind():
    labels = torch.arange(6)
    figures = metrics.evaluate(100.0 * torch.eye(6).roll(1, 0).expand(2, -1, -1), labels)
    assert (figures["accuracy_ensemble"], figures["diversity"]) == (0, 0)
    assert select(figures, ("nll", "ece", "brier")) == pytest.approx([100, 1, 2])


@pytest.mark.parametrize("size", [1.0, 200.0, 2000.0, 60_000.0])
def test_every_figure_stays_finite_however_sure_and_wrong_the_members_are(size):
    logits = size * torch.eye(6).roll(1, 0).expand(2, -1, -1)
    figures = metrics.evaluate(logits, torch.arange(6))
    json.dumps(figures, allow_nan=False)
    expected = size + math.log1p(5 * math.exp(-size))
    assert select(figures, ("nll", "nll_probabilities")) == pytest.approx([expected] * 2)


@pytest.mark.parametrize(
    ("confidence", "ece"), [(1 / 3, 0), (0.4, 0.4 - 1 / 3), (0.6, 0.6 - 1 / 3)]
)
def test_confidences_of_one_bin_are_compared_with_the_share_that_is_right(confidence, ece):
    rest = (1 - confidence) / 2
    # 1e-9 makes the first class the highest at 1/3 too
    row = torch.tensor([confidence + 1e-9, rest, rest], dtype=torch.float64)
    found = metrics.ece(row.log().expand(3, 3), torch.tensor([0, 1, 2]))
    assert found == pytest.approx(ece, abs=1e-6)


# ---- the record


@examples
@given(predictions(rows=(2, 40)), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_of_members_changes_no_figure_of_the_whole(case, shuffler):
    logits, labels = case
    rows, members = (shuffler.sample(range(n), n) for n in (len(labels), len(logits)))
    one = metrics.evaluate(logits, labels)
    other = metrics.evaluate(logits[members][:, rows], labels[rows])
    names = [name for name in one if not name.endswith("_members")]
    assert_same(select(one, names), select(other, names))
    for name in (f"{name}_members" for name in FIGURES):
        assert_same([one[name][member] for member in members], other[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saved_logits_of_any_precision_are_evaluated_in_double_precision(dtype):
    logits = torch.randn(2, 500, 10, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(500) % 10
    assert metrics.evaluate(logits, labels) == metrics.evaluate(logits.double(), labels)


PROMISED = (
    "accuracy_ensemble",
    "accuracy_members",
    "accuracy_individual",
    "nll",
    "ece",
    "brier",
    "diversity",
    "agreement",
)


@examples
@given(predictions())
def test_the_record_has_the_promised_figures_as_plain_fractions_that_json_can_hold(case):
    logits, labels = case
    figures = json.loads(json.dumps(metrics.evaluate(logits, labels), allow_nan=False))
    assert set(figures) >= {*PROMISED, *(f"{name}_probabilities" for name in FIGURES)}
    members = figures["accuracy_members"]
    assert len(members) == len(logits)
    assert figures["accuracy_individual"] == pytest.approx(np.mean(members))
    fractions = select(figures, ("accuracy_ensemble", "accuracy_individual", "ece"))
    assert all(0 <= fraction <= 1 for fraction in fractions) and 0 <= figures["brier"] <= 2
