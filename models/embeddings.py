"""Embedding tables behind one interface: bags of rows in, one vector per video or user out.

Which tables exist, and how many rows each has, follows from the ``FeatureSpec`` alone. Two
implementations with equal results: :class:`PlainTables` here (one process, CPU or GPU, serving) and
``training.torchrec_tables`` (TorchRec collections, cut over several processes).

Axes: N videos or users looked up, D dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.features import EncodedTable, FeatureSpec
from models.devices import to_device

#: Row 0 of every table stands for an unknown value; it is trained through id dropout.
UNKNOWN_ROW = 0
#: Standard deviation of a new table's entries.
INITIAL_STD = 0.02
#: Rows drawn by one generator: any stretch of a table can be drawn without the rows before it.
_ROWS_AT_ONCE = 1024


@dataclass(slots=True)
class FeatureBatch:
    """Encoded features of N videos or users.

    ``bags[name]`` is ``(values int64 [nnz], offsets int64 [N + 1])``: row i holds
    ``values[offsets[i]:offsets[i + 1]]``, possibly none. ``dense[name]`` is float32 ``[N, width]``.
    """

    bags: dict[str, tuple[Tensor, Tensor]]
    dense: dict[str, Tensor]
    size: int

    @classmethod
    def of(cls, table: EncodedTable) -> "FeatureBatch":
        """Share the memory of an encoded table."""
        bags = {
            name: (torch.from_numpy(np.asarray(values)), torch.from_numpy(np.asarray(offsets)))
            for name, (values, offsets) in table.bags.items()
        }
        dense = {name: torch.from_numpy(np.asarray(matrix)) for name, matrix in table.dense.items()}
        return cls(bags, dense, table.num_rows)

    def to(self, device: torch.device) -> "FeatureBatch":
        """Copy to ``device``; a no-op where it is there already."""
        return FeatureBatch(
            {name: (to_device(v, device), to_device(o, device)) for name, (v, o) in self.bags.items()},
            {name: to_device(matrix, device) for name, matrix in self.dense.items()},
            self.size,
        )


class Tables(Protocol):
    """Lookups of all bag features of one side, pooled and added up."""

    def __call__(self, features: FeatureBatch) -> Tensor:
        """Σ over features of the mean over the feature's bag, ``[N, D]``; empty bags add nothing."""
        ...


#: Makes the tables of one side from the rows of each bag feature and the dimensions.
TablesFactory = Callable[[dict[str, int], int], nn.Module]


class PlainTables(nn.Module):
    """One weight ``[rows, D]`` per bag feature.

    Tables of more than ``dense_rows`` rows get sparse gradients, which name the touched rows only.
    """

    def __init__(self, rows: dict[str, int], dim: int, *, dense_rows: int | None = None) -> None:
        super().__init__()
        self.names = list(rows)
        self.dim = dim
        self.sparse = {name for name, count in rows.items() if dense_rows is not None and count > dense_rows}
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(initial_rows(draw_seed(), 0, count, dim)) for name, count in rows.items()}
        )
        self.nothing: Tensor  # where the tables are, also when there are none
        self.register_buffer("nothing", torch.zeros(dim), persistent=False)

    def forward(self, features: FeatureBatch) -> Tensor:
        """See :class:`Tables`."""
        total = self.nothing.expand(features.size, -1)
        for name in self.names:
            values, offsets = features.bags[name]
            if values.numel() > 0:
                total = total + bag_means(self.weights[name], values, offsets, sparse=name in self.sparse)
        return total


def bag_means(weight: Tensor, values: Tensor, offsets: Tensor, *, sparse: bool = False) -> Tensor:
    """Mean of the looked-up rows of each bag ``[N, D]``, zeros for an empty one; differentiable.

    On CPU the sum has a kernel several times faster than the mean's, and most bags hold one value.
    """
    if values.is_cuda:
        return F.embedding_bag(values, weight, offsets, mode="mean", include_last_offset=True, sparse=sparse)
    total = F.embedding_bag(values, weight, offsets, mode="sum", include_last_offset=True, sparse=sparse)
    length = offsets.diff()
    return total if int(length.max()) <= 1 else total / length.clamp(min=1)[:, None]


def draw_seed() -> int:
    """A seed for one table, from torch's global generator."""
    return int(torch.randint(1 << 62, ()))


def initial_rows(seed: int, begin: int, end: int, dim: int) -> Tensor:
    """Rows ``begin`` … ``end`` − 1 of a new table, float32 ``[end − begin, dim]``.

    Normal with :data:`INITIAL_STD`; a row depends on ``seed`` and its number alone, so that a table
    starts equal however it is cut over processes.
    """
    parts = [torch.empty(0, dim)]
    for block in range(begin // _ROWS_AT_ONCE, -(-end // _ROWS_AT_ONCE)):
        generator = torch.Generator().manual_seed(seed + block)
        drawn = torch.randn(_ROWS_AT_ONCE, dim, generator=generator)
        first = block * _ROWS_AT_ONCE
        parts.append(drawn[max(begin - first, 0) : max(end - first, 0)])
    return torch.cat(parts).mul_(INITIAL_STD)


def table_rows(spec: FeatureSpec, side: str) -> dict[str, int]:
    """Rows of each bag feature's table on ``side``, in the order of the spec."""
    return {feature.name: feature.rows for feature in spec.side(side).bags}


def managed_table_rows(spec: FeatureSpec, side: str) -> dict[str, int]:
    """The same for a model that hands out the rows of managed features (``models.managed``)."""
    return {feature.name: feature.managed_rows or feature.rows for feature in spec.side(side).bags}


def dense_widths(spec: FeatureSpec, side: str) -> dict[str, int]:
    """Width of each dense feature on ``side``."""
    return {feature.name: feature.width for feature in spec.side(side).dense}
