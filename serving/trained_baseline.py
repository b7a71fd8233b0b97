"""A counting model from ``shopreel train`` over the same held-out requests as the bundle's."""

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np

from data.atomic import read_json
from data.errors import ConfigError, ContractError
from models.baselines import Baseline, BaselineKind
from models.bundle import Bundle
from serving.exact import BLOCK_FLOATS, Hits, Rows, Vectors, best_first
from serving.held_out import HeldOutBatch
from serving.replay_tables import TableWriter, run_rows, run_schema

#: Kinds that replay ranks from their run; it counts popularity itself.
KINDS = (BaselineKind.item_knn, BaselineKind.ease, BaselineKind.ials)


@dataclass(slots=True)
class TrainedBaseline:
    """Writes ``run_<kind>.parquet``; a context manager that closes it."""

    bundle: Bundle
    model: Baseline
    file: Path
    _table: TableWriter | None = field(default=None, init=False)

    @classmethod
    def open(cls, run: str, bundle: Bundle, directory: Path) -> "TrainedBaseline":
        """The baseline of a run directory; refuses one that counted other prepared data than the bundle's."""
        if not (Path(run) / "run.json").is_file():
            raise ConfigError(f"baselines: no {run}/run.json; give the out= of shopreel train model=ease")
        record = read_json(Path(run) / "run.json")
        kinds = [kind.value for kind in KINDS]
        if record.get("kind") not in kinds:
            raise ConfigError(
                f"baselines: {run} is of kind {record.get('kind')}; replay ranks {', '.join(kinds)} "
                "from their runs, and popularity by itself (baseline=popularity)"
            )
        if record.get("prepared", {}).get("hash") != bundle.manifest.models["two_tower"]["prepared"]:
            raise ContractError(
                f"baselines: {run} was trained on other prepared data than the bundle; train it on the same"
            )
        model = Baseline.load(Path(run) / "model")
        return cls(bundle, model, directory / f"run_{model.kind.value}.parquet")

    def __enter__(self) -> "TrainedBaseline":
        self._table = TableWriter(self.file, run_schema(self.bundle))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._table is not None:
            self._table.__exit__(kind, error, trace)

    def add(self, batch: HeldOutBatch, k: int) -> None:
        """Rank the requests of ``batch`` over the whole catalogue, seen videos masked."""
        assert self._table is not None
        users = [self.model.engaged(request.user.history) for request in batch.requests]
        size = max(1, BLOCK_FLOATS // len(self.bundle.catalogue))
        hits: list[Hits] = []
        for start in range(0, len(users), size):
            score_UN = self.model.scores(users[start : start + size])
            seen = batch.seen[start : start + size]
            hits += [top(score_N, rows, k) for score_N, rows in zip(score_UN, seen, strict=True)]
        self._table.write(run_rows(self.bundle, batch.request_ids, hits, self.model.kind.value))


def top(score_N: Vectors, seen: Rows, k: int) -> Hits:
    """The ``k`` best rows of one user's scores without row 0 and those ``seen``; equal scores by row."""
    score_N = score_N.copy()
    score_N[0], score_N[seen] = -np.inf, -np.inf
    k = min(k, len(score_N))
    least = np.partition(score_N, -k)[-k]
    rows = np.flatnonzero((score_N >= least) & np.isfinite(score_N))
    return best_first(rows, score_N[rows], k)
