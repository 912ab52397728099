"""The batch's command line, which the Makefile and the Snakefile call.

`python workflow/run.py <verb>`; people call make, papermill, or the package itself.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Torch takes seconds to import: each verb imports what it needs.


def main() -> int:
    """Run one verb; an error for people is its message alone, and exit status 1."""
    arguments = _parser().parse_args()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")
    try:
        return arguments.func(arguments) or 0
    except (ValueError, TypeError, OSError, ArithmeticError) as error:
        print(f"mixshare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mixshare: interrupted; the same command goes on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    def add(func: Callable[[argparse.Namespace], Any], description: str) -> Any:
        verb = verbs.add_parser(func.__name__, help=description, description=description)
        verb.set_defaults(func=func)
        return verb

    verb = add(prepare, "remove stale outputs before a batch")
    _add_batch(verb)
    verb.add_argument("--fresh", action="store_true", help="start over")
    verb = add(
        plan, "list what a batch would make, what is done, and about how long the rest takes"
    )
    _add_batch(verb)
    verb = add(chapter, "execute one chapter to where a batch has it")
    verb.add_argument("name")
    verb.add_argument("parameters", type=_json, help="as JSON")
    verb = add(train, "train one run, without a chapter")
    verb.add_argument("run", type=_json, help="profile, method, seed and overrides, as JSON")
    verb = add(refresh, "execute chapters in their smoke form, in place")
    verb.add_argument("names", nargs="*", help="by default all")
    verb = add(publish, "check results and copy them to outputs/published")
    _add_batch(verb)
    verb = add(verify, "check a run's files, figures, weights and chapter")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--retrain", action="store_true", help="and train it from scratch")
    verb = add(table, "print a profile's table of results")
    verb.add_argument("profile")
    return parser


def _add_batch(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("profile", nargs="?", default="digits")
    verb.add_argument("--batch", default="results", help="results, studies, or speed")
    verb.add_argument("--grid", help="a grid's file, in place of profile and batch")
    verb.add_argument("--methods", help="such as mimo,mixshare")
    verb.add_argument("--seeds", help="such as 1,2,3")


def _json(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('wanted is an object of JSON, such as {"seed": 1}')
    return value


def _batch(arguments: argparse.Namespace) -> list:
    import targets

    names = ("batch", "profile", "methods", "seeds", "grid")
    return targets.batch(*(getattr(arguments, name) for name in names))


def prepare(arguments: argparse.Namespace) -> None:
    """Remove a batch's stale outputs."""
    import targets

    targets.prepare(_batch(arguments), arguments.fresh)


def plan(arguments: argparse.Namespace) -> None:
    """Print what a batch would make."""
    import targets

    print(targets.plan(_batch(arguments)))


def chapter(arguments: argparse.Namespace) -> None:
    """Execute one chapter."""
    import targets

    targets.chapter(arguments.name, arguments.parameters).make()


def train(arguments: argparse.Namespace) -> None:
    """Train one run."""
    from mixshare import RunConfig, training
    from mixshare.checks import InvalidValue

    given = {"overrides": {}} | arguments.run
    if wrong := sorted(given.keys() ^ {"profile", "method", "seed", "overrides"}):
        wanted = "a run has profile, method, seed and overrides"
        raise InvalidValue(f"{wanted}; missing, or not among them: {wrong}")
    training.train(RunConfig.of(**given))


def refresh(arguments: argparse.Namespace) -> None:
    """Execute chapters in place."""
    import execute

    from mixshare.files import project_root

    chapters = sorted((project_root() / "notebooks").glob("*.ipynb"))
    for name in arguments.names or [path.stem for path in chapters]:
        execute.refresh(name)


def publish(arguments: argparse.Namespace) -> None:
    """Publish a profile or a grid."""
    import publish

    publish.publish(arguments.profile, arguments.methods, arguments.seeds, arguments.grid)


def verify(arguments: argparse.Namespace) -> int:
    """Verify a run; the exit status says whether it is what it says."""
    import verify

    return 0 if verify.verify(arguments.folder, arguments.retrain) else 1


def table(arguments: argparse.Namespace) -> None:
    """Print a table of results."""
    from mixshare.chapters import results
    from mixshare.checks import check_choice
    from mixshare.config import PROFILES
    from mixshare.files import outputs_folder

    check_choice("profile", arguments.profile, PROFILES)
    print(results.results_table(outputs_folder() / arguments.profile))


if __name__ == "__main__":
    sys.exit(main())
