"""The model card beside an exported network, in the form of the Hugging Face Hub."""

import json
from pathlib import Path
from typing import Any

from scipy import stats

from mixshare.files import json_text
from mixshare.runs import Run

NAME = "README.md"
MARK = "library_name: mixshare"  # a README.md that has this line is a card of ours
_TEMPLATE = Path(__file__).with_name("card.md")


def text(run: Run, metadata: dict[str, Any], stem: str, comparison: str) -> str:
    """Return the text of a model card.

    Args:
        run: The finished run.
        metadata: Of the exported network.
        stem: Of its file's name.
        comparison: A sentence on the file's own accuracy.
    """
    right, nll = run.scores["right"][0], run.scores["nll"][0].astype(float)
    low, high = stats.t.interval(0.95, len(nll) - 1, nll.mean(), stats.sem(nll))
    given = {"run": run, "metadata": metadata, "stem": stem, "comparison": comparison}
    return _TEMPLATE.read_text(encoding="utf-8").format(
        **given,
        images=len(right),
        accuracy=stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson"),
        nll=(max(low, 0.0), high),  # of few pictures the interval would reach below what can be
        classes=json.dumps(metadata["classes"], ensure_ascii=False),
        config=json_text(metadata["config"]).strip(),
    )
