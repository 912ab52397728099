"""Training: the schedule, the optimizer, the loss, a step, whole runs, and torch's settings."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sittings import QUICK
from torch import nn

import mixshare
from mixshare import RunConfig, runs, training
from mixshare.batch import Batches
from mixshare.config import METHODS
from mixshare.data import Data, load_data
from mixshare.plan import plan_epoch
from mixshare.step import Step, learning_rate, load_optimizer, make_optimizer, member_losses

pytestmark = pytest.mark.usefixtures("outputs")
QUICK_RUN = RunConfig.preset("smoke", "mixshare", 1, **QUICK)
VARIANTS = [
    *((method, {}) for method in METHODS),
    ("mixshare", dict(members=3)),
    ("mixshare", dict(unmix=False)),
    ("mixshare", dict(unmix_normalize=False, unmix_resize="nearest")),
    ("mixshare", dict(pixel_cutmix=True)),
    ("cut_mixmo", dict(pixel_cutmix=True, members=3)),
    ("single", dict(pixel_cutmix=True)),
    ("mixshare", dict(repeat_augmented=True)),
    ("mimo", dict(encoder_init="colinear")),
]
IDS = ["-".join([method, *overrides]) for method, overrides in VARIANTS]
METHOD = pytest.mark.parametrize("method, overrides", VARIANTS, ids=IDS)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits-few")


def first_plan(config, data):
    return plan_epoch(config, 0, len(data.train_images), *data.shape[:2])


def first_step(config, data):
    """Return a fresh network, its batches, and the draws of each step of an epoch."""
    model = runs.build_model(config, data.shape[2], len(data.class_names)).train()
    plan = first_plan(config, data).tensors()
    draws = []
    for k in range(len(plan["rows"])):
        draws.append({name: value[k] for name, value in plan.items()})
    return model, Batches(data, config), draws


def train_steps(model, batches, config, data, rates):
    """Return the losses of an epoch's first steps at these rates."""
    step = Step(model, make_optimizer(model, config), batches, config)
    step.begin(first_plan(config, data))
    for rate in rates:
        step(rate)
    return step.end()[: len(rates)]


# ---- the learning rate


@pytest.mark.parametrize("step", [0, 1561])
def test_the_papers_rate_is_cut_to_a_tenth_at_epochs_75_150_and_225_and_nowhere_else(step):
    config = RunConfig.preset("paper", "mixshare")
    full = 0.1 / 2 * 64 / 128
    parts = {1: 1, 74: 1, 75: 0.1, 149: 0.1, 150: 0.01, 224: 0.01, 225: 0.001, 299: 0.001}
    for epoch, part in parts.items():
        rate = learning_rate(config, epoch, step, 1562)
        assert rate == pytest.approx(full * part, rel=1e-12), epoch


@pytest.mark.parametrize("warmup_epochs", [0, 1, 3])
def test_step_k_of_the_n_of_the_warm_up_has_k_nths_of_the_rate(warmup_epochs):
    config = RunConfig.preset("paper", "mixshare", warmup_epochs=warmup_epochs)
    n = 7 * warmup_epochs
    rates = [learning_rate(config, k // 7, k % 7, 7) for k in range(n)]
    assert rates == pytest.approx([config.learning_rate * (k + 1) / n for k in range(n)])
    assert learning_rate(config, warmup_epochs, 0, 7) == config.learning_rate


@pytest.mark.parametrize("profile, epochs", [("digits", 40), ("smoke", 9), ("paper", 300)])
def test_a_profiles_rate_is_cut_after_a_quarter_a_half_and_three_quarters_of_its_epochs(
    profile, epochs
):
    config = RunConfig.preset(profile, "mixshare", epochs=epochs)
    for epoch in range(1, epochs):
        cuts = sum(epoch / epochs >= quarter for quarter in (0.25, 0.5, 0.75))
        assert learning_rate(config, epoch, 0, 5) == pytest.approx(config.learning_rate / 10**cuts)


# ---- the optimizer and the loss


def test_the_optimizer_is_nesterov_descent_on_the_loss_with_the_l2_term_over_all_parameters():
    config = RunConfig.preset("paper", "mixshare", l2=0.01)
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)
    model = nn.Sequential(*layers).double()
    by_hand = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    velocities, optimizer = [0.0] * len(by_hand), make_optimizer(model, config)
    for rate in (0.1, 0.1, 0.05):
        inputs = torch.randn(5, 1, 4, 4, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        model(inputs).logsumexp(dim=1).sum().backward()
        optimizer.step()

        state = dict(zip(dict(model.named_parameters()), by_hand, strict=True))
        outputs = torch.func.functional_call(model, state, inputs)
        squares = sum(parameter.square().sum() for parameter in by_hand)
        loss = outputs.logsumexp(dim=1).sum() + 0.01 * squares
        for k, gradient in enumerate(torch.autograd.grad(loss, by_hand)):
            velocities[k] = 0.9 * velocities[k] + gradient
            by_hand[k].data -= rate * (gradient + 0.9 * velocities[k])
    torch.testing.assert_close(list(model.parameters()), by_hand)


@pytest.mark.parametrize("profile", ["paper", "digits"])
def test_every_parameter_of_the_network_decays_by_6e_4(profile):
    config = RunConfig.preset(profile, "mixshare")
    model = runs.build_model(config, 3, 10)
    (group,) = make_optimizer(model, config).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
    assert group["weight_decay"] == pytest.approx(6e-4)
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


def row_loss(config, data, draws, log_p, masks, cell):
    """Compute the weighted loss of one member's row in a loop: log_p (M, B, classes)."""
    member, row = cell
    loss = -log_p[(*cell, data.train_labels[draws["rows"][cell]])]
    if config.pixel_cutmix:
        top, bottom, left, right = draws["own_boxes"][cell]
        visible = masks[cell]
        share = visible[top:bottom, left:right].sum() / visible.sum() if visible.any() else 1
        if config.members > 1:
            share = max(share, 1 - share)
        partner = -log_p[(*cell, data.train_labels[draws["partner_rows"][cell]])]
        loss = share * loss + (1 - share) * partner
    roots = [mask[row].mean() ** (1 / config.loss_root) for mask in masks]
    return config.members * roots[member] / sum(roots) * loss


@METHOD
def test_the_loss_of_a_member_is_its_weighted_cross_entropy_averaged_over_the_rows(
    method, overrides, digits
):
    config = RunConfig.preset("smoke", method, **overrides)
    model, batches, (draws, *_) = first_step(config, digits)
    found = member_losses(model, batches, config, draws).detach().double().numpy()

    batch = batches(draws)
    logits = model(batch.inputs, batch.masks, unmix=config.unmix).detach().double()
    log_p, masks = logits.log_softmax(dim=2).numpy(), batch.masks[:, :, 0].double().numpy()
    losses = np.zeros((config.members, config.batch_size))
    for cell in np.ndindex(losses.shape):
        losses[cell] = row_loss(config, digits, draws, log_p, masks, cell)
    np.testing.assert_allclose(found, losses.mean(axis=1), rtol=1e-4)


# ---- a step


def test_a_step_returns_the_sum_over_the_members_and_follows_its_gradient(digits):
    config = RunConfig.preset("smoke", "mixshare", momentum=0.0, l2=0.0)
    model, batches, draws = first_step(config, digits)
    before = [p.detach().clone() for p in model.parameters()]
    expected = member_losses(model, batches, config, draws[0]).sum()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = train_steps(model, batches, config, digits, [0.25])[0]
    assert loss.item() == pytest.approx(expected.item()) and not loss.requires_grad
    descended = [p - 0.25 * g for p, g in zip(before, gradients, strict=True)]
    torch.testing.assert_close(list(model.parameters()), descended)


def test_bfloat16_computes_nearly_the_same_loss_but_not_the_same(digits):
    precise, half = (
        RunConfig.preset("smoke", "mixshare", precision=precision)
        for precision in ("float32", "bfloat16")
    )
    model, batches, draws = first_step(precise, digits)
    losses = [member_losses(model, batches, config, draws[0]) for config in (precise, half)]
    torch.testing.assert_close(*losses, rtol=0.05, atol=0)
    assert not torch.equal(*losses)


def test_one_member_trains_as_a_plain_network_in_a_plain_loop(digits):
    config = RunConfig.preset("smoke", "single", flip=True)
    model, batches, draws = first_step(config, digits)
    rates = [0.02, 0.04, 0.06, 0.08]
    losses = train_steps(model, batches, config, digits, rates).tolist()

    plain, _, _ = first_step(config, digits)
    sgd = dict(momentum=0.9, nesterov=True, weight_decay=6e-4)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1.0, **sgd)
    pixels = digits.train_images.permute(0, 3, 1, 2) / 255
    padded, mean, deviation = F.pad(pixels, (2, 2, 2, 2)), pixels.mean(), pixels.std(correction=0)
    for rate, loss, step in zip(rates, losses, draws, strict=False):
        rows, offsets, flips = (step[name][0].tolist() for name in ("rows", "offsets", "flips"))
        images = []
        for row, (y, x), flip in zip(rows, offsets, flips, strict=True):
            image = padded[row, :, y : y + 16, x : x + 16]
            images.append(image.flip(2) if flip else image)
        inputs = (torch.stack(images) - mean) / deviation
        features = plain.core(plain.encoders[0](inputs)).mean(dim=(2, 3))
        expected = F.cross_entropy(plain.classifiers[0](features), digits.train_labels[rows])
        assert loss == pytest.approx(expected.item(), rel=1e-3)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-2, atol=1e-3)


def test_a_step_goes_from_one_epochs_draws_to_the_nexts_in_the_same_memory(digits):
    config = RunConfig.preset("smoke", "mixshare")
    model, batches, _ = first_step(config, digits)
    step = Step(model, make_optimizer(model, config), batches, config)
    addresses = []
    for epoch in (0, 1):
        plan = plan_epoch(config, epoch, len(digits.train_images), *digits.shape[:2])
        step.begin(plan)
        addresses.append({name: value.data_ptr() for name, value in step.draws.items()})
        for k in range(3):
            draws = {name: value[k] for name, value in plan.tensors().items()}
            expected = member_losses(model, batches, config, draws).sum()
            step(0.1)
            assert step.end()[k] == pytest.approx(expected.item(), rel=1e-5)
    assert addresses[0] == addresses[1]


@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5)], ids=["a number", "a tensor"])
def test_a_loaded_optimizer_keeps_the_object_that_has_its_rate(rate):
    """A captured graph reads it there; a checkpoint may have the other kind of rate."""
    weight = nn.Parameter(torch.ones(3))
    optimizer, other = (torch.optim.SGD([weight], lr=lr, momentum=0.9) for lr in (rate, 0.1))
    weight.grad = torch.ones(3)
    other.step()
    load_optimizer(optimizer, other.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate
    found, expected = (each.state[weight]["momentum_buffer"] for each in (optimizer, other))
    assert torch.equal(found, expected)


# ---- whole runs


@METHOD
def test_every_method_trains_to_finite_figures_and_the_files_of_a_run(
    method, overrides, finished, contents
):
    run = finished(method, width=0.5, **overrides)
    assert set(contents(run.folder)) == set(runs.RUN_FILES)  # no checkpoint, no temporary file
    assert len(run.metrics["accuracy_members"]) == run.config.members
    for value in run.metrics.values():
        if not isinstance(value, dict):
            figures = value if isinstance(value, list) else [value]
            assert all(figure is None or math.isfinite(figure) for figure in figures)
    assert list(run.history.epoch) == [0, 1] and run.history.loss.iloc[1] < run.history.loss.iloc[0]
    assert run.logits.shape == (run.config.members, 100, 10)


ACCURACIES = ["test_accuracy_ensemble", "test_accuracy_individual"]


@pytest.mark.parametrize(
    ("every", "evaluated"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (5, [4]), (9, [4])]
)
def test_a_run_is_evaluated_every_so_many_epochs_and_after_the_last(every, evaluated, finished):
    run = finished(**QUICK, epochs=5, evaluate_every=every)
    plain = finished(**QUICK, epochs=5)
    history, complete = run.history, plain.history
    rows = history.index[history[ACCURACIES].notna().all(axis=1)]
    assert list(rows) == evaluated and complete.notna().all(axis=None)
    assert history.loc[rows].equals(complete.loc[rows])
    assert history[ACCURACIES].drop(rows).isna().all(axis=None)
    others = history.columns.drop(ACCURACIES)
    assert history[others].equals(complete[others])  # evaluating changes nothing of the training
    assert history[ACCURACIES].iloc[-1].tolist() == [
        run.metrics[name.removeprefix("test_")] for name in ACCURACIES
    ]


def normalised_by_hand(data, images):
    """Normalise (N, H, W, C) uint8 in NumPy to (N, C, H, W) float32."""
    train = data.train_images.numpy() / 255
    mean, deviation = train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2))
    pixels = (images.numpy() / 255 - mean) / deviation
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()


@pytest.mark.parametrize("method", ["single", "mixshare"])
def test_the_accuracy_on_train_images_is_that_of_the_plain_images(method, finished, digits):
    run = finished(method, **QUICK, epochs=5)
    inputs = normalised_by_hand(digits, digits.train_images)
    with torch.no_grad():
        logits = run.model(torch.stack([inputs] * run.config.members)).mean(dim=0)
    correct = (logits.argmax(dim=1) == digits.train_labels).sum().item()
    assert run.metrics["accuracy_train"] == pytest.approx(correct / 300, abs=1e-12)
    assert run.metrics["accuracy_train"] != run.metrics["accuracy_ensemble"]


def evaluated(run, data, precision):
    """Return the test logits of a run's network in a precision, before they are rounded."""
    inputs = normalised_by_hand(data, data.test_images)
    inputs = torch.stack([inputs] * run.config.members)
    half = precision == "bfloat16"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        return run.model(inputs)


@pytest.mark.parametrize(("precision", "other"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_run_is_evaluated_in_its_own_precision(precision, other, finished, digits):
    run = finished(**QUICK, precision=precision)
    own, foreign = (evaluated(run, digits, each) for each in (precision, other))
    error, difference = ((run.logits - x).abs().mean() for x in (own, foreign))
    assert error < 1e-3 and difference > 3 * error
    again = training.test_logits(run.model, digits, precision)
    assert (again - own).abs().mean() < 1e-3


def test_every_figure_of_a_run_is_computed_in_its_own_precision(monkeypatch):
    computed, predict = [], training.predict

    def recording_predict(model, data, images, precision):
        computed.append((len(images), precision))
        return predict(model, data, images, precision)

    monkeypatch.setattr(training, "predict", recording_predict)
    mixshare.train(RunConfig.preset("smoke", precision="bfloat16", **QUICK))
    # after each of two epochs, for the record, and on the train images
    assert computed == [(100, "bfloat16")] * 3 + [(300, "bfloat16")]


def test_logits_of_a_run_in_bfloat16_are_rounded_to_half_precision_alone(finished, digits):
    run = finished(**QUICK, precision="bfloat16")
    logits = run.logits
    assert logits.dtype == torch.float16
    coarse = (logits == logits.bfloat16().to(logits.dtype)).double().mean()
    assert coarse < 0.3  # a bfloat16 has 3 bits fewer: an eighth of all halfs are such


def test_capture_without_a_gpu_trains_the_same_run_to_the_bit(finished, contents):
    plain = contents(finished(device="cpu", **QUICK).folder)
    captured = contents(finished(device="cpu", capture=True, **QUICK).folder)
    different = {name for name in plain if plain[name] != captured[name]}
    assert different == {"config.json", runs.CHECKSUMS}
    expected = json.loads(plain["config.json"]) | {"capture": True}
    assert json.loads(captured["config.json"]) == expected


EXECUTED = [dict(capture=True), dict(deterministic=False), dict(threads=2), dict(device="cpu")]


@pytest.mark.parametrize("override", EXECUTED, ids=str)
def test_how_a_run_is_executed_does_not_make_it_another_run(override, copied, monkeypatch):
    run = copied(**QUICK)
    monkeypatch.setattr(training, "Training", None)
    config = RunConfig.preset("smoke", "mixshare", 1, **QUICK, **override)
    assert mixshare.train(config).folder == run.folder


def raise_out_of_memory(*anything):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB …")


ALLOCATIONS = {
    "data": (Data, "to"),
    "network": (runs, "build_model"),
    "draws": (Step, "begin"),
    "step": (Step, "__call__"),
    "figures": (training, "test_logits"),
}


@pytest.mark.parametrize("owner, name", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_a_gpu_without_memory_is_one_line_wherever_it_is_allocated(
    owner, name, monkeypatch, in_a_line
):
    monkeypatch.setattr(owner, name, raise_out_of_memory)
    with pytest.raises(OSError) as error:
        mixshare.train(QUICK_RUN)
    assert "batch_size" in in_a_line(error.value)


DIVERGING = [
    (
        {"learning_rate": 1e20},
        r"loss is (nan|-?inf) in epoch 0, step [1-8]; try a learning_rate below 1e\+20",
    ),
    # the very last update: no later loss would show it
    (
        {"learning_rate": 1e6, "epochs": 1, "batch_size": 512},
        r"network's answers are not finite after the update in epoch 0, step 0",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), DIVERGING)
def test_a_run_that_diverges_stops_with_the_epoch_the_step_and_what_to_try(
    outputs, in_a_line, overrides, message
):
    config = RunConfig.preset("smoke", "mixshare", 3, **overrides)
    with pytest.raises(ArithmeticError, match=message) as error:
        mixshare.train(config)
    in_a_line(error.value)
    assert not [path for path in outputs.rglob("*") if path.is_file()]


@pytest.mark.parametrize("watched", [False, True])
def test_progress_is_shown_only_where_a_person_watches(watched, monkeypatch, capfd):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if watched:
        monkeypatch.setenv("JPY_SESSION_NAME", "chapter")
    mixshare.train(QUICK_RUN)
    shown = "".join(capfd.readouterr())
    parts = (QUICK_RUN.name, "seed 1", "2/2", "loss=", "lr=")
    assert all(part in shown for part in parts) if watched else shown == ""


REAL = {"dataset": "cifar100", "depth": 16, "crop_padding": 4, "flip": True, "epochs": 3}


@pytest.mark.cifar100
def test_real_images_are_learnt(monkeypatch):
    data = load_data("cifar100")
    few = replace(
        data,
        train_images=data.train_images[:1000],
        train_labels=data.train_labels[:1000],
        test_images=data.test_images[:300],
        test_labels=data.test_labels[:300],
    )
    monkeypatch.setattr(training, "load_data", lambda name: few)
    run = mixshare.train(RunConfig.preset("digits", milestones=[], **REAL))
    assert run.history.loss.is_monotonic_decreasing
    assert run.history.loss.iloc[-1] < 0.98 * 2 * math.log(100)  # what guessing costs two members
