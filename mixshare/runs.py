"""A run on disk: where it is, whether it is done, loading, checkpoints, and what made it.

A run's folder holds config.json, history.csv, weights.safetensors, test_logits.npz,
test_scores.npz, SHA256SUMS over all of them, and metrics.json, written last: a run is done when it
is whole, of the same configuration, and of the data set as it is now. While it is unfinished there
is checkpoint.pt, and .lease while a process trains it.
"""

import io
import os
import platform
import re
import reprlib
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import torch as safetensors
from torch import Tensor

from mixshare import files
from mixshare.checks import FileProblem
from mixshare.config import COMMON, EXECUTION, TIMM, WRN, RunConfig, fields_digest
from mixshare.data import current_digest
from mixshare.execution import torch_settings
from mixshare.files import display_path, outputs_folder, published_folder, read, read_json
from mixshare.metrics import image_scores
from mixshare.model import MimoWideResNet, MultiInput

CHECKSUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
SCORES = "test_scores.npz"  # earlier runs have none, but logits to compute them from
LARGE_FILES = ("weights.safetensors", "test_logits.npz")  # not published of every run
RUN_FILES = ("config.json", "history.csv", *LARGE_FILES, SCORES, CHECKSUMS, "metrics.json")
CHECKPOINT_FORMAT = 2


@dataclass(frozen=True)
class Run:
    """A finished run; its files are read when they are asked for."""

    config: RunConfig
    folder: Path

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Every figure of the last epoch, as fractions, and `provenance`."""
        return read_json(self.folder / "metrics.json")

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        return read(self.folder / "history.csv", pd.read_csv)

    @cached_property
    def logits(self) -> Tensor:
        """The members' logits on the test set, (M, N, classes) float16, in `load_data`'s order."""
        return torch.from_numpy(self._test_logits["logits"])

    @cached_property
    def labels(self) -> Tensor:
        """The labels of the test set, (N,) int64."""
        return torch.from_numpy(self._test_logits["labels"].astype(np.int64))

    @cached_property
    def _test_logits(self) -> dict[str, np.ndarray]:
        return read(self.folder / "test_logits.npz", _read_arrays)

    @property
    def has_logits(self) -> bool:
        """Whether the test logits are available; large ones are not all published."""
        return (self.folder / "test_logits.npz").is_file()

    @property
    def has_weights(self) -> bool:
        """Whether the weights are available; large ones are not all published."""
        return (self.folder / "weights.safetensors").is_file()

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """`metrics.image_scores`, from test_scores.npz, or from the logits where there is none."""
        path = self.folder / SCORES
        if path.is_file():
            return read(path, _read_arrays)
        scores = image_scores(self.logits, self.labels)
        return {name: value.numpy() for name, value in scores.items()}

    @property
    def has_scores(self) -> bool:
        """Whether the scores of each test image are available."""
        return self.has_logits or (self.folder / SCORES).is_file()

    @cached_property
    def model(self) -> MultiInput:
        """The trained network on the processor, in evaluation mode."""
        return self.model_for(self.metrics["provenance"]["image_shape"])

    def model_for(self, shape: Sequence[int]) -> MultiInput:
        """Return the trained network for images of this height, width and channels."""
        weights = read(self.folder / "weights.safetensors", safetensors.load_file)
        config, classes = replace(self.config, init_weights=""), len(weights["classifiers.0.bias"])
        with torch_settings():
            model = build_model(config, shape[2], classes, shape[:2])
            model.load_state_dict(weights)
        return model.eval()

    def untrained(self) -> MultiInput:
        """Return the network that the run started from, in evaluation mode."""
        answers = self.has_logits  # large ones are not published; then the weights are
        classes = self.logits.shape[2] if answers else self.model.classifiers[0].out_features
        *size, channels = self.metrics["provenance"]["image_shape"]
        with torch_settings():
            return build_model(self.config, channels, classes, size).eval()


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def build_model(
    config: RunConfig, channels: int, classes: int, size: Sequence[int] = ()
) -> MultiInput:
    """Return the network of a run, with the weights that its seed starts from.

    Args:
        config: The run.
        channels, size: C, and H and W of an image; networks of timm depend on the size.
        classes: How many.

    Raises:
        ValueError, OSError: It can't be built, or does not take images of this size.
    """
    shared = ("members", "encoder_init", "unmix_normalize", "unmix_resize", "tied")
    options = {name: getattr(config, name) for name in shared}
    options |= {"classes": classes, "channels": channels}
    options |= {"generator": torch.Generator("cpu").manual_seed(config.seed)}
    if config.network == WRN:
        model = MimoWideResNet(config.depth, config.width, **options)
    else:
        options |= {"size": size or None, "init_weights": config.init_weights}
        model = MultiInput.from_timm(config.network.removeprefix(TIMM), **options)
    if size:
        model.check_size(*size)
    return model


def run_folder(config: RunConfig, base: Path | None = None) -> Path:
    """Return `<base>/<profile>/<name>/seed-<n>`, by default in the outputs folder."""
    return (base or outputs_folder()) / config.profile / config.name / f"seed-{config.seed}"


def load(config: RunConfig) -> Run:
    """Load the finished run of a configuration: from the outputs folder, else a published one.

    Raises:
        OSError: There is none; says what is wrong with each.
    """
    reasons = []
    for base in (outputs_folder(), published_folder()):
        folder = run_folder(config, base)
        reason = unfinished_reason(config, folder)
        if reason is None:
            return Run(config, folder)
        if folder.exists():
            reasons.append(reason)
    nowhere = f"neither {display_path(run_folder(config))} nor a published one exists"
    raise FileProblem(
        f"no finished run of {config.method}, seed {config.seed}, profile {config.profile}: "
        f"{'; '.join(reasons) or nowhere}; mixshare.train(config) makes it"
    )


def unfinished_reason(config: RunConfig, folder: Path) -> str | None:
    """Return why `folder` holds no finished run of this configuration; None where it does."""
    if reason := config_mismatch(config, folder):
        return reason
    published = folder.is_relative_to(published_folder())
    needed = set(RUN_FILES) - {SCORES, *(LARGE_FILES if published else ())}
    if missing := [name for name in sorted(needed) if not (folder / name).is_file()]:
        return f"{display_path(folder)} has no {', '.join(missing)}"
    if name := first_corrupt_file(folder):
        return (
            f"{display_path(folder / name)} is damaged: it is not what {CHECKSUMS} says; delete "
            "it, and the run makes it again"
        )
    return _data_mismatch(config, folder)


def mismatch(config: RunConfig, folder: Path) -> str | None:
    """Return why `folder` holds another run, of another configuration or other data; else None."""
    reason = config_mismatch(config, folder)
    return reason or (None if first_corrupt_file(folder) else _data_mismatch(config, folder))


def _data_mismatch(config: RunConfig, folder: Path) -> str | None:
    """Compare a whole run's data set with that of the same name as it is now, where it is there."""
    try:
        stored = read_json(folder / "metrics.json")["provenance"]["data_digest"]
    except (OSError, KeyError, TypeError):
        return None
    now = current_digest(config.dataset)
    if now in (None, stored):
        return None
    return (
        f"{display_path(folder)} holds a run of other data: {config.dataset} has changed since "
        f"(digest {str(stored)[:12]}… there, {now[:12]}… now)"
    )


def config_mismatch(config: RunConfig, folder: Path) -> str | None:
    """Return in which fields `folder` holds a run of another configuration; None if in none."""
    try:
        # A field newer than the run had its default.
        stored, wanted = COMMON | read_json(folder / "config.json"), config.to_dict()
        if fields_digest(stored) == config.digest:
            return None
    except (OSError, AttributeError, TypeError):  # missing or damaged: it says nothing
        return None
    differences = [
        # a damaged file may hold any name
        f"{name if name in wanted else reprlib.repr(name)} {stored.get(name)!r} there, "
        f"{wanted.get(name)!r} here"
        for name in wanted | stored
        if name not in EXECUTION and stored.get(name) != wanted.get(name)
    ]
    return f"{display_path(folder)} holds a run of another configuration ({'; '.join(differences)})"


def first_corrupt_file(folder: Path) -> str | None:
    """Return the first file of a run whose digest is not that in its SHA256SUMS."""
    try:
        lines = (folder / CHECKSUMS).read_text("ascii").splitlines()
        wanted = dict(reversed(line.split("  ")) for line in lines)
    except (OSError, ValueError):
        return CHECKSUMS
    for name in _checked_files(folder):
        if wanted.get(name) != files.sha256((folder / name).read_bytes()):
            return name
    return None


def _checked_files(folder: Path) -> list[str]:
    return [name for name in RUN_FILES if name != CHECKSUMS and (folder / name).is_file()]


@contextmanager
def training_lease(config: RunConfig) -> Iterator[files.LeaseCheck]:
    """Let one process at a time train a run; the next waits here, and then finds it done.

    Yields as `files.exclusive_lease` does.

    Raises:
        OSError: The folder can't be written.
    """
    folder = run_folder(config)
    message = f"waiting for the process that trains {display_path(folder)} …"
    with files.exclusive_lease(folder / ".lease", message) as check_lease:
        files.remove_leftovers(folder / "*")
        yield check_lease


def save_run(
    config: RunConfig,
    model: MultiInput,
    history: list[dict],
    logits: Tensor,
    labels: Tensor,
    metrics: dict[str, Any],
    check_lease: files.LeaseCheck = files.no_lease,
) -> Run:
    """Write a finished run, metrics.json last, and remove its checkpoint."""
    folder = run_folder(config)
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    contents = {  # first of all: what can't be written whole is not begun
        "config.json": files.json_text(config.to_dict()).encode(),
        "history.csv": history_csv(history),
        "weights.safetensors": safetensors.save(weights),
        "test_logits.npz": logits_npz(logits, labels),
        SCORES: _npz(image_scores(logits, labels)),
        "metrics.json": files.json_text(metrics).encode(),
    }
    contents[CHECKSUMS] = _checksums(contents)
    for name in RUN_FILES:
        files.write(folder / name, contents[name], check_lease)
    check_lease()
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return Run(config, folder)


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS anew over a run's files as they are."""
    contents = {name: (folder / name).read_bytes() for name in _checked_files(folder)}
    files.write(folder / CHECKSUMS, _checksums(contents))


def _checksums(contents: dict[str, bytes]) -> bytes:
    lines = (f"{files.sha256(content)}  {name}\n" for name, content in contents.items())
    return "".join(lines).encode()


def history_csv(history: list[dict]) -> bytes:
    """Return history.csv, one row an epoch, figures to their last bit."""
    return pd.DataFrame(history).to_csv(index=False, lineterminator="\n").encode()


def logits_npz(logits: Tensor, labels: Tensor) -> bytes:
    """Return test_logits.npz: logits (M, N, classes) float16, labels (N,) int32."""
    return _npz({"logits": logits, "labels": labels.int()})


def _npz(tensors: dict[str, Tensor]) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **{name: each.cpu().numpy() for name, each in tensors.items()})
    return content.getvalue()


def checkpoint(**state: Any) -> bytes:
    """Return what an unfinished run keeps: tensors and plain values, by name."""
    content = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, **state}, content)
    return content.getvalue()


def load_checkpoint(path: Path, **wanted: Any) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the processor; no code in it is run.

    Raises:
        OSError: It is damaged, of another format, or its values differ from those `wanted`.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself overlooks a flipped bit
            if archive.testzip():
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
        wanted = {"format": CHECKPOINT_FORMAT, **wanted}
        other = next((name for name in wanted if state.get(name) != wanted[name]), None)
    except Exception as error:  # torch, zipfile and pickle have many kinds of error here
        raise damaged_checkpoint(path, type(error).__name__) from error
    if other:
        mismatch = f"its {other.replace('_', ' ')} is {state.get(other)}, wanted is {wanted[other]}"
        raise _useless_checkpoint(path, f"of another run: {mismatch}")
    return state


def damaged_checkpoint(path: Path, reason: str) -> FileProblem:
    """Return the error for a file that a run can't go on from."""
    return _useless_checkpoint(path, f"damaged or no checkpoint ({reason})")


def _useless_checkpoint(path: Path, problem: str) -> FileProblem:
    return FileProblem(f"{display_path(path)} is {problem}; delete it to start this run over")


def environment(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Return what decides a run's last bits besides its configuration; no user, host or folder."""
    gpu = device.type == "cuda"
    processor = f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which weights_only refuses to load
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "system": platform.system(),
        "device": torch.cuda.get_device_name(device) if gpu else processor,
        "threads": config.threads,
        "deterministic": config.deterministic,
        "capture": config.capture and gpu,
        "onednn_isa": os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA"),
    }


# Variables that name a repository: in a hook of another one, that.
_GIT_NAMES = [f"GIT_{name}" for name in ("DIR", "WORK_TREE", "COMMON_DIR", "INDEX_FILE")]


def code_version() -> dict[str, Any]:
    """Return the checkout's commit, and whether its tracked files are so, outputs left out."""
    root, text = Path(__file__).resolve().parents[1], ""
    # The checkout may be another user's; its code runs already.
    command = ["git", "-c", "safe.directory=*", "-C", str(root), "status", "--porcelain=v2"]
    command += ["--branch", "--untracked-files=no", ":!outputs"]
    environment = {name: os.environ[name] for name in os.environ if name not in _GIT_NAMES}
    options = {"capture_output": True, "text": True, "timeout": 20, "env": environment}
    if (root / ".git").exists():  # else installed or unpacked: a repository around it is not ours
        with suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run(command, **options).stdout
    commit = re.search("^# branch.oid ([0-9a-f]{40})$", text, re.M)
    clean = not re.search("^[^#]", text, re.M) if commit else None
    return {"git_commit": commit and commit[1], "git_clean": clean}
