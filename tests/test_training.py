"""Training: the schedule, the optimizer, the loss, a step, the methods from end to end, and what it leaves as it found it."""

import json
import math
import os
import runpy
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mixshare
from mixshare import RunConfig, execution, runs, training
from mixshare.batch import Batches
from mixshare.config import METHODS
from mixshare.data import Data, load_data
from mixshare.plan import plan_epoch
from mixshare.step import Step, learning_rate, load_optimizer, make_optimizer, member_losses

pytestmark = pytest.mark.usefixtures("outputs")
CPU = torch.device("cpu")
VARIANTS = [
    *((method, {}) for method in METHODS),
    ("mixshare", dict(members=3)),
    ("mixshare", dict(unmix=False)),
    ("mixshare", dict(unmix_normalize=False, unmix_resize="nearest")),
    ("mixshare", dict(pixel_cutmix=True)),
    ("cut_mixmo", dict(pixel_cutmix=True, members=3)),
    ("mimo", dict(encoder_init="colinear", width=0.5)),
]
METHOD = pytest.mark.parametrize(
    "method, overrides",
    VARIANTS,
    ids=lambda v: v if isinstance(v, str) else ",".join(map(str, v)) or "default",
)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits-few")


def first_step(config, data):
    """A fresh network, its batches, and the draws of an epoch's steps."""
    steps = plan_epoch(config, 0, len(data.train_images), *data.shape[:2]).tensors()
    draws = [{name: value[k] for name, value in steps.items()} for k in range(len(steps["rows"]))]
    return (
        runs.build_model(config, data.shape[2], len(data.class_names)).train(),
        Batches(data, config),
        draws,
    )


def trained(model, batches, config, data, rates, epoch=0):
    """The losses of an epoch's first steps, at these rates."""
    step = Step(model, make_optimizer(model, config), batches, config)
    step.begin(plan_epoch(config, epoch, len(data.train_images), *data.shape[:2]), rates)
    for _ in rates:
        step()
    return step.end()


@pytest.mark.parametrize(
    "epoch, rate",
    [(1, 1), (74, 1), (75, 0.1), (149, 0.1), (150, 0.01), (224, 0.01), (225, 0.001), (299, 0.001)],
)
@pytest.mark.parametrize("step", [0, 1561])
def test_the_papers_rate_is_cut_to_a_tenth_at_epochs_75_150_and_225_and_nowhere_else(
    epoch, rate, step
):
    config = RunConfig.preset("paper", "mixshare")
    assert learning_rate(config, epoch, step, 1562) == pytest.approx(
        0.1 / 2 * 64 / 128 * rate, rel=1e-12
    )


@pytest.mark.parametrize("warmup_epochs", [0, 1, 3])
def test_step_k_of_the_n_of_the_warm_up_has_k_nths_of_the_rate(warmup_epochs):
    config = RunConfig.preset("paper", "mixshare", warmup_epochs=warmup_epochs)
    rates = [
        learning_rate(config, epoch, step, 7) for epoch in range(warmup_epochs) for step in range(7)
    ]
    assert rates == pytest.approx(
        [config.learning_rate * k / (7 * warmup_epochs) for k in range(1, 7 * warmup_epochs + 1)]
    )
    assert learning_rate(config, warmup_epochs, 0, 7) == config.learning_rate


@pytest.mark.parametrize("profile, epochs", [("digits", 40), ("smoke", 9), ("paper", 300)])
def test_a_profile_is_cut_where_a_quarter_a_half_and_three_quarters_of_its_epochs_are_over(
    profile, epochs
):
    config = RunConfig.preset(profile, "mixshare", epochs=epochs)
    for epoch in range(1, epochs):
        cuts = sum(epoch / epochs >= quarter for quarter in (0.25, 0.5, 0.75))
        assert learning_rate(config, epoch, 0, 5) == pytest.approx(config.learning_rate / 10**cuts)


@pytest.mark.parametrize("epochs", [5, 7, 10, 35])
def test_the_short_run_on_real_photographs_is_cut_after_three_fifths_and_four_fifths(epochs):
    config = RunConfig.preset("cifar100-lite", "mixshare", epochs=epochs)
    cuts = [
        round(-math.log10(learning_rate(config, epoch, 0, 5) / 0.1)) for epoch in range(1, epochs)
    ]
    assert cuts == [
        (5 * epoch >= 3 * epochs) + (5 * epoch >= 4 * epochs) for epoch in range(1, epochs)
    ]


def test_the_optimizer_is_nesterov_descent_on_the_loss_with_the_l2_term_over_all_parameters():
    config = RunConfig.preset("paper", "mixshare", l2=0.01)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    by_hand = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    velocities, optimizer = [0.0] * len(by_hand), make_optimizer(model, config)
    for rate in (0.1, 0.1, 0.05):
        inputs = torch.randn(5, 1, 4, 4, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        model(inputs).logsumexp(dim=1).sum().backward()
        optimizer.step()

        state = dict(zip(dict(model.named_parameters()), by_hand, strict=True))
        loss = torch.func.functional_call(model, state, inputs).logsumexp(dim=1).sum() + 0.01 * sum(
            p.square().sum() for p in by_hand
        )
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
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (
        pytest.approx(6e-4),
        0.9,
        True,
    )


@METHOD
def test_the_loss_of_a_member_is_its_weighted_cross_entropy_averaged_over_the_rows(
    method, overrides, digits
):
    config = RunConfig.preset("smoke", method, **overrides)
    model, batches, draws = first_step(config, digits)
    batch = batches(draws[0])
    found = member_losses(model, batches, config, draws[0]).detach().double().numpy()

    log_p = (
        model(batch.inputs, batch.masks, unmix=config.unmix)
        .detach()
        .double()
        .log_softmax(dim=2)
        .numpy()
    )
    masks, wanted = (
        batch.masks[:, :, 0].double().numpy(),
        np.zeros((config.members, config.batch_size)),
    )
    for row in range(config.batch_size):
        roots = [masks[m, row].mean() ** (1 / config.loss_root) for m in range(config.members)]
        for m in range(config.members):
            loss = -log_p[m, row, digits.train_labels[draws[0]["rows"][m, row]]]
            if config.pixel_cutmix:
                top, bottom, left, right = draws[0]["partner_boxes"][m, row]
                share = masks[m, row, top:bottom, left:right].sum() / max(masks[m, row].sum(), 1e-9)
                loss = (1 - share) * loss - share * log_p[
                    m, row, digits.train_labels[draws[0]["partner_rows"][m, row]]
                ]
            wanted[m, row] = config.members * roots[m] / sum(roots) * loss
    np.testing.assert_allclose(found, wanted.mean(axis=1), rtol=1e-4)


def test_a_step_returns_the_sum_over_the_members_and_follows_its_gradient(digits):
    config = RunConfig.preset("smoke", "mixshare", momentum=0.0, l2=0.0)
    model, batches, draws = first_step(config, digits)
    before = [p.detach().clone() for p in model.parameters()]
    wanted = member_losses(model, batches, config, draws[0]).sum()
    gradients = torch.autograd.grad(wanted, list(model.parameters()))
    loss = trained(model, batches, config, digits, [0.25])[0]
    assert loss.item() == pytest.approx(wanted.item()) and not loss.requires_grad
    torch.testing.assert_close(
        list(model.parameters()), [p - 0.25 * g for p, g in zip(before, gradients, strict=True)]
    )


def test_bfloat16_computes_nearly_the_same_loss_but_not_the_same(digits):
    configs = [
        RunConfig.preset("smoke", "mixshare", precision=precision)
        for precision in ("float32", "bfloat16")
    ]
    model, batches, draws = first_step(configs[0], digits)
    losses = [member_losses(model, batches, config, draws[0]) for config in configs]
    torch.testing.assert_close(*losses, rtol=0.05, atol=0)
    assert not torch.equal(*losses)


def test_one_member_trains_as_a_plain_network_in_a_plain_loop(digits):
    config = RunConfig.preset("smoke", "single", flip=True)
    model, batches, draws = first_step(config, digits)
    losses = trained(model, batches, config, digits, [0.02 * (k + 1) for k in range(4)]).tolist()

    plain = first_step(config, digits)[0]
    optimizer = torch.optim.SGD(
        plain.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=6e-4
    )
    pixels = digits.train_images.permute(0, 3, 1, 2) / 255
    padded, mean, deviation = F.pad(pixels, (2, 2, 2, 2)), pixels.mean(), pixels.std(correction=0)
    for k, loss in enumerate(losses):
        rows, offsets, flips = (draws[k][name][0].tolist() for name in ("rows", "offsets", "flips"))
        images = torch.stack(
            [padded[i, :, y : y + 16, x : x + 16] for i, (y, x) in zip(rows, offsets, strict=True)]
        )
        images = torch.stack(
            [image.flip(2) if flip else image for image, flip in zip(images, flips, strict=True)]
        )
        features = plain.core(plain.encoders[0]((images - mean) / deviation)).mean(dim=(2, 3))
        wanted = F.cross_entropy(plain.classifiers[0](features), digits.train_labels[rows])
        assert loss == pytest.approx(wanted.item(), rel=1e-3)
        optimizer.param_groups[0]["lr"] = 0.02 * (k + 1)
        optimizer.zero_grad()
        wanted.backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-2, atol=1e-3)


@METHOD
def test_every_method_trains_to_finite_figures_and_the_files_of_a_run(
    method, overrides, finished, contents
):
    run = finished(method, **overrides)
    assert set(contents(run.folder)) == set(
        runs.RUN_FILES
    )  # so no checkpoint and no temporary file
    figures = [
        f
        for value in run.metrics.values()
        if not isinstance(value, dict)
        for f in (value if isinstance(value, list) else [value])
    ]
    assert (
        all(f is None or math.isfinite(f) for f in figures)
        and len(run.metrics["accuracy_members"]) == run.config.members
    )
    assert list(run.history.epoch) == [0, 1] and run.history.loss.iloc[1] < run.history.loss.iloc[0]
    assert run.logits.shape == (run.config.members, 100, 10)


def test_capture_without_a_gpu_trains_the_same_run_to_the_bit(finished, contents):
    plain, captured = (
        contents(finished(device="cpu", **how).folder) for how in ({}, dict(capture=True))
    )
    assert {name for name in plain if plain[name] != captured[name]} == {"config.json", runs.SUMS}
    assert json.loads(captured["config.json"]) == json.loads(plain["config.json"]) | {
        "capture": True
    }


def test_a_step_goes_from_one_epochs_draws_to_the_nexts_in_the_same_memory(digits):
    config = RunConfig.preset("smoke", "mixshare")
    model, batches, _ = first_step(config, digits)
    step, shape = Step(model, make_optimizer(model, config), batches, config), digits.shape[:2]
    before = None
    for epoch in (0, 1):
        plan = plan_epoch(config, epoch, len(digits.train_images), *shape)
        step.begin(plan, [0.1] * 3)
        places = {name: value.data_ptr() for name, value in step.draws.items()}
        for k in range(3):
            draws = {name: value[k] for name, value in plan.tensors().items()}
            wanted = member_losses(model, batches, config, draws).sum()
            step()
            assert step.end()[k] == pytest.approx(wanted.item(), rel=1e-5)
        assert before in (None, places)
        before = places


@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5)], ids=["a number", "a tensor"])
def test_a_loaded_optimizer_reads_its_rate_where_it_did_before(rate):
    """A captured graph reads it there; a checkpoint may come from a device where it is the other."""
    weight = nn.Parameter(torch.ones(3))
    optimizer, other = (torch.optim.SGD([weight], lr=lr, momentum=0.9) for lr in (rate, 0.1))
    weight.grad = torch.ones(3)
    other.step()
    load_optimizer(optimizer, other.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate
    assert torch.equal(
        optimizer.state[weight]["momentum_buffer"], other.state[weight]["momentum_buffer"]
    )


@pytest.mark.parametrize("given, there", [(None, ":4096:8"), (":16:8", ":16:8")])
def test_what_torch_reads_at_its_first_matrix_product_on_a_gpu_is_there_once_the_package_is_imported(
    given, there, monkeypatch
):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG") if given is None else monkeypatch.setenv(
        "CUBLAS_WORKSPACE_CONFIG", given
    )
    runpy.run_path(execution.__file__)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == there


@pytest.mark.parametrize(
    "how", [dict(threads=2), dict(deterministic=False), dict(device="cpu")], ids=str
)
def test_runs_that_are_executed_otherwise_do_not_train_together(how, outputs, in_a_line):
    configs = [
        RunConfig.preset("smoke", "mixshare", 1),
        RunConfig.preset("smoke", "mixshare", 2, **how),
    ]
    with pytest.raises(ValueError) as caught:
        mixshare.train_together(configs)
    assert next(iter(how)) in in_a_line(caught.value) and not any(outputs.rglob("*"))


def full(*anything):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB …")


@pytest.mark.parametrize(
    "place, name",
    [
        (Data, "to"),
        (runs, "build_model"),
        (Step, "begin"),
        (Step, "__call__"),
        (training, "test_logits"),
    ],
    ids=["data", "network", "draws", "step", "figures"],
)
def test_a_gpu_without_memory_is_one_line_wherever_it_is_wanted(
    place, name, monkeypatch, in_a_line
):
    monkeypatch.setattr(place, name, full)
    with pytest.raises(OSError) as caught:
        mixshare.train(RunConfig.preset("smoke", "mixshare"))
    assert "batch_size" in in_a_line(caught.value)


TOGETHER = [
    ("mixshare", 1, {}),
    ("single", 1, {}),
    ("cut_mixmo", 2, dict(epochs=3)),
    ("mixshare", 2, {}),
]


def test_runs_trained_together_are_to_the_bit_what_each_is_alone(finished, contents):
    configs = [
        RunConfig.preset("smoke", method, seed, **overrides) for method, seed, overrides in TOGETHER
    ]
    together = mixshare.train_together([*configs, configs[0]])
    for run, (method, seed, overrides) in zip(together, [*TOGETHER, TOGETHER[0]], strict=True):
        assert contents(run.folder) == contents(finished(method, seed, **overrides).folder)


def test_where_one_of_several_can_not_go_on_the_others_do_and_its_reason_is_raised(
    contents, finished
):
    good, bad = (
        RunConfig.preset("smoke", "mixshare", 1, **overrides)
        for overrides in ({}, dict(learning_rate=1e20))
    )
    with pytest.raises(ArithmeticError, match="learning_rate=1e20"):
        mixshare.train_together([bad, good])
    assert (
        contents(runs.run_folder(good)) == contents(finished().folder)
        and not runs.Run(bad, runs.run_folder(bad)).folder.joinpath("metrics.json").exists()
    )


def chained(*anything):
    try:
        full()
    except torch.OutOfMemoryError as error:
        raise OSError("the GPU has no memory left for this run") from error


@pytest.mark.parametrize("fails", [full, chained])
def test_one_of_several_that_can_not_go_on_leaves_its_memory_to_the_others(fails, monkeypatch):
    network, left, step = [], [], training.Step.__call__

    def first_fails(self):
        if self.config.seed == 1:
            network.append(weakref.ref(self.model))
            fails()
        left.append(network[0]())
        step(self)

    monkeypatch.setattr(training.Step, "__call__", first_fails)
    with pytest.raises(OSError, match="no memory left for this run"):
        mixshare.train_together([RunConfig.preset("smoke", "single", seed) for seed in (1, 2)])
    assert left == [None] * 8


def test_what_one_of_several_can_not_do_is_found_before_any_of_them_starts(outputs):
    configs = [
        RunConfig.preset("smoke", "mixshare", 1),
        RunConfig.preset("smoke", "mixshare", 2, batch_size=4096, batch_repetition=1),
    ]
    with pytest.raises(ValueError, match="4096"):
        mixshare.train_together(configs)
    assert not any(outputs.rglob("*"))


@pytest.mark.parametrize(
    "how",
    [dict(capture=True), dict(deterministic=False), dict(threads=2), dict(device="cpu")],
    ids=str,
)
def test_how_a_run_is_executed_does_not_make_it_another_run(how, copied, monkeypatch):
    run = copied()
    monkeypatch.setattr(training, "Training", None)
    assert mixshare.train(RunConfig.preset("smoke", "mixshare", 1, **how)).folder == run.folder


DISTURBANCES = {
    "filling": lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "seed": lambda: torch.manual_seed(99),
    "threads": lambda: torch.set_num_threads(2),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "cuDNN's choices": lambda: setattr(torch.backends.cudnn, "benchmark", True),
}


@pytest.mark.parametrize("disturb", DISTURBANCES.values(), ids=DISTURBANCES)
@pytest.mark.parametrize("ending", ["finished", "diverged"])
def test_torchs_global_state_neither_changes_a_run_nor_is_changed_by_it(
    disturb, ending, settings, finished, contents
):
    disturb()
    before = settings()
    if ending == "finished":
        run = mixshare.train(finished().config)
        assert contents(run.folder) == contents(finished().folder)
    else:
        with pytest.raises(ArithmeticError):
            mixshare.train(RunConfig.preset("smoke", "single", learning_rate=1e20))
    assert settings() == before


@pytest.fixture
def settings():
    cudnn = torch.backends.cudnn

    def read():
        deterministic = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        more = (
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.get_float32_matmul_precision(),
            cudnn.allow_tf32,
            cudnn.benchmark,
        )
        return (
            torch.get_num_threads(),
            *deterministic,
            *more,
            hash(torch.get_rng_state().numpy().tobytes()),
        )

    threads, deterministic, warn_only, fill, precision, tf32, benchmark, _ = read()
    yield read
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_float32_matmul_precision(precision)
    cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (
            {"learning_rate": 1e20},
            r"loss is (nan|-?inf) in epoch 0, step [1-8]; try a learning_rate below 1e\+20",
        ),
        # the last update of all: no loss sees it any more
        (
            {"learning_rate": 1e6, "epochs": 1, "batch_size": 512},
            r"network's answers are not finite after the update in epoch 0, step 0",
        ),
    ],
)
def test_a_run_that_diverges_stops_with_the_epoch_the_step_and_what_to_try(
    outputs, in_a_line, overrides, what
):
    config = RunConfig.preset("smoke", "mixshare", 3, **overrides)
    with pytest.raises(ArithmeticError, match=what) as caught:
        mixshare.train(config)
    in_a_line(caught.value)
    assert not [path for path in outputs.rglob("*") if path.is_file()]


@pytest.mark.parametrize("watched", [False, True])
def test_progress_is_shown_to_a_person_who_watches_and_to_nobody_else(watched, monkeypatch, capfd):
    monkeypatch.setenv("JPY_SESSION_NAME", "chapter") if watched else monkeypatch.delenv(
        "JPY_SESSION_NAME", raising=False
    )
    mixshare.train(RunConfig.preset("smoke", "single"))
    shown = "".join(capfd.readouterr())
    assert (
        all(part in shown for part in ("single seed 1", "2/2", "loss=", "lr="))
        if watched
        else shown == ""
    )


@pytest.mark.cifar100
def test_real_images_are_learnt(monkeypatch):
    data = load_data("cifar100")
    few = replace(data, train_images=data.train_images[:1000], train_labels=data.train_labels[:1000],
                  test_images=data.test_images[:300], test_labels=data.test_labels[:300])  # fmt: skip
    monkeypatch.setattr(training, "load_data", lambda name: few)
    run = mixshare.train(RunConfig.preset("cifar100-lite", "mixshare", epochs=3, milestones=[]))
    assert run.history.loss.is_monotonic_decreasing
    assert run.history.loss.iloc[-1] < 0.98 * 2 * math.log(100)  # what guessing costs two members
