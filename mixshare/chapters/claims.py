"""The paper's claims, judged by the tables that the chapters write.

The claims are rows of claims.yml. Their evidence is looked up in the tables of a profile, each
piece judged with both its intervals and Holm's correction, and a claim by all its pieces.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from mixshare.chapters import statistics
from mixshare.figures.names import change, title
from mixshare.files import outputs_folder, published_folder

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
BY_CONSTRUCTION, NO_RESULTS = "true by construction", "no results"
# Tables of comparisons; a grid's are in a folder of its own.
COMPARED = ("paired", "alignment_paired", "adjustments", "*/paired")
RUNS = ("**/runs.csv", "alignment.csv")  # tables with a row a run
NO_ROOM = "no room for a difference"  # of a piece: the other method is within the margin of 100 %
NOT_RUN = "not run"
UNFITTED = "the other network does not fit its training images"
NUMBERS = statistics.COLUMNS[:5]  # the difference and its intervals
TAIL = 0.05  # how often chance alone has a run shared, or separated: `similarity.chance`


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A row of claims.yml, which says what each field means."""

    claim: str
    place: str
    falsified: str
    open: str
    chapter: str
    main: bool = False
    holds: str = ""
    family: str = ""  # by default its chapter
    evidence: tuple[dict[str, Any], ...] = ()


@functools.cache
def all_claims() -> tuple[Claim, ...]:
    """Return the claims, in the paper's order."""
    rows = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text(encoding="utf-8"))
    return tuple(Claim(**row) for row in rows)


def studies_folder(profile: str) -> Path:
    """Return the folder of a profile's tables: the reader's own if there is one, else published."""
    own, published = (base / profile / "studies" for base in (outputs_folder(), published_folder()))
    # The chapter on the claims writes there too, whatever its evidence.
    return own if {path.name for path in own.rglob("*.csv")} - {"claims.csv"} else published


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Read the chapters' tables from a folder of studies.

    Returns:
        Each by its name; `runs` with those of all grids and of chapter 02, and as `compared` all
        comparisons of two methods' ensemble accuracy, `both_ways`.
    """
    tables = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    compared = [pd.read_csv(path) for name in COMPARED for path in folder.glob(f"{name}.csv")]
    runs = [pd.read_csv(path) for name in RUNS for path in folder.glob(name)]
    columns = pd.DataFrame(columns=["method", "other", "figure", *statistics.COLUMNS])
    table = pd.concat([columns, *compared])
    tables["compared"] = both_ways(table[table["figure"] == "accuracy_ensemble"])
    table = pd.concat([pd.DataFrame(columns=["method", "seed"]), *runs]).astype({"seed": str})
    tables["runs"] = table.drop_duplicates(["method", "seed"])  # of two tables the first counts
    return tables


def both_ways(compared: pd.DataFrame) -> pd.DataFrame:
    """Return comparisons, and after them the same with their two methods exchanged."""
    pairs = {"method": "other", "seeds_low": "seeds_high", "images_low": "images_high"}
    exchanged = compared.rename(columns=pairs | {second: first for first, second in pairs.items()})
    exchanged[[*NUMBERS]] = -exchanged[[*NUMBERS]]
    return pd.concat([compared, exchanged])


# Evidence


def evidence(tables: dict[str, pd.DataFrame], claims: Sequence[Claim] = ()) -> pd.DataFrame:
    """Return a row for each piece of evidence that the tables have, with its verdict.

    Args:
        tables: As `read_tables` returns them.
        claims: By default all.

    Returns:
        `claim`, `label`, `unit`, `statistics.difference`, `expected` (the claimed sign), `margin`,
        `room` and `fitted` (which a verdict may want), `holm` over all pieces of a family, and
        `verdict`. What is `counted` has no intervals, and `seeds` says how many runs of how many.
        Of evidence that the tables do not have, a row with its label alone.
    """
    usual = {"margin": 0.0, "fitted": True, "counted": False}
    rows = []
    for claim in claims or all_claims():
        family = {"claim": claim.claim, "family": claim.family or claim.chapter}
        for item in claim.evidence:
            pieces = list(_kind(item)(item, tables)) or [{}]
            rows += [family | {"label": _label(item)} | usual | piece for piece in pieces]
    names = ["claim", "family", "label", "unit", "expected", "room", *usual]
    table = pd.DataFrame(rows, columns=[*names, *statistics.COLUMNS[:8]])
    p = table["p"].where(table["margin"] == 0)  # with a margin, intervals judge
    table["holm"] = p.groupby(table["family"]).transform(statistics.holm)
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    return table


def _kind(item: dict[str, Any]) -> Callable[..., Iterator[dict[str, Any]]]:
    return _counted if "is" in item else _measured if "table" in item else _compared


def _pair(item: dict[str, Any]) -> tuple[str, str]:
    """Return the two runs' names of a comparison."""
    return item.get("better", item.get("same")), item.get("than", item.get("as"))


def _label(item: dict[str, Any]) -> str:
    """Return what a piece of evidence is called."""
    if "label" in item:
        return item["label"]
    first, second = _pair(item)
    changed = change(second, first)
    other = changed if changed == title(second) else f"the same with {changed}"
    return f"{title(first)} minus {other}"


def _compared(item: dict[str, Any], tables: dict[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Yield one method's ensemble accuracy minus another's, in points, if they were compared."""
    first, second = _pair(item)
    rows = tables["compared"].query("method == @first and other == @second")
    for row in rows.head(1).to_dict("records"):
        numbers = {name: 100 * row[name] for name in NUMBERS}
        # Of the second run the accuracy may not be among the results; the difference is.
        room = 100 * (1 - _mean(tables, first, "accuracy_ensemble")) + numbers["difference"]
        fits = "fits" not in item or _mean(tables, second, "accuracy_train") > item["fits"]
        expected, margin = int("better" in item), item.get("by", item.get("within", 0.0))
        claimed = {"expected": expected, "margin": margin, "room": room, "fitted": fits}
        yield row | numbers | {"unit": "points"} | claimed


def _mean(tables: dict[str, pd.DataFrame], method: str, figure: str) -> float:
    """Return the mean of a figure over a method's runs; NaN if it is not known."""
    runs = tables.get("runs", pd.DataFrame()).reindex(columns=["method", figure])
    return runs.loc[runs["method"] == method, figure].mean()


def _measured(item: dict[str, Any], tables: dict[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Yield the mean over seeds of a value, or of its difference from that of other rows."""
    values = _by_seed(item, "where", tables)
    if "minus" in item:
        values = (values - _by_seed(item, "minus", tables)).dropna()
    if len(values):
        claimed = {"unit": item["unit"], "expected": item["sign"]}
        yield statistics.over_seeds(values.to_numpy()) | claimed


def _by_seed(item: dict[str, Any], rows: str, tables: dict[str, pd.DataFrame]) -> pd.Series:
    try:
        return tables[item["table"]].query(item[rows]).set_index("seed").eval(item["value"])
    except (KeyError, pd.errors.UndefinedVariableError):  # not made, or by an earlier version
        return pd.Series(dtype=float)


def _counted(item: dict[str, Any], tables: dict[str, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    """Yield for each block how many runs come to the claimed verdict, or to the opposite one.

    A verdict that the untrained network has does not count. By chance a run has either with the
    probability of `similarity.chance`, 5 %: p is binomial.
    """
    rows = tables.get(item["table"], pd.DataFrame(columns=["method", "block"]))
    for block, group in rows.query(item["where"]).groupby("block", sort=False):
        reached = group["verdict"].where(group["verdict"] != group["init_verdict"])
        claimed, opposite = ((reached == verdict).sum() for verdict in item["is"])
        yield {
            "label": f"{item['label']}, block {block}",
            "unit": f"{item['is'][0]} by training",
            "difference": (claimed - opposite) / len(group),
            "p": stats.binom.sf(max(claimed, opposite) - 1, len(group), TAIL),
            "seeds": f"{claimed} of {len(group)}",
            "counted": True,
        }


# Verdicts


def _verdict(piece: dict[str, Any]) -> str:
    """Judge a piece of evidence: "supports", "contradicts", or why it does neither."""
    if pd.isna(piece["difference"]):
        return NOT_RUN
    margin, expected = piece["margin"], piece["expected"]
    if piece["counted"]:
        side = np.sign(piece["difference"]) if piece["holm"] < statistics.LEVEL else 0
        return {1: "supports", -1: "contradicts", 0: statistics.UNDECIDED}[side]
    if not margin:
        verdict = statistics.verdict(piece, piece["holm"], expected)
        return UNFITTED if verdict == "contradicts" and not piece["fitted"] else verdict
    ends = [piece[f"{kind}_{end}"] for kind in ("seeds", "images") for end in ("low", "high")]
    inside, above = -margin < min(ends) and max(ends) < margin, min(ends) > margin
    if inside and piece["room"] < margin:
        return NO_ROOM
    if above if expected else inside:  # more than the margin, or the same but for it
        return "supports"
    return "contradicts" if inside or above or max(ends) < -margin else statistics.UNDECIDED


def verdicts(pieces: pd.DataFrame, claims: Sequence[Claim] = ()) -> Iterator[tuple[Claim, str]]:
    """Yield each claim with its verdict.

    Args:
        pieces: As `evidence` returns it.
        claims: By default all.
    """
    for claim in claims or all_claims():
        judged = set(pieces.loc[pieces["claim"] == claim.claim, "verdict"])
        if not judged:
            yield claim, BY_CONSTRUCTION
        elif judged == {NOT_RUN}:
            yield claim, NO_RESULTS
        elif "contradicts" in judged:
            yield claim, CONTRADICTED
        else:
            yield claim, SUPPORTED if judged == {"supports"} else UNDECIDED
