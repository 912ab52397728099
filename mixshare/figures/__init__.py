"""Matplotlib figures from tables and tensors; nothing is computed here but where to draw."""

# ruff: noqa: F401 (names for others)

from mixshare.figures.names import FIGURES, title
from mixshare.figures.of_architecture import architecture
from mixshare.figures.of_results import along, claims, results
from mixshare.figures.of_speed import time_spent
from mixshare.figures.of_studies import (
    adjustments,
    alignment,
    drift,
    kernels,
    overlaid,
    overlaps,
    short,
    start,
)
from mixshare.figures.of_training import answers, curves, mixing, note, schedule
from mixshare.figures.of_trust import panels
from mixshare.figures.style import save
