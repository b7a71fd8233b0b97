"""``shopreel train model=ranker`` with one part taken out, to see what it brings.

    python benchmarks/ranker_ablation.py PART prepared=PREPARED out=RUN [key=value …]

PART: ``attention`` (the candidate reads no history), ``counters`` (no counts over all users), ``matches``
(no rates of the user's own steps like the candidate), ``funnel`` (every step on its own), ``debiasing``
(quantiles of watch time over all durations at once), ``rare`` (no values hidden) or ``none``. Everything
else is the command's.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

import data.ranking_loader as loading
import shopreel
from models.interaction import CandidateAttention
from training import ranker_start


def without_attention() -> list[str]:
    """The history's answer to every candidate is nothing."""

    def nothing(self: CandidateAttention, candidate: Tensor, memory: Tensor, valid: Tensor) -> Tensor:
        return torch.zeros_like(candidate)

    CandidateAttention.forward = nothing  # type: ignore[method-assign]
    return []


def without_counters() -> list[str]:
    """No counts per video, creator and product."""
    loading.COUNTED = ()  # type: ignore[misc]
    return []


def without_matches() -> list[str]:
    """No matched features between candidate and history."""
    loading.MATCHED = ()  # type: ignore[misc]
    return []


def without_funnel() -> list[str]:
    """No task is conditional on another."""
    ranker_start.funnel_parents = lambda prepared, tasks: (-1,) * len(tasks)  # type: ignore[assignment]
    return []


PARTS: dict[str, Callable[[], list[str]]] = {
    "none": list, "attention": without_attention, "counters": without_counters, "matches": without_matches,
    "funnel": without_funnel, "debiasing": lambda: ["model.watch_groups=1"],
    "rare": lambda: ["model.id_dropout=0"],
}  # fmt: skip

if __name__ == "__main__":
    overrides = PARTS[sys.argv[1]]()
    sys.exit(shopreel.main(["train", "model=ranker", *overrides, *sys.argv[2:]]))
