"""What a reader hands over: the dataset's tables as expressions, and how to describe and report them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import ibis.expr.types as ir

from data.dataset import DatasetInfo
from data.readers.report import ImportReport
from data.readers.staging import Staging


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """The few settings that some readers have; ``configs/import.yaml`` explains and defaults them."""

    like_from_rating: float
    validation_share: float
    seed: int
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(slots=True)
class Draft:
    """A dataset about to be written.

    ``tables`` holds ``events`` and any optional tables in contract columns; times are int64 Unix
    microseconds. Videos that only events name are added to ``videos`` by the writer.
    """

    info: DatasetInfo
    tables: dict[str, ir.Table]
    report: ImportReport


Reader = Callable[[Staging, Path, ReaderOptions], Draft]
