"""Snakemake, called again and again in forks of one process that has imported it.

A process of its own takes seconds to import Snakemake and torch. Each line of the standard input
asks for a call: its words, its environment and the file that its output goes to, as JSON; each
line of the standard output is its exit status.
"""

import json
import os
import sys

import targets  # noqa: F401  what the Snakefile imports; first, for it spares jsonschema a grammar
from snakemake import api, dag, rules, workflow  # noqa: F401  what `main` imports late
from snakemake.cli import main


def call(words: list[str], environment: dict[str, str], log: str) -> int:
    """Return the exit status of Snakemake with these words."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.environ.update(environment)
        main(words)
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        print(call(**json.loads(line)), flush=True)
