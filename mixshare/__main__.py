"""What the Makefile and the Snakefile call: `python -m mixshare <verb>`. People call papermill, make, or the package itself."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mixshare.config import PROFILES, check_member
from mixshare.files import outputs_folder


def main() -> int:
    """Run one verb; an error of ours is its message alone, and exit status 1, as is a run that is not what it says."""
    parser = argparse.ArgumentParser(prog="mixshare", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser("prepare", help="clear away what is not done, before a batch")
    prepare.add_argument("--fresh", action="store_true", help="start over")
    plan = verbs.add_parser(
        "plan", help="say what a batch would run, what is done, and about how long the rest takes"
    )
    chapter = verbs.add_parser("chapter", help="execute one chapter where a batch wants it")
    chapter.add_argument("name")
    chapter.add_argument("parameters", type=_json, help="as JSON")
    train = verbs.add_parser("train", help="train one run, without a chapter")
    train.add_argument("run", type=_json, help="profile, method, seed and overrides, as JSON")
    refresh = verbs.add_parser("refresh", help="execute chapters in their smoke form, in place")
    refresh.add_argument("names", nargs="*")
    publish = verbs.add_parser(
        "publish", help="check a profile's results and copy them to outputs/published"
    )
    together = verbs.add_parser(
        "together", help="on a GPU, train a batch's missing runs several at once"
    )
    together.add_argument(
        "--at-once",
        type=int,
        help="how many; by default as many as fit the GPU, and none without one",
    )
    for verb in (prepare, plan, publish, together):
        verb.add_argument("profile", nargs="?", default="digits")
        verb.add_argument("--batch", default="results", help="results, studies, or speed")
        verb.add_argument("--grid", help="a grid's file, in place of profile and batch")
        verb.add_argument("--methods", help="such as mimo,mixshare")
        verb.add_argument("--seeds", help="such as 1,2,3")
    verify = verbs.add_parser("verify", help="check a run's files, figures, weights and chapter")
    verify.add_argument("folder", type=Path)
    verify.add_argument("--retrain", action="store_true", help="and train it from scratch")
    table = verbs.add_parser("table", help="print a profile's table of results")
    table.add_argument("profile")
    book = verbs.add_parser(
        "book", help="render a profile's executed chapters to outputs/<profile>/book"
    )
    book.add_argument("profile")
    arguments = parser.parse_args()
    try:
        return _run(arguments) or 0
    except (ValueError, TypeError, OSError, ArithmeticError) as error:
        print(f"mixshare: {error}", file=sys.stderr)
        return 1


def _json(text: str) -> dict[str, Any]:
    """An object of JSON from a command line."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('wanted is an object of JSON, such as {"seed": 1}')
    return value


def _run(arguments: argparse.Namespace) -> int | None:
    if arguments.verb == "refresh":
        from mixshare import chapters

        for name in arguments.names or sorted(
            path.stem for path in chapters.chapter_path("01_training").parent.glob("*.ipynb")
        ):
            chapters.refresh(name)
    elif arguments.verb == "chapter":
        from mixshare import targets

        targets.chapter(arguments.name, arguments.parameters).make()
    elif arguments.verb in ("prepare", "together", "plan"):
        from mixshare import forecast, targets

        batch = targets.batch(
            arguments.batch, arguments.profile, arguments.methods, arguments.seeds, arguments.grid
        )
        if arguments.verb == "plan":
            print(forecast.plan(batch))
        else:
            targets.prepare(
                batch, arguments.fresh
            ) if arguments.verb == "prepare" else targets.train_together(batch, arguments.at_once)
    elif arguments.verb == "train":
        from mixshare import training
        from mixshare.config import RunConfig

        for name in arguments.run:
            check_member("key of a run", name, ("profile", "method", "seed", "overrides"))
        training.train(RunConfig.of(**arguments.run))
    elif arguments.verb == "verify":
        from mixshare import verify

        return 0 if verify.verify(arguments.folder, arguments.retrain) else 1
    elif arguments.verb == "book":
        from mixshare import book

        book.build(arguments.profile)
    else:
        from mixshare import publish

        if arguments.verb == "publish":
            publish.publish(arguments.profile, arguments.methods, arguments.seeds, arguments.grid)
        else:
            check_member("profile", arguments.profile, PROFILES)
            print(publish.readme_table(arguments.profile, outputs_folder() / arguments.profile))


if __name__ == "__main__":
    sys.exit(main())
