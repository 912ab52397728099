"""The batch's command line, which the Makefile and the Snakefile call.

`python workflow/run.py <verb>`; people call make, papermill, or the package itself.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mixshare.deploy.cli import make_parser, run_command

# Torch takes seconds to import: each verb imports what it needs.


def main() -> int:
    """Run one verb."""
    verbs = (prepare, plan, chapter, train, refresh, publish, verify, table)
    return run_command(make_parser("run.py", __doc__, verbs, OPTIONS))


def _json(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('wanted is an object of JSON, such as {"seed": 1}')
    return value


_BATCH = "prepare plan publish"
# fmt: off
OPTIONS = [  # verbs, name, how it is read
    (_BATCH, "profile", dict(nargs="?", default="digits", help="of the batch")),
    (_BATCH, "--batch", dict(default="results", help="results, studies, or speed")),
    (_BATCH, "--grid", dict(help="a grid's file, in place of profile and batch")),
    (_BATCH, "--methods", dict(help="such as mimo,mixshare")),
    (_BATCH, "--seeds", dict(help="such as 1,2,3")),
    ("prepare", "--fresh", dict(action="store_true", help="start over")),
    ("chapter", "name", dict(help="such as 05_results")),
    ("chapter", "parameters", dict(type=_json, help="as JSON")),
    ("train", "run", dict(type=_json, help="profile, method, seed and overrides, as JSON")),
    ("refresh", "names", dict(nargs="*", help="by default all")),
    ("verify", "folder", dict(type=Path, help="of the run")),
    ("verify", "--retrain", dict(action="store_true", help="and train it from scratch")),
    ("table", "profile", dict(help="whose results")),
]
# fmt: on


def _batch(arguments: argparse.Namespace) -> list:
    import targets

    names = ("batch", "profile", "methods", "seeds", "grid")
    return targets.batch(*(getattr(arguments, name) for name in names))


def prepare(arguments: argparse.Namespace) -> None:
    """Remove stale outputs before a batch."""
    import targets

    targets.prepare(_batch(arguments), arguments.fresh)


def plan(arguments: argparse.Namespace) -> None:
    """List what a batch would make, what is done, and about how long the rest takes."""
    import targets

    print(targets.plan(_batch(arguments)))


def chapter(arguments: argparse.Namespace) -> None:
    """Execute one chapter to where a batch has it."""
    import targets

    targets.chapter(arguments.name, arguments.parameters).make()


def train(arguments: argparse.Namespace) -> None:
    """Train one run, without a chapter."""
    from mixshare import RunConfig, training
    from mixshare.checks import InvalidValue

    given = {"overrides": {}} | arguments.run
    if wrong := sorted(given.keys() ^ {"profile", "method", "seed", "overrides"}):
        wanted = "a run has profile, method, seed and overrides"
        raise InvalidValue(f"{wanted}; missing, or not among them: {wrong}")
    training.train(RunConfig.of(**given))


def refresh(arguments: argparse.Namespace) -> None:
    """Execute chapters in their smoke form, in place."""
    import execute

    from mixshare.files import project_root

    chapters = sorted((project_root() / "notebooks").glob("*.ipynb"))
    for name in arguments.names or [path.stem for path in chapters]:
        execute.refresh(name)


def publish(arguments: argparse.Namespace) -> None:
    """Check results and copy them to outputs/published."""
    import publish

    publish.publish(arguments.profile, arguments.methods, arguments.seeds, arguments.grid)


def verify(arguments: argparse.Namespace) -> int:
    """Check a run's files, figures, weights and chapter; the exit status says it too."""
    import verify

    return 0 if verify.verify(arguments.folder, arguments.retrain) else 1


def table(arguments: argparse.Namespace) -> None:
    """Print a profile's table of results."""
    from mixshare.chapters import results
    from mixshare.checks import check_choice
    from mixshare.config import PROFILES
    from mixshare.files import outputs_folder

    check_choice("profile", arguments.profile, PROFILES)
    print(results.results_table(outputs_folder() / arguments.profile))


if __name__ == "__main__":
    sys.exit(main())
