"""What a batch would run, what of it is done, and about how long the rest takes, from the throughput that finished runs recorded."""

from collections.abc import Iterator, Sequence
from functools import cache
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mixshare import runs
from mixshare.config import RunConfig
from mixshare.errors import FileProblem
from mixshare.files import outputs_folder, published_folder, read_json, shown
from mixshare.plan import steps_per_epoch
from mixshare.targets import Target

CLASSES = 100  # of the network whose multiply-adds are counted; its classifiers hardly count


def plan(batch: Sequence[Target]) -> str:
    """A batch in lines: each run and chapter that it would make, how many are done, and an estimate for each kind of device."""
    missing = [target for target in batch if not target.is_done()]
    trained = [
        target.config
        for target in missing
        if target.config and runs.problem(target.config, target.output.parent)
    ]
    seeds: dict[str, list[int]] = {}
    for config in trained:
        seeds.setdefault(config.name, []).append(config.seed)
    lines = [
        f"to train: {name}, seed {', '.join(map(str, found))}" for name, found in seeds.items()
    ]
    lines += [f"to execute: {shown(target.output)}" for target in missing if not target.config]
    lines.append(
        f"{len(batch) - len(missing)} of {len(batch)} runs and chapters are done; {len(trained)} runs to train"
    )
    return "\n".join([*lines, *(estimate(trained) if trained else [])])


def estimate(configs: Sequence[RunConfig]) -> list[str]:
    """A line for each kind of device on which runs on these data sets have finished: the hours of one after the other."""
    wanted = {config.dataset for config in configs}
    found: dict[tuple[str, int], list[Finished]] = {}
    for run in _finished(wanted):
        found.setdefault((run["device"], run["threads"]), []).append(run)
    lines = []
    for (device, threads), known in found.items():
        if missing := wanted - {run["config"].dataset for run in known}:
            lines.append(
                f"on {device}: no estimate, for no run on {', '.join(sorted(missing))} has finished there"
            )
            continue
        hours = sum(_seconds(config, known) for config in configs) / 3600
        what = (
            f"{threads} thread{'s' * (threads > 1)} a run"
            if device.startswith("cpu")
            else "one run at a time"
        )
        lines.append(
            f"on {device}, {what}: about {hours:,.{1 if hours < 10 else 0}f} hours in all, by {len(known)} finished runs"
        )
    return lines or [f"no estimate: no run on {', '.join(sorted(wanted))} has finished yet"]


Finished = dict[
    str, Any
]  # of a finished run: its config, device, threads, seconds, train_images and image_shape


def _finished(datasets: set[str]) -> Iterator[Finished]:
    for base in (outputs_folder(), published_folder()):
        for path in sorted(base.glob("*/*/seed-*/metrics.json")):
            try:
                made_by = read_json(path)["provenance"]
                config = RunConfig.from_dict(read_json(path.with_name("config.json")))
            except (FileProblem, ValueError, TypeError, KeyError):  # damaged, or of another version
                continue
            if config.dataset in datasets:
                names = ("device", "threads", "train_images", "image_shape")
                yield {
                    "config": config,
                    "seconds": made_by["wall_seconds"],
                    **{name: made_by[name] for name in names},
                }


def _seconds(config: RunConfig, known: Sequence[Finished]) -> float:
    """By the finished runs on the same data that are of the same network, else of the nearest size: the median time of a multiply-add."""
    same_data = [run for run in known if run["config"].dataset == config.dataset]
    images, shape = same_data[0]["train_images"], same_data[0]["image_shape"]
    size = _multiply_adds(config, shape)
    distance = {id(run): abs(_multiply_adds(run["config"], shape) / size - 1) for run in same_data}
    nearest = [run for run in same_data if distance[id(run)] == min(distance.values())]
    return _work(config, images, shape) * median(
        run["seconds"] / _work(run["config"], images, shape) for run in nearest
    )


def _work(config: RunConfig, images: int, shape: Sequence[int]) -> float:
    return (
        _multiply_adds(config, shape)
        * steps_per_epoch(config, images)
        * config.batch_size
        * config.epochs
    )


def _multiply_adds(config: RunConfig, shape: Sequence[int]) -> int:
    return _counted(config.depth, config.width, config.members, tuple(shape))


@cache
def _counted(depth: int, width: float, members: int, shape: tuple[int, int, int]) -> int:
    height, breadth, channels = shape
    config = RunConfig.preset("paper", "mimo", depth=depth, width=width, members=members)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        runs.build_model(config, channels, CLASSES)(
            torch.zeros(members, 1, channels, height, breadth)
        )
    return counter.get_total_flops()
