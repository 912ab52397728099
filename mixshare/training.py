"""Training a run: epochs of steps, checkpoints, exact resume.

A step is a function of (weights, draws) alone, and the plan gives the same draws on both sides of
a crash. So a checkpoint needs weights, momentum and the history, and no generator's state.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mixshare import runs
from mixshare.batch import Batches, Normalise
from mixshare.checks import Diverged, FileProblem
from mixshare.config import RunConfig
from mixshare.data import Data, load_data
from mixshare.execution import choose_device, in_jupyter, torch_settings
from mixshare.features import mean_alignment
from mixshare.files import sha256, write
from mixshare.metrics import accuracy, evaluate
from mixshare.model import MultiInput
from mixshare.plan import plan_epoch, steps_per_epoch
from mixshare.step import Step, learning_rate, load_optimizer, make_optimizer

CHECKPOINT_SECONDS = 5.0  # at the end of an epoch, but not more often than this
# Images evaluated at once: few fit a processor's caches, many fill a GPU.
EVALUATION_ROWS = {"cpu": 100, "mps": 500, "cuda": 500}
TEST_FIGURES = ("test_accuracy_ensemble", "test_accuracy_individual")  # of the history


def train(config: RunConfig) -> runs.Run:
    """Train a run, or resume it where it was cut off, or return it where it is finished.

    Raises:
        ValueError, OSError: It can't be trained or written.
        ArithmeticError: The loss is not finite.
    """
    if run := _finished(config):
        return run
    device = choose_device(config)
    try:
        with torch_settings(config, device):
            data = load_data(config.dataset)
            steps_per_epoch(config, len(data.train_images))  # refused before a folder is made
            build_model(config, data)
            return _train(config, data.to(device), device)
    except torch.OutOfMemoryError:
        raise FileProblem(
            "the GPU has no memory left for this run; possible are fewer runs at once, a smaller "
            "batch_size, or device='cpu'"
        ) from None


def _train(config: RunConfig, data: Data, device: torch.device) -> runs.Run:
    folder = runs.run_folder(config)
    with runs.training_lease(config) as check_lease:
        if run := _finished(config):  # by the process that had the lease before
            return run
        if reason := runs.mismatch(config, folder):  # another run is not overwritten
            raise FileProblem(f"{reason}; delete or move that folder, or set MIXSHARE_OUTPUTS")
        training = Training(config, data, device)
        training.run(folder / "checkpoint.pt", check_lease)
        model, labels = training.model, data.test_labels
        logits = test_logits(model, data, config.precision)
        metrics = evaluate(logits, labels) | {
            "accuracy_train": accuracy_train(model, data, config.precision),
            "provenance": training.provenance(),
        }
        return runs.save_run(config, model, training.history, logits, labels, metrics, check_lease)


def _finished(config: RunConfig) -> runs.Run | None:
    folder = runs.run_folder(config)
    if runs.unfinished_reason(config, folder) is not None:
        return None
    # A checkpoint is left where a run was killed after its very last file.
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return runs.Run(config, folder)


def build_model(config: RunConfig, data: Data) -> MultiInput:
    """Return the network that a run on these data starts from."""
    *size, channels = data.shape
    return runs.build_model(config, channels, len(data.class_names), size)


class Training:
    """A run in the making: network, optimizer, history, and what a checkpoint holds of them."""

    def __init__(self, config: RunConfig, data: Data, device: torch.device):
        self.config, self.data, self.device = config, data, device
        self.model = build_model(config, data).to(device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, config)
        self.batches = Batches(data, config)
        self.steps = steps_per_epoch(config, len(data.train_images))
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        # Read now: the checkout may change while the run trains.
        self.environment = runs.code_version() | runs.environment(config, device)
        self.earlier_environments: list[dict[str, Any]] = []
        self.capture_error: str | None = None

    def run(self, path: Path, check_lease: Callable[[], None]) -> None:
        """Train the epochs that are left, with a checkpoint at `path` now and then."""
        if path.exists():
            self.restore(path)
        step = Step(self.model, self.optimizer, self.batches, self.config)
        started = time.monotonic() - self.seconds
        due = time.monotonic() + CHECKPOINT_SECONDS
        with step, _progress_bar(self.config, len(self.history)) as bar:
            while len(self.history) < self.config.epochs:
                self.train_epoch(step)
                last = self.history[-1]
                rate = f"{last['learning_rate']:.2g}"
                bar.set_postfix(loss=f"{last['loss']:.3f}", lr=rate, refresh=False)
                bar.update()
                self.seconds = time.monotonic() - started
                if time.monotonic() >= due:
                    due = self.write_checkpoint(path, check_lease)
        self.seconds = time.monotonic() - started
        self.capture_error = step.capture_error

    def train_epoch(self, step: Step) -> None:
        """Train one epoch: its plan goes to the device once, its losses come back once."""
        epoch, (height, width, _) = len(self.history), self.data.shape
        plan = plan_epoch(self.config, epoch, len(self.data.train_images), height, width)
        rates = [learning_rate(self.config, epoch, k, self.steps) for k in range(self.steps)]
        self.model.train()
        step.begin(plan)
        for rate in rates:
            step(rate)
        losses = step.end()
        self.refuse_divergence(losses)
        self.history.append(
            {
                "epoch": epoch,
                "learning_rate": rates[-1],
                "loss": losses.double().mean().item(),
                **self.evaluate(epoch, losses),
                **mean_alignment(self.model),
            }
        )

    def evaluate(self, epoch: int, losses: Tensor) -> dict[str, float]:
        """Return the accuracies on the test set; NaN after an epoch that is not evaluated."""
        done, every = epoch + 1, self.config.evaluate_every
        if done % every and done != self.config.epochs:
            return dict.fromkeys(TEST_FIGURES, math.nan)
        logits = test_logits(self.model, self.data, self.config.precision)
        self.refuse_divergence(losses, logits)
        figures = evaluate(logits, self.data.test_labels)
        return {name: figures[name.removeprefix("test_")] for name in TEST_FIGURES}

    def refuse_divergence(self, losses: Tensor, logits: Tensor | None = None) -> None:
        """Raise ArithmeticError, with what to try, where a loss or an answer is not finite."""
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        if not bad and (logits is None or logits.isfinite().all()):
            return
        step = bad[0] if bad else len(losses) - 1
        what = (
            f"loss is {losses[step].item()}"
            if bad
            else "network's answers are not finite after the update"
        )
        raise Diverged(
            f"{self.config.name}, seed {self.config.seed}: the {what} in epoch "
            f"{len(self.history)}, step {step}; try a learning_rate below "
            f"{self.config.learning_rate:g}, more warmup_epochs, or precision='float32'"
        )

    def write_checkpoint(self, path: Path, check_lease: Callable[[], None]) -> float:
        """Write a checkpoint, and the history for people; return when the next one is due."""
        begun = time.monotonic()
        write(path, self.checkpoint(), check_lease)
        write(path.with_name("history.csv"), runs.history_csv(self.history), check_lease)
        done = time.monotonic()
        # On a slower disk less often, so that writing takes a twentieth of the time at most.
        return done + CHECKPOINT_SECONDS * max(1.0, 4 * (done - begun))

    def checkpoint(self) -> bytes:
        """Return all that the rest of the run depends on."""
        return runs.checkpoint(
            config_digest=self.config.digest,
            data_digest=self.data.digest,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            history=self.history,
            seconds=self.seconds,
            environments=[*self.earlier_environments, self.environment],
        )

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            OSError: It is damaged, or of another run, data set or version.
        """
        digests = {"config_digest": self.config.digest, "data_digest": self.data.digest}
        state = runs.load_checkpoint(path, **digests)
        try:
            self.model.load_state_dict(state["model"])
            load_optimizer(self.optimizer, state["optimizer"])
            self.history, self.seconds = list(state["history"]), float(state["seconds"])
            self.earlier_environments = [e for e in state["environments"] if e != self.environment]
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # of the device, not of the file
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise runs.damaged_checkpoint(path, type(error).__name__) from error

    def provenance(self) -> dict[str, Any]:
        """Return what made this run; where it was resumed elsewhere, earlier environments too."""
        init = self.config.init_weights or None
        return {
            "config_digest": self.config.digest,
            "data_digest": self.data.digest,
            "train_images": len(self.data.train_images),
            "image_shape": list(self.data.shape),
            "init_weights_digest": init and sha256(Path(init).read_bytes()),
            **self.environment,
            "earlier_environments": self.earlier_environments,
            "capture_error": self.capture_error,
            "wall_seconds": round(self.seconds, 3),
        }


def test_logits(model: nn.Module, data: Data, precision: str = "float32") -> Tensor:
    """Return the members' logits on the test set, as `predict` does."""
    return predict(model, data, data.test_images, precision)


def accuracy_train(model: nn.Module, data: Data, precision: str = "float32") -> float:
    """Return the ensemble's accuracy on the training images, without augmentation."""
    logits = predict(model, data, data.train_images, precision)
    return accuracy(logits.double().mean(dim=0), data.train_labels)


@torch.no_grad()
def predict(model: nn.Module, data: Data, images: Tensor, precision: str = "float32") -> Tensor:
    """Return the members' logits on images, each member given the same image.

    Args:
        model: The network; it is left in evaluation mode.
        data: Whose training images the pixels are normalised by.
        images: (N, H, W, C) uint8.
        precision: The run's.

    Returns:
        (M, N, classes) float16: rounded to what is kept on disk, so that every figure can be
        computed again from there.
    """
    model.eval()
    normalise, device = Normalise(data), images.device.type
    parts = []
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        for batch in images.split(EVALUATION_ROWS[device]):
            inputs = normalise.inputs(batch).expand(model.members, -1, -1, -1, -1)
            parts.append(model(inputs).half())
    return torch.cat(parts, dim=1)


def _progress_bar(config: RunConfig, done: int) -> tqdm:
    """Return a bar, shown where a person watches: in a terminal or an open notebook."""
    watched = in_jupyter() or (sys.stderr and not sys.stderr.closed and sys.stderr.isatty())
    label = f"{config.name} seed {config.seed}"
    return tqdm(total=config.epochs, initial=done, desc=label, unit="epoch", disable=not watched)
