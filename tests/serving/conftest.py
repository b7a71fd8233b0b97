"""A tiny market, simulated, trained on and published once for all tests that want the real thing."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from shopreel import run_command


@dataclass(frozen=True)
class Published:
    """A dataset, the run trained on it, and a folder of bundles whose CURRENT is live.

    ``other`` is the name of a second bundle in the same folder: the same model, another popularity.
    """

    market: Path
    run: Path
    bundles: Path
    other: str

    @property
    def live(self) -> str:
        return (self.bundles / "CURRENT").read_text().strip()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """About ten seconds of work."""
    root = tmp_path_factory.mktemp("published")
    market, prepared, run, bundles = (root / name for name in ("market", "prepared", "run", "bundles"))
    dates = "split.validation=2026-03-06 split.test=2026-03-07 split.end=2026-03-08"
    sizes = "users=120 videos=300 products=60 days=6 seed=3"
    model = "model.dim=16 model.layers=1 model.max_steps=32 model.max_epochs=2 max_minutes=0.5 threads=1 "
    model += "model.refit_epochs=0"  # for the validation split to be a test as well
    run_command("simulate", [f"out={market}", *sizes.split()])
    run_command("prepare", [f"dataset={market}", f"out={prepared}", *dates.split()])
    run_command("train", ["model=two_tower", f"prepared={prepared}", f"out={run}", *model.split()])
    publish = [f"two_tower={run}", f"dataset={market}", f"out={bundles}", "min_distinct_share=0.001"]
    run_command("publish", [*publish, "popularity_days=1"])
    other = (bundles / "CURRENT").read_text().strip()
    run_command("publish", publish)
    return Published(market, run, bundles, other)
