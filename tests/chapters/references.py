"""Slow references, and runs that are made of given scores, for the tests of differences."""

from types import SimpleNamespace

import numpy as np

from mixshare import RunConfig

LEVELS = np.linspace(0.00037, 0.99971, 400)


def step_down(p, level: float) -> list[bool]:
    """Say of each p whether Holm's procedure rejects its hypothesis at this level; NaN is none."""
    known = [value for value in p if not np.isnan(value)]
    limit = -1.0
    for k, value in enumerate(sorted(known)):
        if value > level / (len(known) - k):
            break
        limit = value
    return [bool(value <= limit) for value in p]


def is_holm(adjusted, p) -> bool:
    """Return whether adjusted p values reject what the step-down procedure does, at any level."""
    return all((np.asarray(adjusted) <= a).tolist() == step_down(p, a) for a in LEVELS)


def scored(method: str, seed: int, right, nll, **overrides) -> SimpleNamespace:
    """Return what tables read of a run, of given scores (N,) of its ensemble."""
    config = RunConfig.preset("smoke", method, seed, **overrides)
    scores = {"right": np.asarray([right], bool), "nll": np.asarray([nll], np.float16)}
    return SimpleNamespace(config=config, has_scores=True, scores=scores)
