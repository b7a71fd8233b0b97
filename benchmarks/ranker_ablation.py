"""``shopreel train model=ranker`` with one part taken out, to see what it brings.

    python benchmarks/ranker_ablation.py PART prepared=PREPARED out=RUN [key=value …]

PART: ``attention`` (a candidate neither asks the history nor is compared with its tastes), ``counters`` (no
counts over all users), ``matches`` (no rates of the user's own steps like the candidate), ``content`` (no
regression on the videos' vectors), ``products`` (no prices, offers and languages), ``funnel`` (every step on
its own), ``debiasing`` (quantiles of watch time over all durations at once), ``rare`` (no values hidden) or
``none``. Everything else is the command's, and the run is one as any other.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

import data.ranking_loader as loading
import shopreel
from models.interaction import CandidateAttention, Tastes
from training import ranker_start


def without_attention() -> list[str]:
    """The history's answers to every candidate are nothing: their last weights stay 0."""
    _silence(CandidateAttention, "out")
    _silence(Tastes, "key")
    return []


def _silence(module: type[nn.Module], layer: str) -> None:
    build = module.__init__

    def silent(self: nn.Module, *arguments: Any) -> None:
        build(self, *arguments)
        getattr(self, layer).weight.requires_grad_(False).zero_()

    module.__init__ = silent  # type: ignore[method-assign]


def without_counters() -> list[str]:
    """No counts per video, creator and product."""
    loading.COUNTED = ()  # type: ignore[misc]
    return []


def without_matches() -> list[str]:
    """No matched features between candidate and history."""
    loading.MATCHED = ()  # type: ignore[misc]
    return []


def without(**fields: Any) -> list[str]:
    """Some of the ranker's numbers are left out."""
    build: Any = loading.RankingSpec
    loading.RankingSpec = lambda **settings: build(**settings | fields)  # type: ignore[misc, assignment]
    return []


def without_funnel() -> list[str]:
    """No task is conditional on another."""
    ranker_start.funnel_parents = lambda prepared, tasks: (-1,) * len(tasks)  # type: ignore[assignment]
    return []


PARTS: dict[str, Callable[[], list[str]]] = {
    "none": list, "attention": without_attention, "counters": without_counters, "matches": without_matches,
    "content": partial(without, content=False),
    "products": partial(without, price_rows=0, market_rows=(), language_rows=()),
    "funnel": without_funnel, "debiasing": lambda: ["model.watch_groups=1"],
    "rare": lambda: ["model.id_dropout=0"],
}  # fmt: skip

if __name__ == "__main__":
    overrides = PARTS[sys.argv[1]]()
    sys.exit(shopreel.main(["train", "model=ranker", *overrides, *sys.argv[2:]]))
