"""A run's answers to test images: those kept with it, or those of its weights.

Dimensions: M members, N images, K classes.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixshare import metrics, runs
from mixshare.config import RunConfig
from mixshare.data import Data, load_data
from mixshare.execution import torch_settings
from mixshare.training import predict

LOGITS, PROBABILITIES = "mean of logits", "mean of probabilities"


@dataclass(frozen=True)
class Answers:
    """A run's answers to images; the tables of `results` take them in place of the run."""

    config: RunConfig
    logits: Tensor  # (M, N, K) float64
    labels: Tensor  # (N,) int64
    has_scores = True

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.evaluate` of these answers."""
        return metrics.evaluate(self.logits, self.labels)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """`metrics.image_scores` of these answers."""
        scores = metrics.image_scores(self.logits, self.labels)
        return {name: value.numpy() for name, value in scores.items()}

    @property
    def pooled(self) -> dict[str, Tensor]:
        """Log-probabilities (N, K) of each member and of both ensembles; of one member its own."""
        members = self.logits.log_softmax(dim=2)
        each = {f"member {m + 1}": member for m, member in enumerate(members)}
        mean = {LOGITS: self.logits.mean(dim=0).log_softmax(dim=1)}
        mean[PROBABILITIES] = members.logsumexp(dim=0) - math.log(len(members))
        return each | mean if len(members) > 1 else {LOGITS: members[0]}


def answers(run: runs.Run, data: Data | None = None, images: Tensor | None = None) -> Answers:
    """Return a run's answers: those kept with it, or those of its weights.

    Args:
        run: Finished, with test logits or weights.
        data: Its data set; by default it is loaded where it is needed.
        images: (N, H, W, C) uint8, in place of the test images.

    Raises:
        OSError: Neither is there, or no weights for other images.
    """
    if images is None and run.has_logits:
        return Answers(run.config, run.logits.double(), run.labels)
    data = data or load_data(run.config.dataset)
    images = data.test_images if images is None else images
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch_settings(run.config, device):
        network = deepcopy(run.model).to(device, memory_format=torch.channels_last)
        logits = predict(network, data.to(device), images.to(device), run.config.precision)
    return Answers(run.config, logits.double().cpu(), data.test_labels)


def named(run: runs.Run | Answers) -> dict[str, Any]:
    """Return what a table's row is about: `method` and `seed`."""
    return {"method": run.config.name, "seed": run.config.seed}


def ensemble(members: Sequence[Answers]) -> Answers:
    """Return the answers of a deep ensemble: the logits of its networks are averaged."""
    return replace(members[0], logits=torch.cat([each.logits for each in members]))
