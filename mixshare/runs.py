"""A run on disk: where it lies, whether it is done, loading, and what made it.

A run's folder holds config.json, history.csv, weights.safetensors, test_logits.npz, SHA256SUMS over all of them, and metrics.json,
which is written last: a run is done when it is whole and of the same configuration. checkpoint.pt lies there while the run is
unfinished, .lease while a process trains it.
"""

import platform
import re
import reprlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors

from mixshare.config import COMMON, EXECUTION, RunConfig, fields_digest
from mixshare.errors import FileProblem
from mixshare.files import (
    free,
    json_text,
    only_one,
    outputs_folder,
    project_root,
    published_folder,
    read_json,
    sha256,
    shown,
    write,
    write_text,
)
from mixshare.model import MimoWideResNet

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
RUN_FILES = (
    "config.json",
    "history.csv",
    "weights.safetensors",
    "test_logits.npz",
    SUMS,
    "metrics.json",
)
LARGE_FILES = (
    "test_logits.npz",
    "weights.safetensors",
)  # published for every seed only where they are small, the latter rather


@dataclass(frozen=True)
class Run:
    """A finished run; what it holds is read when it is asked for."""

    config: RunConfig
    folder: Path

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Every figure of the last epoch, as fractions, and `provenance`."""
        return read_json(self.folder / "metrics.json")

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        return _read(self.folder / "history.csv", lambda path: pd.read_csv(path))

    @cached_property
    def logits(self) -> torch.Tensor:
        """The members' logits on the test set, (M, N, classes) float16, rows as `load_data` orders them."""
        return torch.from_numpy(self._answers["logits"])

    @cached_property
    def labels(self) -> torch.Tensor:
        """The labels of the test set, (N,) int64."""
        return torch.from_numpy(self._answers["labels"].astype(np.int64))

    @cached_property
    def _answers(self) -> dict[str, np.ndarray]:
        return _read(self.folder / "test_logits.npz", _arrays)

    @property
    def has_logits(self) -> bool:
        """Whether the test logits are there; of large profiles they are published for the first seed only."""
        return (self.folder / "test_logits.npz").is_file()

    @cached_property
    def model(self) -> MimoWideResNet:
        """The trained network on the processor, in evaluation mode."""
        weights = _read(self.folder / "weights.safetensors", load_file)
        channels, classes = (
            weights["encoders.0.weight"].shape[1],
            weights["classifiers.0.bias"].shape[0],
        )
        model = build_model(self.config, channels, classes)
        model.load_state_dict(weights)
        return model.eval()


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in ("logits", "labels")}


def _read(path: Path, reader) -> Any:
    remedy = "mixshare.train makes the run again once its folder is deleted"
    if path.is_relative_to(published_folder()):
        remedy = "not every published run has them; mixshare.train makes the run anew"
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise FileProblem(f"{shown(path)} is missing; {remedy}") from error
    except Exception as error:  # each format's reader has errors of its own for a damaged file
        raise FileProblem(f"{shown(path)} is damaged ({type(error).__name__}); {remedy}") from error


def build_model(config: RunConfig, channels: int, classes: int) -> MimoWideResNet:
    """The network of a run, with the weights that its seed starts from."""
    return MimoWideResNet(
        depth=config.depth,
        width=config.width,
        members=config.members,
        classes=classes,
        channels=channels,
        encoder_init=config.encoder_init,
        unmix_normalize=config.unmix_normalize,
        unmix_resize=config.unmix_resize,
        tied=config.tied,
        generator=torch.Generator().manual_seed(config.seed),
    )


def run_folder(config: RunConfig, base: Path | None = None) -> Path:
    """`<base>/<profile>/<name>/seed-<n>`, by default in the outputs folder."""
    return (base or outputs_folder()) / config.profile / config.name / f"seed-{config.seed}"


def problem(config: RunConfig, folder: Path) -> str | None:
    """Why the run in `folder` is not a finished run of this configuration, in a line; None where it is."""
    if reason := foreign(config, folder):
        return reason
    needed = [
        name
        for name in RUN_FILES
        if name not in LARGE_FILES or not folder.is_relative_to(published_folder())
    ]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        return f"{shown(folder)} has no {', '.join(missing)}"
    if name := changed(folder):
        return f"{shown(folder / name)} is damaged: it is not what {SUMS} says; delete it, and the run makes it again"
    try:
        digest = read_json(folder / "metrics.json")["provenance"]["config_digest"]
        whole = digest == fields_digest(read_json(folder / "config.json"))
    except OSError as error:
        return str(error)
    except (KeyError, TypeError, AttributeError):
        whole = False
    return (
        None
        if whole
        else f"{shown(folder / 'metrics.json')} is damaged or of another run; delete it, and the run makes it again"
    )


_SUM = r"([0-9a-f]{64})  ([A-Za-z0-9_.]+)\n"  # a line of SHA256SUMS


def changed(folder: Path) -> str | None:
    """The first file of a run whose digest is not, or not rightly, in its SHA256SUMS."""
    try:
        text = (folder / SUMS).read_bytes().decode("ascii")
    except (OSError, ValueError):
        return SUMS
    if not re.fullmatch(f"({_SUM})+", text):
        return SUMS
    sums = {name: digest for _, digest, name in re.findall(f"({_SUM})", text)}
    there = (name for name in RUN_FILES if name != SUMS and (folder / name).is_file())
    return next(
        (name for name in there if sums.get(name) != sha256((folder / name).read_bytes())), None
    )


def foreign(config: RunConfig, folder: Path) -> str | None:
    """That `folder` holds a run of another configuration, and in which fields, in a line; None where it does not."""
    try:
        there, here = (
            COMMON | read_json(folder / "config.json"),
            config.to_dict(),
        )  # a field newer than the run had its default
        if fields_digest(there) == config.digest:
            return None
        names = [
            name
            for name in {**here, **there}
            if name not in EXECUTION and there.get(name) != here.get(name)
        ]
    except (OSError, AttributeError, TypeError):  # none there, or one that says nothing
        return None
    told = {
        name: name if name in here else reprlib.repr(name) for name in names
    }  # a damaged file may hold any name
    differences = "; ".join(
        f"{told[name]} {there.get(name)!r} there, {here.get(name)!r} here" for name in names
    )
    return f"{shown(folder)} holds a run of another configuration ({differences})"


def load(config: RunConfig) -> Run:
    """The finished run of a configuration: from the outputs folder, else from the published results.

    Raises OSError, saying what is wrong with each, where neither has it.
    """
    reasons = []
    for base in (outputs_folder(), published_folder()):
        folder = run_folder(config, base)
        reason = problem(config, folder)
        if reason is None:
            return Run(config, folder)
        reasons.append(reason)
    damaged = run_folder(config).exists() or run_folder(config, published_folder()).exists()
    detail = (
        "; ".join(reasons)
        if damaged
        else f"neither {shown(run_folder(config))} nor a published one exists"
    )
    raise FileProblem(
        f"no finished run of {config.method}, seed {config.seed}, profile {config.profile}: {detail}; mixshare.train(config) makes it"
    )


@contextmanager
def only_writer(config: RunConfig) -> Iterator[Callable[[], None]]:
    """Hold the run's folder: two processes never train the same run; the second waits here and then finds it done.

    Yields the hold, as `files.only_one` does. Raises OSError where the folder can't be written.
    """
    folder = run_folder(config)
    with only_one(
        folder / ".lease", f"waiting for the process that trains {shown(folder)} …"
    ) as hold:
        for left in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        yield hold


def save(
    config: RunConfig,
    model: MimoWideResNet,
    history: list[dict],
    logits: torch.Tensor,
    labels: torch.Tensor,
    metrics: dict[str, Any],
    hold: Callable[[], None] = free,
) -> Run:
    """Write a finished run, metrics.json last, and drop its checkpoint; each while its folder is held."""
    folder = run_folder(config)
    figures = json_text(metrics)  # first: nothing is written of what could not be written whole
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    write_text(folder / "config.json", json_text(config.to_dict()), hold)
    write_history(folder, history, hold)
    write(folder / "weights.safetensors", lambda path: path.write_bytes(safetensors(weights)), hold)
    write(folder / "test_logits.npz", lambda path: save_logits(path, logits, labels), hold)
    write_sums(folder, {"metrics.json": figures.encode()}, hold)
    write_text(folder / "metrics.json", figures, hold)
    hold()
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return Run(config, folder)


def write_sums(
    folder: Path, coming: dict[str, bytes] | None = None, hold: Callable[[], None] = free
) -> None:
    """Write SHA256SUMS over a run's files as they lie there, those still `coming` by their content."""
    names = [
        name
        for name in RUN_FILES
        if name != SUMS and ((folder / name).is_file() or name in (coming or {}))
    ]
    contents = ((coming or {}).get(name) or (folder / name).read_bytes() for name in names)
    write_text(
        folder / SUMS,
        "".join(f"{sha256(content)}  {name}\n" for name, content in zip(names, contents)),
        hold,
    )


def write_history(folder: Path, history: list[dict], hold: Callable[[], None] = free) -> None:
    """Write history.csv, one row an epoch, figures to their last bit."""
    write_text(folder / "history.csv", pd.DataFrame(history).to_csv(index=False), hold)


def save_logits(path: Path, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Write test_logits.npz: logits (M, N, classes) float16, labels (N,)."""
    with open(path, "wb") as file:
        np.savez_compressed(
            file, logits=logits.cpu().numpy(), labels=labels.cpu().numpy().astype(np.int32)
        )


def environment(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What decides a run's last bits besides its configuration: versions, device, threads. Names no user, host or folder."""
    gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which weights_only refuses to load
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "system": platform.system(),
        "device": torch.cuda.get_device_name(device)
        if gpu
        else f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": config.threads,
        "deterministic": config.deterministic,
        "capture": config.capture and gpu,
    }


def code_version() -> dict[str, Any]:
    """The git commit of the checkout that runs, and whether its tracked files were as committed; None outside of one."""
    root = project_root()
    if not (
        root / "pyproject.toml"
    ).is_file():  # installed somewhere; the current folder's repository is not ours
        return {"git_commit": None, "git_clean": None}
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(root), *words],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_clean": None}
    return {"git_commit": commit, "git_clean": not status}
