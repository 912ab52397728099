"""What the Makefile and the Snakefile call: `python -m mixshare <verb>`. People call papermill, make, or the package itself."""

import argparse
import json
import sys
from pathlib import Path

from mixshare.files import outputs_folder


def main() -> int:
    """Run one verb; an error of ours is its message alone, and exit status 1."""
    parser = argparse.ArgumentParser(prog="mixshare", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser("prepare", help="clear away what is not done, before a batch")
    prepare.add_argument("profile")
    prepare.add_argument("--batch", default="results", help="results, studies, or speed")
    prepare.add_argument("--fresh", action="store_true", help="start over")
    chapter = verbs.add_parser("chapter", help="execute one chapter")
    chapter.add_argument("name")
    chapter.add_argument("output", type=Path)
    chapter.add_argument("--parameters", type=json.loads, default={})
    chapter.add_argument("--reads", nargs="*", type=Path, default=())
    chapter.add_argument("--writes", nargs="*", type=Path, default=())
    train = verbs.add_parser("train", help="train one run, without a chapter")
    train.add_argument("run", type=json.loads, help="profile, method, seed and overrides, as JSON")
    refresh = verbs.add_parser("refresh", help="execute chapters in their smoke form, in place")
    refresh.add_argument("names", nargs="*")
    publish = verbs.add_parser("publish", help="check a profile's results and copy them to outputs/published")
    publish.add_argument("profile")
    together = verbs.add_parser("together", help="on a GPU, train a batch's missing runs several at once")
    together.add_argument("profile")
    together.add_argument("--batch", default="results", help="results, or studies")
    together.add_argument("--at-once", type=int, help="how many; by default as many as fit the GPU, and none without one")
    for verb in (prepare, publish, together):
        verb.add_argument("--methods", help="such as mimo,mixshare")
        verb.add_argument("--seeds", help="such as 1,2,3")
    table = verbs.add_parser("table", help="print a profile's table of results")
    table.add_argument("profile")
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except (ValueError, TypeError, OSError, ArithmeticError) as error:
        print(f"mixshare: {error}", file=sys.stderr)
        return 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    if arguments.verb == "chapter":
        from mixshare import chapters

        chapters.execute(arguments.name, arguments.output, arguments.parameters, arguments.reads, arguments.writes)
    elif arguments.verb == "refresh":
        from mixshare import chapters

        for name in arguments.names or sorted(path.stem for path in chapters.chapter_path("01_training").parent.glob("*.ipynb")):
            chapters.refresh(name)
    elif arguments.verb in ("prepare", "together"):
        from mixshare import targets

        batch = targets.batch(arguments.batch, arguments.profile, arguments.methods, arguments.seeds)
        targets.prepare(batch, arguments.fresh) if arguments.verb == "prepare" else targets.train_together(batch, arguments.at_once)
    elif arguments.verb == "train":
        from mixshare import training
        from mixshare.config import RunConfig

        training.train(RunConfig.of(**arguments.run))
    else:
        from mixshare import publish

        if arguments.verb == "publish":
            publish.publish(arguments.profile, arguments.methods, arguments.seeds)
        else:
            print(publish.readme_table(arguments.profile, outputs_folder() / arguments.profile))


if __name__ == "__main__":
    sys.exit(main())
