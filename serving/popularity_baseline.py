"""Popularity over the same held-out requests as the model: the baseline that nothing may fall below.

Several windows before the split are ranked; the one with the best recall on this very truth is kept. That
choice looks at the answers, in the baseline's favour.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow.compute as pc

from data.dataset import Dataset
from data.engine import Engine, open_engine
from data.held_out import HeldOutRules
from data.schema import LABELS
from data.split import split_rank
from models.bundle import EVERYWHERE, Bundle, Popularity
from serving.held_out import HeldOutBatch
from serving.popularity import WHOLE_HISTORY, count_positives, most_popular, popular_hits
from serving.replay_tables import TableWriter, run_rows, run_schema

FILE = "run_popularity.parquet"
#: Cutoff of the recall by which windows are compared.
CUTOFF = 20


@dataclass(slots=True)
class PopularityBaseline:
    """Run tables of one ranking per window; a context manager that closes them."""

    bundle: Bundle
    directory: Path
    ranking: dict[int, Popularity]
    recall_sum: dict[int, float] = field(default_factory=dict)
    requests: int = 0
    _files: ExitStack = field(default_factory=ExitStack)
    _tables: dict[int, TableWriter] = field(default_factory=dict)

    @classmethod
    def count(
        cls, bundle: Bundle, dataset: Dataset, split: str, *, gain: str, days: list[int], directory: Path,
        memory_limit_gb: float,
    ) -> "PopularityBaseline":  # fmt: skip
        """Count ``gain`` before the split in every window; a log without real times has one window, all."""
        if not (dataset.info.real_time and dataset.info.ordered):
            days = [WHOLE_HISTORY]
        labels = [label for label in LABELS if label != "hide"] if gain == "any" else [gain]
        with open_engine(Engine.duckdb, memory_limit_gb=memory_limit_gb) as session:
            counts = count_positives(
                session, dataset, bundle.catalogue, split=HeldOutRules.of(bundle.prepared).split,
                rank=split_rank(split), labels=labels, days=days,
            )  # fmt: skip
        ranking = {window: most_popular(by_market[EVERYWHERE]) for window, by_market in counts.items()}
        return cls(bundle, directory, ranking, dict.fromkeys(ranking, 0.0))

    def __enter__(self) -> "PopularityBaseline":
        for window in self.ranking:
            table = TableWriter(self._path(window), run_schema(self.bundle))
            self._tables[window] = self._files.enter_context(table)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def add(self, batch: HeldOutBatch, k: int) -> None:
        """Rank the requests of ``batch`` by every window."""
        if not batch.requests:
            return
        request = pc.index_in(batch.truth["request_id"], value_set=batch.request_ids).to_numpy()
        true_row = self.bundle.catalogue.rows(batch.truth["video_id"])
        order = np.argsort(request, kind="stable")
        truths = np.split(
            true_row[order], np.cumsum(np.bincount(request, minlength=len(batch.requests)))[:-1]
        )
        for window, popularity in self.ranking.items():
            hits = [popular_hits(popularity, seen, k) for seen in batch.seen]
            self._tables[window].write(run_rows(self.bundle, batch.request_ids, hits, "popularity"))
            self.recall_sum[window] += sum(
                float(np.isin(truth, answer.video_row[:CUTOFF]).mean())
                for truth, answer in zip(truths, hits, strict=True)
            )
        self.requests += len(batch.requests)

    def recall(self) -> dict[int, float]:
        """Mean recall@20 per window, in days, 0 the whole history."""
        return {window: total / max(1, self.requests) for window, total in self.recall_sum.items()}

    def best(self) -> int:
        """The window with the highest recall, the shortest among equals but the whole history last."""
        recall = self.recall()
        return max(recall, key=lambda window: (recall[window], -(window or 10**9)))

    def keep_best(self) -> None:
        """After the context has closed: keep the best window as ``run_popularity.parquet``."""
        for window in self.ranking:
            path = self._path(window)
            if window == self.best():
                path.replace(self.directory / FILE)
            else:
                path.unlink()

    def _path(self, window: int) -> Path:
        return self.directory / f".popularity_{window}.parquet"
