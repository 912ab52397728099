"""What chapters say of their tables: sentences and boxes, computed, so always true of them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mixshare.chapters import claims, statistics
from mixshare.figures.names import FIGURES, title

RELATIONS = {
    "higher": "significantly higher than that of",
    "lower": "significantly lower than that of",
    statistics.AFTER_HOLM: "not significantly different, after Holm's correction, from that of",
    statistics.TOO_FEW: "too close to judge (fewer than ten test images differ) against that of",
}
EXPECTED = {-1: "lower", 0: "–", 1: "higher"}
CHANGES = {
    "rises": "rises in",
    "falls": "falls in",
    statistics.AFTER_HOLM: "does not change significantly, after Holm's correction, in",
}
NOT_DIFFERENT = "not significantly different from that of"
COMPARED = ("figure", "base", "change", "method", "other")  # what names a row
SCORED = ("method", "network", "seed", "block", "answer", "score")
WORDS = {"_": " ", "nll": "NLL", "cka": "CKA", "init ": "untrained: "}  # of a column's name
WORDS |= {"auroc": "AUROC", "aurc": "AURC", "ece": "ECE", "ks": "KS"}
WORDS |= {"mce": "mean corruption error"}
# How columns begin that are shown in percent.
PERCENT = ("accuracy", "agreement", "own", "swapped", "moved")
PERCENT += ("auroc", "aurc", "ece", "ks", "mce")


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
    """Return "a", "a and b", or "a, b and c"; of no words nothing."""
    *most, last = [*words] or [""]
    return " and ".join(filter(None, (", ".join(most), last)))


def signed(value: float, digits: int = 2) -> str:
    """Return a number with its sign; one that rounds to 0 has none."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def span(row: Any, kind: str, scale: float = 1, digits: int = 2) -> str:
    """Return an interval of a row of `statistics.COLUMNS`, over "seeds" or "images"."""
    low, high = (row[f"{kind}_{end}"] for end in ("low", "high"))
    if low == high:
        return "none, as all are equal"
    ends = (signed(scale * end, digits) for end in (low, high))
    return " to ".join(ends) if pd.notna(low) else "none"


def interval(row: Any, unit: str = "points", scale: float = 100, digits: int = 2) -> str:
    """Return a difference with both intervals, of a row of `statistics.COLUMNS`."""
    spans = {kind: span(row, kind, scale, digits) for kind in ("seeds", "images")}
    known = ", ".join(f"{kind} {text}" for kind, text in spans.items() if text != "none")
    value = f"{signed(scale * row['difference'], digits)} {unit}".strip()
    return f"{value} (95 %: {known})" if known else f"{value} (one seed, no interval)"


def direction(values: Sequence[float], rises: str, falls: str, neither: str) -> str:
    """Choose words for a change by the sign of its 95 % t interval over seeds."""
    _, low, high = statistics.interval(values)
    return rises if low > 0 else falls if high < 0 else neither


def each(table: pd.DataFrame, template: str) -> list[str]:
    """Return a template filled with each row's values; methods have their names for people."""
    return [template.format(**row) for row in _named(table).to_dict("records")]


def _named(table: pd.DataFrame) -> pd.DataFrame:
    keys = [key for key in ("base", "method", "other") if key in table]
    return table.assign(**{key: table[key].map(title) for key in keys})


def grouped(
    table: pd.DataFrame,
    template: str,
    words: dict[str, str],
    otherwise: str,
) -> str:
    """Say which rows have which verdict: "falls in a and b; has no clear change in c".

    Args:
        table: With a column `verdict`.
        template: Of a row.
        words: By verdict, what comes before its rows.
        otherwise: The words for all other verdicts.
    """
    clauses = table["verdict"].map(words).fillna(otherwise)
    groups = table.groupby(clauses, sort=False)
    return "; ".join(f"{clause} {listed(each(rows, template))}" for clause, rows in groups)


def changes(table: pd.DataFrame, template: str) -> str:
    """Say what rises and falls during training, as `grouped` does of `studies.over_training`."""
    rows = table.assign(change=table["change"].map(signed))
    return grouped(rows, template, CHANGES, "has no clear change in")


def differences(table: pd.DataFrame, figure: str) -> str:
    """Say which differences of a figure are significant.

    Args:
        table: As `results.paired` returns it.
        figure: A key of FIGURES.
    """
    rows = table[table["figure"] == figure]
    if rows.empty:
        return "There is nothing to compare: no two methods share a seed."
    what, unit, scale, digits = FIGURES[figure]
    values = [signed(scale * value, digits) for value in rows["difference"]]
    alone = rows["seeds"].str.endswith(" 1").all()
    others = "not tested against that of" if alone else NOT_DIFFERENT
    sentences = [
        f"The {what} of {title(base)}, in {unit}{_correction(each)}, is "
        f"{grouped(each, '{other} ({value})', RELATIONS, others)}."
        for base, each in rows.assign(value=values).groupby("method", sort=False)
    ]
    if alone:
        sentences.append("One seed gives no interval, so no difference counts as significant.")
    return " ".join(sentences)


def _correction(family: pd.DataFrame) -> str:
    count = family["holm"].notna().sum()
    return f" and after Holm's correction over {count} comparisons" if count > 1 else ""


def answer(question: str, compared: pd.DataFrame) -> Text | None:
    """Return how far differences answer a grid's question; nothing where none is asked.

    Args:
        question: The grid's.
        compared: As `results.settings` returns it.
    """
    texts, named = [], []
    for figure, rows in compared.groupby("figure", sort=False):
        what, unit, scale, digits = FIGURES[figure]
        clear = rows[rows["verdict"].isin(["higher", "lower"])]
        values = [f"{signed(scale * value, digits)} {unit}" for value in clear["difference"]]
        shown = each(clear.assign(value=values), "{method} minus {other} ({value})")
        share = f"{len(clear)} of {len(rows)} differences in {what} are significant"
        texts.append(f"{share}: {listed(shown)}." if shown else f"{share}.")
        named += shown
    texts.append("What these do not show is open." if named else "These runs do not answer it.")
    return where(bool(question), f"**{question}** {' '.join(texts)}")


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table for people: names and units in full, and what names a row as its index.

    Args:
        table: Of comparisons (`statistics.COLUMNS`), or of other scores.
    """
    table = _named(table)
    if "seeds_low" in table:
        keys = [key for key in COMPARED if key in table]
        rows = table.to_dict("records")
        texts = [{key: row[key] for key in keys} | _comparison(row) for row in rows]
        return pd.DataFrame(texts).set_index(keys)
    percent = [name for name in table if name.startswith(PERCENT) and table[name].dtype == float]
    shown = _with_intervals(table.assign(**{name: 100 * table[name] for name in percent}))
    shown = shown.rename(columns={name: f"{name}, %" for name in percent})
    shown = shown.set_index([key for key in SCORED if key in shown]).round(2)
    if "verdict" in shown:
        shown.insert(0, "verdict", shown.pop("verdict"))
    for word, full in WORDS.items():
        shown.columns = shown.columns.str.replace(word, full)
    return shown


def _with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Put each value and its interval, if it has one, into a column: "0.37 (0.36 to 0.37)"."""
    texts, number = table.copy(), "{:.2f}".format
    for name in [name for name in table if f"{name}_low" in table]:
        low, high = texts.pop(f"{name}_low"), texts.pop(f"{name}_high")
        spans = " (" + low.map(number) + " to " + high.map(number) + ")"
        texts[name] = texts[name].map(number) + spans.where(low.notna(), "")
    return texts


def _comparison(row: dict[str, Any]) -> dict[str, Any]:
    """Return what `readable` shows of a comparison, in the units of its figure."""
    what, unit, scale, digits = FIGURES[row["figure"]]
    spans = "; ".join(span(row, kind, scale, digits) for kind in ("seeds", "images"))
    spans = spans.replace(" to ", "\u00a0to\u00a0")  # a narrow column breaks between the two
    difference = f"{signed(scale * row['difference'], digits)} ({spans})"
    expected = {"appendix expects": EXPECTED[row["expected"]]} if "expected" in row else {}
    return {
        "figure": f"{what}, {unit}",
        "verdict": row["verdict"],
        **expected,
        "difference (95 %: over seeds; over test images)": difference,
        "p (Holm)": f"{row['holm']:.3f}",
        "images that differ": row["differing"],
        "seeds with the mean's sign": row["seeds"],
    }


# Claims


def evidence(pieces: pd.DataFrame) -> Iterator[str]:
    """Yield what each piece of evidence is, from `claims.evidence`."""
    words = {"supports": "supports it", "contradicts": "contradicts it"}
    for piece in pieces.to_dict("records"):
        if piece["verdict"] == claims.NOT_RUN:
            yield f"{piece['label']}: {claims.NOT_RUN}"
            continue
        unit, verdict = piece["unit"], piece["verdict"]
        numbers = interval(piece, unit, 1, 4 if unit == "nats" else 2)
        text = f"{piece['seeds']} runs {unit}" if piece["counted"] else numbers
        yield f"{piece['label']}: {text}: {words.get(verdict, verdict)}"


def judged(folder: Path) -> pd.DataFrame:
    """Return a row for each claim: its own texts, the evidence that a folder has, the verdict.

    Args:
        folder: Of the tables that chapters wrote, as `claims.studies_folder` returns it.
    """
    judged_pieces = claims.evidence(claims.read_tables(folder))
    rows = []
    for claim, verdict in claims.verdicts(judged_pieces):
        texts = evidence(judged_pieces[judged_pieces["claim"] == claim.claim])
        pieces = claim.holds or "; ".join(texts)
        rows.append({**vars(claim), "evidence": pieces, "verdict": verdict})
    return pd.DataFrame(rows).drop(columns=["main", "holds", "family"])


def box(folder: Path, chapter: str = "") -> Text:
    """Return the end of a chapter: each of its claims, the evidence, the verdict, what is open.

    Args:
        folder: As in `judged`.
        chapter: Its name; by default all claims. Those without results are listed at the end.
    """
    claimed = judged(folder)
    claimed = claimed[claimed["chapter"].str.startswith(chapter)]
    untested = claimed["verdict"] == claims.NO_RESULTS
    boxes = [
        f"> **Claim** ({row.place}). {row.claim}\n>\n> **Evidence**\n>\n"
        + "".join(f"> - {piece}\n" for piece in row.evidence.split("; "))
        + f">\n> **Verdict: {row.verdict}.** What would falsify it: {row.falsified}\n>\n"
        + f"> **Still open.** {row.open}"
        for row in claimed[~untested].itertuples()
    ]
    if untested.any():
        boxes.append(f"> **Not tested by these results.** {' '.join(claimed[untested]['claim'])}")
    return Text("\n\n".join(boxes))


def overview(folders: dict[str, Path], main: bool = False) -> Text:
    """Return the claims as a table in Markdown, with a column of verdicts for each profile.

    Args:
        folders: By profile, as in `judged`.
        main: The main claims alone.
    """
    tables = {name: judged(folder) for name, folder in folders.items()}
    columns = ["claim", *tables, "place", "chapter"]
    rows = next(iter(tables.values())).assign(**{n: t["verdict"] for n, t in tables.items()})
    rows["chapter"] = rows["chapter"].str[:2]
    rows = rows[[claim.main or not main for claim in claims.all_claims()]]
    lines = [columns, ["---"] * len(columns), *rows[columns].to_numpy().tolist()]
    return Text("".join(f"| {' | '.join(line)} |\n" for line in lines))
