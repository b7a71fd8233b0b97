"""Rows brought together by a key without holding all of them: in memory while few, on disk beyond.

Partitioning by a hash of the key puts all rows of one user (or request) into one partition, which then
fits in memory and can be sorted.
"""

import tempfile
from collections.abc import Iterator, Sequence
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.arrays import Words
from evaluation.ids import mix

#: Up to this many rows stay in memory; a partition on disk is about as large.
MEMORY_ROWS = 1 << 22
MAX_PARTITIONS = 256


class Spool:
    """Collects (key, columns …) rows and gives them back partition by partition.

    ``rows`` is how many rows may come (it decides between memory and disk), ``dtypes`` the numpy types
    of the columns beside the key. Temporary files go where ``TMPDIR`` points and are gone on exit.
    """

    def __init__(self, rows: int, dtypes: Sequence[npt.DTypeLike]) -> None:
        self.dtypes: list[np.dtype[Any]] = [np.dtype(kind) for kind in (np.uint64, *dtypes)]
        self.partitions = min(MAX_PARTITIONS, max(1, -(-rows // MEMORY_ROWS)))
        self.in_memory = self.partitions == 1
        self._held: list[list[npt.NDArray[Any]]] = [[] for _ in self.dtypes]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: list[list[BufferedWriter]] = []

    def __enter__(self) -> "Spool":
        if not self.in_memory:
            self._folder = tempfile.TemporaryDirectory(prefix="shopreel-evaluate-")
            self._files = [
                [self._path(part, column).open("wb") for column in range(len(self.dtypes))]
                for part in range(self.partitions)
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for files in self._files:
            for file in files:
                file.close()
        if self._folder is not None:
            self._folder.cleanup()

    def append(self, key_N: Words, *columns: npt.NDArray[Any]) -> None:
        """Add a batch of rows."""
        values = [np.asarray(c, kind) for c, kind in zip((key_N, *columns), self.dtypes, strict=True)]
        if self.in_memory:
            for held, value in zip(self._held, values, strict=True):
                held.append(value)
            return
        part_N = (mix(key_N) % np.uint64(self.partitions)).astype(np.uint16)
        order = np.argsort(part_N, kind="stable")
        ends = np.cumsum(np.bincount(part_N, minlength=self.partitions))
        for column, value in enumerate(values):
            pieces = np.split(value[order], ends[:-1])
            for part, piece in enumerate(pieces):
                self._files[part][column].write(piece.tobytes())

    def __iter__(self) -> Iterator[list[npt.NDArray[Any]]]:
        """Partitions as [key, columns …]; empty ones are skipped."""
        if self.in_memory:
            if self._held[0]:
                yield [np.concatenate(held) for held in self._held]
            return
        for part, files in enumerate(self._files):
            for file in files:
                file.flush()
            if self._path(part, 0).stat().st_size:
                yield [np.fromfile(self._path(part, c), kind) for c, kind in enumerate(self.dtypes)]

    def _path(self, part: int, column: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{part}-{column}"
