"""How sure a difference is: over seeds, over test images, and over a family of comparisons.

A difference is called one only where both intervals, over seeds and over images, leave out zero.
Dimensions: S seeds, N test images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.05  # of a verdict; intervals cover 95 %
REPLICATES = 4000  # bootstrap samples of the test images
LEAST_DIFFERING = 10  # test images that must differ before a difference gets a verdict
DECIMALS = 12  # of a mean: sums in another order are equal
TOO_FEW = "too few images differ"
UNDECIDED = "not significant"
AFTER_HOLM = "not significant after Holm"  # by itself it is
# Of a table that is `judged`.
MEASURED = ("difference", "seeds_low", "seeds_high", "images_low", "images_high")
MEASURED += ("p", "seeds", "differing")
COLUMNS = (*MEASURED, "holm", "raw", "verdict")
Scores = dict[int, np.ndarray]  # by seed: of each test image, (N,), or one value


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % t interval, (mean, low, high); no interval for one value."""
    values = np.asarray(values, float)
    n, mean = len(values), values.mean().round(DECIMALS)
    deviation = values.std(ddof=1) if np.ptp(values) else 0.0  # of equal values exactly 0
    half = stats.t.ppf(1 - LEVEL / 2, n - 1) * deviation / n**0.5  # NaN for one value
    return mean, mean - half, mean + half


def difference(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Compare two methods on the same seeds and test images.

    Args:
        first, second: (S, N), a score of each image, such as 1 where it is classified right; or
            (S,), one value a seed.

    Returns:
        `difference`, first minus second; its interval over seeds (paired t) and over images
        (paired bootstrap, seeds averaged); `p`, the larger of the two p values; `seeds`, in how
        many the sign is that of the mean; `differing`, the images on which the two differ.
    """
    each = np.asarray(first, float) - np.asarray(second, float)  # (S, N)
    if each.ndim == 1:
        return over_seeds(each)
    by_seed = over_seeds(each.mean(axis=1))
    images_low, images_high, p_images = over_images(each.mean(axis=0))
    return by_seed | {
        "images_low": images_low,
        "images_high": images_high,
        "p": np.fmax(by_seed["p"], p_images) if len(each) > 1 else np.nan,
        "differing": int((each != 0).any(axis=0).sum()),
    }


def over_seeds(values: np.ndarray) -> dict[str, Any]:
    """Return what `difference` does of one value a seed, (S,), which no test images are behind."""
    values = np.asarray(values, float).round(DECIMALS)
    mean, low, high = interval(values)
    return dict.fromkeys(MEASURED, np.nan) | {
        "difference": mean,
        "seeds_low": low,
        "seeds_high": high,
        "p": _p_seeds(values),
        "seeds": f"{(np.sign(values) == np.sign(mean)).sum()} of {len(values)}",
    }


def _p_seeds(values: np.ndarray) -> float:
    """Return the p value of a paired t test; of equal values that are not 0 the least there is."""
    if np.ptp(values):
        return stats.ttest_1samp(values, 0).pvalue
    return float(values[0] == 0) if len(values) > 1 else np.nan


def over_images(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Bootstrap the mean of (N,) over test images: its 95 % interval, and p for a mean of 0."""
    random = np.random.Generator(np.random.Philox(seed))
    means = np.array(
        [values[random.integers(len(values), size=len(values))].mean() for _ in range(REPLICATES)]
    )
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    tail = 1 + min((means <= 0).sum(), (means >= 0).sum())
    return low, high, min(1.0, 2 * tail / (REPLICATES + 1))


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjust the p values of a family of comparisons (Holm 1979); NaN stays, and does not count."""
    p = pd.Series(np.asarray(p, float))
    known = p.dropna().sort_values()
    adjusted = known * np.arange(len(known), 0, -1)
    return adjusted.cummax().clip(upper=1).reindex(p.index).to_numpy()


def comparisons(
    figure: str, values: dict[str, Scores], pairs: Sequence[tuple[str | None, str]]
) -> list[dict[str, Any]]:
    """Return a row for each pair of methods that share a seed.

    Args:
        figure: What the values are.
        values: By method.
        pairs: The names of two methods each; those without values are left out.

    Returns:
        `method`, `other`, `figure`, and the first's `difference` from the other.
    """
    return [
        {"method": one, "other": other, "figure": figure} | compared(values[one], values[other])
        for one, other in pairs
        if values.get(one, {}).keys() & values.get(other, {}).keys()
    ]


def compared(first: Scores, second: Scores) -> dict[str, Any]:
    """Return the `difference` of two methods on the seeds that they share."""
    seeds = [seed for seed in first if seed in second]
    return difference(*(np.stack([each[seed] for seed in seeds]) for each in (first, second)))


def judged(comparisons: Sequence[dict[str, Any]], families: Sequence[str]) -> pd.DataFrame:
    """Judge comparisons: each by its own p, and by Holm's over those that belong together.

    Args:
        comparisons: From `difference`, with more columns where wanted, such as `expected`, the sign
            that is claimed.
        families: The columns that make a family.

    Returns:
        A row a comparison, with `holm`, `raw` and `verdict`; of none, a table of no rows.
    """
    table = pd.DataFrame(comparisons)
    if table.empty:
        return pd.DataFrame(columns=["method", "other", "figure", *COLUMNS])
    table["holm"] = table.groupby([*families])["p"].transform(holm)
    for name, p in (("raw", "p"), ("verdict", "holm")):
        rows = zip(comparisons, table[p], strict=True)
        table[name] = [verdict(row, p, row.get("expected", 0)) for row, p in rows]
    return table


def verdict(comparison: dict[str, Any], p: float, expected: int = 0) -> str:
    """Judge a comparison.

    Args:
        comparison: From `difference`.
        p: Its own p value, or that of `holm`.
        expected: The sign that is claimed of it, or 0.

    Returns:
        UNDECIDED, TOO_FEW, or AFTER_HOLM; else of an expected sign "supports" or "contradicts", and
        of none "higher" or "lower".
    """
    if comparison["differing"] < LEAST_DIFFERING:
        return TOO_FEW
    lows = np.array([comparison["seeds_low"], comparison["images_low"]])
    highs = np.array([comparison["seeds_high"], comparison["images_high"]])
    if not comparison["p"] < LEVEL or (lows == highs).any():
        return UNDECIDED
    sign = int(np.nanmin(lows) > 0) - int(np.nanmax(highs) < 0)  # NaN: no interval over images
    if not sign:
        return UNDECIDED
    if not p < LEVEL:
        return AFTER_HOLM
    if not expected:
        return "higher" if sign > 0 else "lower"
    return "supports" if sign == expected else "contradicts"
