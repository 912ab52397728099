"""From a folder of pictures to a network that runs elsewhere.

mixshare train --images photos/ --size 32   photos/<class>/<picture>; ends with the run's folder
mixshare predict RUN more-photos/           the likeliest class of each picture
mixshare export RUN --format onnx           one plain network, with a model card
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mixshare import files
from mixshare.checks import FileProblem, InvalidValue
from mixshare.config import METHODS, PROFILES, RunConfig

# Torch takes seconds to import: each verb imports what it needs.

# In place of the digits' own: pictures are larger, and mean the same mirrored.
OVERRIDES = {"crop_padding": 4, "flip": True}
# fmt: off
OPTIONS = [  # commands, name, how it is read
    ("train", "--images", dict(type=Path, required=True, help="folder with a subfolder a class")),
    ("train", "--size", dict(type=int, default=32, help="side in pixels of the squares")),
    ("train", "--method", dict(default="mixshare", help=f"one of {', '.join(METHODS)}")),
    ("train", "--profile", dict(default="digits", help=f"network, recipe: {', '.join(PROFILES)}")),
    ("train", "--network", dict(default="wrn", help="wrn, or timm:NAME, such as timm:resnet18")),
    ("train", "--epochs", dict(type=int, help="passes over the pictures (default: the profile's)")),
    ("train", "--seed", dict(type=int, default=1, help="of the training; the split is fixed")),
    ("train", "--test-share", dict(type=float, default=0.2, help="of each class, to test with")),
    ("train", "--name", dict(help="of the pictures' archive in data/ (default: the folder's)")),
    ("predict export", "run", dict(type=Path, metavar="RUN", help="folder that `train` ends with")),
    ("predict", "pictures", dict(type=Path, metavar="FOLDER", help="with subfolders or without")),
    ("predict", "--csv", dict(nargs="?", type=Path, metavar="FILE",
                              help="where the table is written (default: it is printed)")),
    ("export", "--format", dict(default="onnx", help="onnx, or torch, for torch.export.load")),
    ("export", "--out", dict(type=Path, metavar="FILE", help="in .onnx or .pt2; README.md, the "
                             "model card, lies beside it (default: in outputs/exported/)")),
]
# fmt: on


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError in place of printing the usage."""
        raise InvalidValue(f"{message}; `{self.prog} --help` says what is possible")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command of `mixshare`, by default the one that it was called with."""
    return run_command(make_parser("mixshare", __doc__, (train, predict, export), OPTIONS), words)


def make_parser(
    program: str, description: str, verbs: Sequence[Callable], options: Sequence[tuple]
) -> Parser:
    """Return a parser of verbs.

    Args:
        program, description: As argparse has them.
        verbs: Functions of the parsed arguments, with the verbs' names and descriptions.
        options: Rows as in OPTIONS.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=program, description=description, formatter_class=form)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb in verbs:
        command = commands.add_parser(verb.__name__, help=verb.__doc__, description=verb.__doc__)
        command.set_defaults(verb=verb)
        for names, option, reading in options:
            if verb.__name__ in names.split():
                default = " (default: %(default)s)" if "default" in reading else ""
                command.add_argument(option, **reading | {"help": reading["help"] + default})
    return parser


def run_command(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> int:
    """Call the verb that the words name, and return the exit status.

    An error for people is its message alone, and exit status 1; what a stream can't print is
    replaced.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")
    try:
        arguments = parser.parse_args(words)
        return arguments.verb(arguments) or 0
    except (ValueError, TypeError, OSError, ArithmeticError) as error:
        files.say(f"mixshare: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        files.say("mixshare: interrupted; the same command goes on", sys.stderr)
        return 130


def train(arguments: argparse.Namespace) -> None:
    """Train a network on a folder of pictures, or go on where it was cut off."""
    if not 1 <= arguments.size <= 1024:
        raise InvalidValue(f"--size is {arguments.size}; possible are 1 to 1024")
    if not 0 < arguments.test_share < 1:
        raise InvalidValue(f"--test-share is {arguments.test_share}; possible is above 0, below 1")
    from mixshare import runs, training
    from mixshare.deploy import images

    name, size = images.archive_name(arguments.images, arguments.name), arguments.size
    overrides = OVERRIDES | {"dataset": name, "network": arguments.network}
    if arguments.epochs is not None:
        overrides["epochs"] = arguments.epochs
    chosen = arguments.profile, arguments.method, arguments.seed
    config = RunConfig.of(*chosen, overrides)
    runs.build_model(config, 3, 2, (size, size))  # refused before pictures are read
    classes = images.find_classes(arguments.images)
    test = images.choose_test(map(len, classes.values()), arguments.test_share)
    rows = min(config.batch_size, int((~test).sum()) * config.batch_repetition)
    config = RunConfig.of(*chosen, overrides | {"batch_size": rows})  # smaller with few pictures
    images.write_archive(name, images.make_archive(classes, size, test))
    run = training.train(config)
    print(f"{len(classes)} classes, {len(test)} pictures, {test.sum()} of them to test with")
    print(_results(run.metrics), os.path.relpath(run.folder), sep="\n")


def _results(metrics: dict[str, Any]) -> str:
    """Return a table of the ensemble and its members."""
    import pandas as pd

    ensemble = metrics | {"accuracy": metrics["accuracy_ensemble"]}
    names = ("accuracy", "nll", "ece")
    columns = {name: [ensemble[name], *metrics[f"{name}_members"]] for name in names}
    table = pd.DataFrame(columns).rename(lambda row: f"member {row}" if row else "ensemble")
    return table.to_string(float_format="%.4f")


def predict(arguments: argparse.Namespace) -> None:
    """Say the likeliest class of each picture, and its probability, as CSV."""
    from mixshare.deploy import images
    from mixshare.deploy.export import open_run, predict

    run = open_run(arguments.run)
    paths = images.find_pictures(arguments.pictures)
    if not paths:
        raise FileProblem(f"{images.printable(arguments.pictures)} holds no pictures")
    table = predict(run, images.read_pictures(paths, run.metrics["provenance"]["image_shape"]))
    table.insert(0, "file", [path.relative_to(arguments.pictures).as_posix() for path in paths])
    text = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    if arguments.csv is None:
        files.say(text.rstrip("\n"), sys.stdout)
    else:  # names that are no Unicode keep their bytes
        files.write(arguments.csv, text.encode(errors="surrogateescape"))
        print(f"{len(paths)} pictures: {arguments.csv}")


def export(arguments: argparse.Namespace) -> None:
    """Write one plain network, its normalisation inside, and a model card beside it."""
    from mixshare.deploy.export import export, open_run

    path, comparison = export(open_run(arguments.run), arguments.format, arguments.out)
    print(f"{os.path.relpath(path)}, {path.stat().st_size:,} bytes", comparison, sep="\n")
