"""The folded network of a run with its normalisation inside: answers, ONNX, torch's archive, sizes.

One interface everywhere: pixels (N, C, H, W) uint8 in, logits (N, K) float32 out, N free.
Dimensions: N images, C colour channels, H and W of an image, K classes.
"""

import io
import json
import timeit
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mixshare import __version__, files, runs
from mixshare.batch import Normalise
from mixshare.checks import FileProblem, InvalidValue, check_choice
from mixshare.config import RunConfig
from mixshare.data import Data, load_data
from mixshare.deploy import card, images
from mixshare.execution import torch_settings
from mixshare.model import fold

ROWS = 100  # images at once
Answer = Callable[[np.ndarray], np.ndarray]  # pixels (N, C, H, W) uint8 to logits (N, K)


def open_run(folder: Path) -> runs.Run:
    """Return the finished run in a folder.

    Raises:
        OSError: There is none; says what is missing or damaged.
    """
    path = folder.resolve() / "config.json"
    if not path.is_file():
        raise FileProblem(f"{images.printable(folder)} is no run's folder; `train` ends with one")
    config = files.read(path, lambda path: RunConfig.from_dict(files.read_json(path)))
    if reason := runs.unfinished_reason(config, path.parent):
        raise FileProblem(f"no finished run: {reason}")
    return runs.Run(config, path.parent)


def training_data(run: runs.Run) -> Data:
    """Return what a run was trained on, for its pixels' statistics and its classes' names.

    Raises:
        OSError: It is not on this machine.
    """
    try:
        return load_data(run.config.dataset)
    except FileProblem as error:
        needed = "the means of the training pictures, and the names of their classes"
        raise FileProblem(f"needed are {needed}, but {error}") from error


class Deployed(nn.Module):
    """A run's folded network with its normalisation inside."""

    def __init__(self, run: runs.Run, data: Data):
        super().__init__()
        self.network, normalise = fold(run.model), Normalise(data)
        self.scale, self.shift = nn.Buffer(normalise.scale), nn.Buffer(normalise.shift)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of pixels (N, C, H, W) uint8."""
        return self.network((images * self.scale - self.shift).unsqueeze(0)).squeeze(0)


@torch.no_grad()
def predict(run: runs.Run, images: Tensor) -> pd.DataFrame:
    """Return the likeliest class of each image, `answer`, and its probability, `confidence`.

    Args:
        run: A finished run.
        images: (N, H, W, C) uint8, of the shape that the run was trained on.
    """
    data = training_data(run)
    with torch_settings(run.config):
        network = Deployed(run, data)
        logits = torch.cat([network(part) for part in images.permute(0, 3, 1, 2).split(ROWS)])
    confidence, answers = logits.softmax(dim=1).max(dim=1)
    names = [data.class_names[answer] for answer in answers]
    return pd.DataFrame({"answer": names, "confidence": confidence})


def metadata(run: runs.Run, data: Data) -> dict[str, Any]:
    """Return what an exported network's users must know, and what it was made from."""
    height, width, channels = data.shape
    colours = "grey" if channels == 1 else "RGB"
    return {
        "classes": list(data.class_names),
        "input": f"`images`, uint8 (N, {channels}, {height}, {width}), {colours} from 0 to 255",
        "output": f"`logits`, float32 (N, {len(data.class_names)}); softmax makes probabilities",
        "preprocessing": images.PREPROCESSING,
        "config": run.config.to_dict(),
        "data_digest": data.digest,
        "version": __version__,
    }


def _program(run: runs.Run, data: Data) -> torch.export.ExportedProgram:
    """Trace the deployed network for any number of images."""
    height, width, channels = data.shape
    # With one image for an example, their number would be fixed at one.
    example = torch.zeros(2, channels, height, width, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("N")},)
    with torch.no_grad():
        program = torch.export.export(Deployed(run, data), (example,), dynamic_shapes=shapes)
    for graph in (module.graph for module in program.graph_module.modules()):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def to_onnx(run: runs.Run, data: Data) -> bytes:
    """Return the network as an ONNX model, with `metadata` in its metadata_props, JSON by key."""
    _extra("onnxscript")
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": [{0: "N"}]}
    program = torch.onnx.export(_program(run, data), dynamo=True, verbose=False, **names)
    texts = {key: json.dumps(value) for key, value in metadata(run, data).items()}
    program.model.metadata_props.update(texts)
    return program.model_proto.SerializeToString()


def to_torch(run: runs.Run, data: Data) -> bytes:
    """Return the network as an archive for `torch.export.load`, with metadata.json inside."""
    content, extra = io.BytesIO(), {"metadata.json": json.dumps(metadata(run, data))}
    torch.export.save(_program(run, data), content, extra_files=extra)
    return content.getvalue()


def from_onnx(content: bytes) -> Answer:
    """Return an ONNX model as a function, on one thread."""
    runtime = _extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def from_torch(content: bytes) -> Answer:
    """Return torch's archive as a function."""
    network = torch.export.load(io.BytesIO(content)).module()
    return lambda images: network(torch.from_numpy(images)).detach().numpy()


# Suffix, writer and reader.
FORMATS = {"onnx": (".onnx", to_onnx, from_onnx), "torch": (".pt2", to_torch, from_torch)}


def export(run: runs.Run, kind: str = "onnx", out: Path | None = None) -> tuple[Path, str]:
    """Export a run's network, try it on all test images, and write it with a model card beside.

    Args:
        run: A finished run.
        kind: A key of FORMATS.
        out: The file's path; by default in `<outputs folder>/exported`.

    Returns:
        The file's path, and a sentence that compares its answers with the run's.

    Raises:
        ValueError, OSError: It can't be exported or written, or another README.md lies beside.
    """
    check_choice("format", kind, FORMATS)
    suffix, to_bytes, from_bytes = FORMATS[kind]
    out = out or runs.run_folder(run.config, files.outputs_folder() / "exported") / f"model{suffix}"
    if out.suffix != suffix:
        raise InvalidValue(f"--out is {out}; for the format {kind} wanted is a name in {suffix}")
    readme, data = out.with_name(card.NAME), training_data(run)
    if readme.is_file() and card.MARK not in readme.read_text("utf-8", errors="replace"):
        raise FileProblem(f"{readme} is not of mixshare, and would be lost; choose another folder")
    with warnings.catch_warnings(action="ignore"):  # of what torch's exporters do themselves
        content = to_bytes(run, data)
        comparison = compare(run, data, from_bytes(content), out.name)
    files.write(out, content)
    files.write_text(readme, card.text(run, metadata(run, data), out.stem, comparison))
    return out, comparison


def compare(run: runs.Run, data: Data, network: Answer, name: str) -> str:
    """Return a sentence on a network's accuracy on all test images, beside the run's."""
    parts = data.test_images.permute(0, 3, 1, 2).contiguous().split(ROWS)
    answers = np.concatenate([network(part.numpy()).argmax(axis=1) for part in parts])
    right, same = answers == data.test_labels.numpy(), answers == run.scores["answer"][0]
    shares = f"{right.mean():.2%}, the run's {run.metrics['accuracy_ensemble']:.2%}"
    return f"{name}: accuracy {shares}; {same.sum()} of all {len(same)} test answers are the same"


def sizes(run: runs.Run, rounds: int = 50) -> pd.DataFrame:
    """Measure a run's network as it was trained, folded, and exported as ONNX.

    One image at a time on one thread, already normalised but for the exported network; the three
    take turns.

    Returns:
        A row a `network` (ONNX only with the extra `deploy`): `bytes`, of weights and buffers or of
        the file; `milliseconds` an image, the median over the rounds, between its quartiles.
    """
    data, model, folded = training_data(run), run.model, fold(run.model)
    pixels = data.test_images[:1]
    inputs = Normalise(data).inputs(pixels).expand(model.members, -1, -1, -1, -1)
    networks = {"as trained": (_bytes(model), lambda: model(inputs))}
    networks["folded"] = _bytes(folded), lambda: folded(inputs[:1])
    with suppress(FileProblem), warnings.catch_warnings(action="ignore"):
        content, channels_first = to_onnx(run, data), pixels.permute(0, 3, 1, 2).numpy()
        networks["ONNX"] = len(content), partial(from_onnx(content), channels_first)
    with torch_settings(replace(run.config, threads=1)), torch.no_grad():
        # Each first runs untimed: the one before it has filled the caches.
        calls = [call for _, call in networks.values()]
        turns = [[timeit.timeit(call, call, number=1) for call in calls] for _ in range(rounds)]
    low, median, high = 1000 * np.quantile(turns, [0.25, 0.5, 0.75], axis=0)
    table = {"network": list(networks), "bytes": [size for size, _ in networks.values()]}
    times = {"milliseconds": median, "milliseconds_low": low, "milliseconds_high": high}
    return pd.DataFrame(table | times)


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _extra(name: str) -> Any:
    """Import a package of the extra `deploy`; raises OSError where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise FileProblem(f"ONNX needs {name}: pip install 'mixshare[deploy]'") from None
