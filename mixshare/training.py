"""Training runs, one or several side by side: epochs of steps, checkpoints, exact resume.

A step is a function of (weights, draws) alone, and the plan gives the same draws on both sides of a crash. So a checkpoint needs
weights, momentum and the number of epochs done, and no generator's state.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mixshare import checkpoint, runs
from mixshare.batch import Batches, Normalise
from mixshare.config import RunConfig
from mixshare.data import Data, load_data
from mixshare.errors import Diverged, FileProblem, InvalidValue
from mixshare.execution import choose_device, execution, in_jupyter, process
from mixshare.features import mean_alignment
from mixshare.files import need_room, write
from mixshare.metrics import accuracies, evaluate
from mixshare.plan import plan_epoch, steps_per_epoch
from mixshare.step import Step, learning_rate, load_optimizer, make_optimizer

CHECKPOINT_SECONDS = 5.0  # at the end of an epoch, but not more often than this
QUICK_WRITE = 0.25  # seconds; the wait grows with a slower one, so that writing takes a twentieth of the time at most
EVALUATION_ROWS = {
    "cpu": 100,
    "mps": 500,
    "cuda": 500,
}  # images at once: few fit a processor's caches, many fill a GPU
OUT_OF_MEMORY = "the GPU has no memory left for this run; possible are fewer runs at once, a smaller batch_size, or device='cpu'"
NEEDED_BYTES = 5_000_000  # on disk, besides weights and momentum and their copies


def train(config: RunConfig) -> runs.Run:
    """Train a run, or resume it where it was cut off, or return it where it is finished.

    Raises ValueError or OSError, in a line, where it can't be trained or written, and ArithmeticError where the loss is not finite.
    """
    return train_together([config])[0]


def train_together(configs: Sequence[RunConfig]) -> list[runs.Run]:
    """`train` several runs side by side, their steps in turn: each comes out as it does alone.

    For small networks on one GPU, where each run's steps go to a stream of its own. Where one can't go on, the others do, and what
    stopped the first is raised at the end. Raises ValueError where the runs differ in device, threads or determinism.
    """
    by_folder = {runs.run_folder(config): config for config in configs if _finished(config) is None}
    waiting = [
        by_folder[folder] for folder in sorted(by_folder)
    ]  # everybody takes locks in this order, so nobody waits in a circle
    if len(set(map(process, waiting))) > 1:
        raise InvalidValue(
            "runs that differ in device, threads or deterministic can't train together; possible is one by one"
        )
    if waiting:
        data = {name: load_data(name) for name in {config.dataset for config in waiting}}
        device = choose_device(waiting[0])  # what can't be done is found before a folder is made
        for config in waiting:
            steps_per_epoch(config, len(data[config.dataset].train_images))
        try:
            with execution(waiting[0], device):
                there = {name: loaded.to(device) for name, loaded in data.items()}
                _in_turn([_trained(config, there[config.dataset], device) for config in waiting])
        except torch.OutOfMemoryError:
            raise FileProblem(OUT_OF_MEMORY) from None
    return [runs.Run(config, runs.run_folder(config)) for config in configs]


def _in_turn(pieces: Sequence[Generator[None, None, None]]) -> None:
    """Advance each by one piece, again and again, until all have ended; raises the first error that ended one."""
    going, errors = list(pieces), []
    with ExitStack() as stack:
        for piece in pieces:
            stack.callback(piece.close)
        while going:
            for piece in list(going):
                try:
                    next(piece)
                except StopIteration:
                    going.remove(piece)
                except (ValueError, OSError, ArithmeticError, torch.OutOfMemoryError) as error:
                    going.remove(piece)
                    if not going and not errors:
                        raise
                    errors.append(
                        copy(error)
                    )  # without traceback and context, which would keep a network on the device
    if errors:
        raise errors[0]


def _trained(config: RunConfig, data: Data, device: torch.device) -> Generator[None, None, None]:
    """Train a run from where it stands to its saved result, pausing after every step."""
    folder = runs.run_folder(config)
    need_room(folder, NEEDED_BYTES)
    with runs.only_writer(config) as hold:
        if _finished(config):
            return
        if reason := runs.foreign(config, folder):  # somebody's result: it is not overwritten
            raise FileProblem(f"{reason}; delete or move that folder, or set MIXSHARE_OUTPUTS")
        training = Training(config, data, device)
        yield from training.run(folder / "checkpoint.pt", hold)
        logits, labels = test_logits(training.model, data), data.test_labels
        metrics = evaluate(logits, labels) | {"provenance": training.provenance()}
        runs.save(config, training.model, training.history, logits, labels, metrics, hold)


class Training:
    """A run in the making: network, optimizer, history, and what a checkpoint holds of them."""

    def __init__(self, config: RunConfig, data: Data, device: torch.device):
        self.config, self.data, self.device = config, data, device
        height, width, channels = data.shape
        self.model = runs.build_model(config, channels, len(data.class_names)).to(
            device, memory_format=torch.channels_last
        )
        self.optimizer = make_optimizer(self.model, config)
        self.batches = Batches(data, config)
        self.steps = steps_per_epoch(config, len(data.train_images))
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.environment = runs.code_version() | runs.environment(
            config, device
        )  # of now: somebody may commit while it trains
        self.earlier_environments: list[dict[str, Any]] = []

    def run(self, path: Path, hold: Callable[[], None]) -> Iterator[None]:
        """Train the epochs that are left, keeping a checkpoint at `path` while `hold` allows it; pauses after every step."""
        need_room(path.parent, 16 * sum(p.numel() for p in self.model.parameters()) + NEEDED_BYTES)
        if path.exists():
            self.restore(path)
        step = Step(self.model, self.optimizer, self.batches, self.config)
        since = time.monotonic()
        due = since + CHECKPOINT_SECONDS
        with _progress(self.config, len(self.history)) as bar:
            while len(self.history) < self.config.epochs:
                for _ in self.epoch(step):
                    self.seconds += (
                        time.monotonic() - since
                    )  # not the turns of those beside it; a GPU may be at their steps meanwhile
                    yield
                    since = time.monotonic()
                bar.set_postfix(
                    loss=f"{self.history[-1]['loss']:.3f}",
                    lr=f"{self.history[-1]['learning_rate']:.2g}",
                    refresh=False,
                )
                bar.update()
                begun = time.monotonic()
                self.seconds, since = (
                    self.seconds + begun - since,
                    begun,
                )  # the epoch's end, and its figures
                if begun >= due:
                    write(path, self.save, hold)
                    runs.write_history(
                        path.parent, self.history, hold
                    )  # for a person who watches; resuming reads the checkpoint
                    due = (done := time.monotonic()) + CHECKPOINT_SECONDS * max(
                        1.0, (done - begun) / QUICK_WRITE
                    )
        self.seconds += time.monotonic() - since  # the last checkpoint

    def epoch(self, step: Step) -> Iterator[None]:
        """Train one epoch, pausing after every step; its plan goes to the device once, its losses come back once."""
        epoch, (height, width, _) = len(self.history), self.data.shape
        rates = [learning_rate(self.config, epoch, k, self.steps) for k in range(self.steps)]
        self.model.train()
        step.begin(
            plan_epoch(self.config, epoch, len(self.data.train_images), height, width), rates
        )
        for _ in rates:
            step()
            yield
        losses = step.end()
        logits = test_logits(self.model, self.data)
        self.refuse_divergence(losses, logits)
        self.history.append({
            "epoch": epoch,
            "learning_rate": rates[-1],
            "loss": losses.double().mean().item(),
            **{f"test_{name}": value for name, value in accuracies(logits, self.data.test_labels).items()},
            **mean_alignment(self.model),
        })  # fmt: skip

    def refuse_divergence(self, losses: Tensor, logits: Tensor) -> None:
        """Raises ArithmeticError, with the epoch, the step and what to try, where a loss or what came of it is not finite."""
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        if not bad and logits.isfinite().all():
            return
        step = bad[0] if bad else len(losses) - 1
        what = (
            f"loss is {losses[step].item()}"
            if bad
            else "network's answers are not finite after the update"
        )
        raise Diverged(
            f"{self.config.name}, seed {self.config.seed}: the {what} in epoch {len(self.history)}, step {step}; "
            f"try a learning_rate below {self.config.learning_rate:g}, more warmup_epochs, or precision='float32'"
        )

    def save(self, path: Path) -> None:
        """Write all that the rest of the run depends on."""
        checkpoint.save(
            path,
            config_digest=self.config.digest,
            data_digest=self.data.digest,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            history=self.history,
            seconds=self.seconds,
            environments=[*self.earlier_environments, self.environment],
        )

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; raises OSError where it is damaged, or of another run, data set or version."""
        state = checkpoint.load(
            path, config_digest=self.config.digest, data_digest=self.data.digest
        )
        try:
            self.model.load_state_dict(state["model"])
            load_optimizer(self.optimizer, state["optimizer"])
            self.history, self.seconds = list(state["history"]), float(state["seconds"])
            self.earlier_environments = [e for e in state["environments"] if e != self.environment]
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # of the device, not of the file
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise checkpoint.damaged(path, type(error).__name__) from error

    def provenance(self) -> dict[str, Any]:
        """What made this run; where it was resumed elsewhere, the environments of the earlier sittings too."""
        return {
            "config_digest": self.config.digest,
            "data_digest": self.data.digest,
            "train_images": len(self.data.train_images),
            "image_shape": list(self.data.shape),
            **self.environment,
            "earlier_environments": self.earlier_environments,
            "wall_seconds": round(self.seconds, 3),
        }


@torch.no_grad()
def test_logits(model: nn.Module, data: Data) -> Tensor:
    """The members' logits on the test set, every member given the same image: (M, N, classes) float16.

    Rounded to what is kept on disk, so that every figure can be computed again from there.
    """
    model.eval()
    normalise = Normalise(data)
    parts = []
    for images in data.test_images.split(EVALUATION_ROWS[data.test_images.device.type]):
        inputs = normalise.inputs(images).expand(model.members, -1, -1, -1, -1)
        parts.append(model(inputs).half())
    return torch.cat(parts, dim=1)


def _finished(config: RunConfig) -> runs.Run | None:
    folder = runs.run_folder(config)
    if runs.problem(config, folder) is not None:
        return None
    (folder / "checkpoint.pt").unlink(
        missing_ok=True
    )  # left where a run was killed after its very last file
    return runs.Run(config, folder)


def _progress(config: RunConfig, done: int) -> tqdm:
    """A bar where a person watches: a terminal, or a notebook opened in Jupyter."""
    watched = sys.stderr.isatty() or in_jupyter()
    return tqdm(
        total=config.epochs,
        initial=done,
        desc=f"{config.name} seed {config.seed}",
        unit="epoch",
        disable=not watched,
    )
