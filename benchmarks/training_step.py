"""What benchmarks of training share: the ranker's recipe, an update rule, and one step as a run makes it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from training.placement import OneProcess, UpdateRule

RULE = UpdateRule(learning_rate=1e-3, weight_decay=0.01, dense_table_rows=500_000, table_learning_rate=0.02)


def ranker_recipe() -> Any:
    """The ranker's default recipe, read without Hydra."""
    path = Path(__file__).resolve().parent.parent / "configs" / "model" / "ranker.yaml"
    return SimpleNamespace(**yaml.safe_load(path.read_text(encoding="utf-8")))


def train(placement: OneProcess, batch: Any) -> None:
    """Loss, backward pass, clipping and update."""
    placement.optimizers.begin_step(1.0)
    placement.loss(batch).backward()
    placement.optimizers.clip(1.0)
    placement.optimizers.step()
