"""What a number says, in a sentence: computed, so that it is true for every profile and seed."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixshare.chapters import claims, statistics
from mixshare.config import title

# Of the figures of `results.paired`: name, unit, scale, digits.
FIGURES = {
    "accuracy_ensemble": ("ensemble accuracy", "points", 100, 2),
    "nll": ("NLL", "nats", 1, 3),
}
RELATIONS = {
    "higher": "significantly higher than that of",
    "lower": "significantly lower than that of",
}
NOT_DIFFERENT = "not significantly different from that of"


class Text(str):
    """Text that a notebook shows as Markdown."""

    def _repr_markdown_(self) -> str:
        return str(self)

    __repr__ = str.__str__


def see(*sentences: str) -> Text:
    """Return the sentences under a number, those that are not empty."""
    return Text(f"**What we see.** {' '.join(filter(None, sentences))}")


def where(applies: bool, text: str) -> Text | None:
    """Return text that is shown only where it applies; a cell that ends with None shows nothing."""
    return Text(text) if applies else None


def listed(words: Iterable[str]) -> str:
    """Return "a", "a and b", or "a, b and c"."""
    *most, last = words
    return " and ".join(filter(None, (", ".join(most), last)))


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign, a minus as it is printed; one that rounds to 0 has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", "−")


def interval(row: Any, unit: str = "points", scale: float = 100, digits: int = 2) -> str:
    """Return a difference with both intervals: of a row of `statistics.COLUMNS`.

    Only the kinds of interval that there are.
    """
    kinds = []
    for kind in ("seeds", "images"):
        low, high = (scale * row[f"{kind}_{end}"] for end in ("low", "high"))
        if not np.isnan(low):
            kinds.append(f"{kind} {signed(low, digits)} to {signed(high, digits)}")
    value = f"{signed(scale * row['difference'], digits)} {unit}"
    return f"{value} (95 %: {', '.join(kinds)})" if kinds else f"{value} (one seed, no interval)"


def differences(table: pd.DataFrame, figure: str, name: Callable[[str], str] = title) -> str:
    """Say which differences of a figure are significant.

    Args:
        table: As `results.paired` returns it.
        figure: A key of FIGURES.
        name: Returns a run's name for people.
    """
    rows = table[table["figure"] == figure]
    if rows.empty:
        return "There is nothing to compare: no two methods share a seed."
    what, unit, scale, digits = FIGURES[figure]
    relations = rows["verdict"].map(RELATIONS).fillna(NOT_DIFFERENT)
    clauses = []
    for relation, group in rows.groupby(relations, sort=False):
        values = (signed(scale * value, digits) for value in group["difference"])
        others = zip(map(name, group["other"]), values, strict=True)
        clauses.append(f"{relation} {listed(f'{other} ({value})' for other, value in others)}")
    base, seeds = name(rows["method"].iloc[0]), rows["seeds"].iloc[0].split()[-1]
    text = f"{base}'s {what}, in {unit}, is {'; '.join(clauses)} ({seeds} seeds)."
    few = rows.loc[rows["verdict"] == statistics.TOO_FEW, "other"]
    if seeds == "1":
        text += " One seed gives no interval over seeds, so no difference counts as significant."
    if len(few):
        least = statistics.LEAST_DIFFERING
        text += f" Fewer than {least} test images differ against {listed(map(name, few))}."
    return text


def changes(table: pd.DataFrame, what: str) -> str:
    """Say which scores rise or fall during training.

    Args:
        table: As `studies.over_training` returns it, of one score; its groups are methods and
            blocks.
        what: The score's name.
    """
    clauses = []
    for verdict, group in table.groupby("verdict", sort=False):
        places = [
            f"{title(row.method)}, block {row.block} ({signed(row.change)})"
            for row in group.itertuples()
        ]
        words = {"rises": "rises in", "falls": "falls in"}.get(verdict, "has no clear change in")
        clauses.append(f"{words} {listed(places)}")
    return f"During training the {what} {'; it '.join(clauses)}."


def sharing(table: pd.DataFrame) -> str:
    """Say in how many runs and blocks each method's members share, from `studies.sharing`."""
    sentences = []
    for name, verdicts in table.groupby("method", sort=False)["verdict"]:
        counts = verdicts.value_counts()
        parts = [f"{counts.get(kind, 0)} {kind}" for kind in ("shared", "separated", "neither")]
        sentences.append(f"{title(name)}: {listed(parts)}, of {len(verdicts)} runs and blocks.")
    return " ".join(sentences)


def evidence(pieces: pd.DataFrame) -> Iterator[str]:
    """Yield what each piece of evidence is, from `claims.evidence`."""
    words = {"supports": "supports it", "contradicts": "contradicts it"}
    for piece in pieces.to_dict("records"):
        verdict = words.get(piece["verdict"], piece["verdict"])
        counted = np.isnan(piece["seeds_low"]) and piece["p"] > 0
        text = (
            f"{piece['seeds']} runs {piece['unit']}"
            if counted
            else interval(piece, piece["unit"], 1)
        )
        yield f"{piece['label']}: {text}; {verdict}"


def box(chapter: str, folder: Path) -> Text:
    """Return the end of a chapter: each of its claims, the evidence, the verdict, what is open.

    Args:
        chapter: Its name.
        folder: Of the tables that the evidence is in.
    """
    chosen = [claim for claim in claims.all_claims() if claim.chapter == chapter]
    found = claims.evidence(claims.read_tables(folder))
    judged, parts = claims.verdicts(found), []
    for claim in chosen:
        pieces = evidence(found[found["claim"] == claim.claim])
        texts = [claim.holds] if claim.holds else [*pieces] or ["none in these results"]
        lines = [
            f"**Claim** ({claim.place}). {claim.claim}",
            "**Evidence**",
            *(f"- {text}" for text in texts),
            f"**Verdict: {judged[claim.claim]}.** What would falsify it: {claim.falsified}",
            f"**Still open.** {claim.open}",
        ]
        parts.append("\n>\n".join(f"> {line}" for line in lines))
    return Text("\n\n---\n\n".join(parts))
