"""Embedding tables behind one interface: bags of rows in, one vector per video or user out.

Which tables exist, and how many rows each has, follows from the ``FeatureSpec`` alone. Two
implementations with equal results: :class:`PlainTables` here (one process, CPU or GPU, serving) and
``training.distributed`` with TorchRec collections (several ranks).

Axes: N videos or users looked up, D dimensions.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.features import EncodedTable, FeatureSpec

#: Row 0 of every table stands for an unknown value; it is trained through id dropout.
UNKNOWN_ROW = 0


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
            {
                name: (v.to(device, non_blocking=True), o.to(device, non_blocking=True))
                for name, (v, o) in self.bags.items()
            },
            {name: matrix.to(device, non_blocking=True) for name, matrix in self.dense.items()},
            self.size,
        )


class Tables(Protocol):
    """Lookups of all bag features of one side, pooled and added up."""

    def __call__(self, features: FeatureBatch) -> Tensor:
        """Σ over features of the mean over the feature's bag, ``[N, D]``; empty bags add nothing."""
        ...


class PlainTables(nn.Module):
    """One weight ``[rows, D]`` per bag feature."""

    def __init__(self, rows: dict[str, int], dim: int) -> None:
        super().__init__()
        self.names = list(rows)
        self.dim = dim
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(count, dim) * 0.02) for name, count in rows.items()}
        )

    def forward(self, features: FeatureBatch) -> Tensor:
        """See :class:`Tables`."""
        anchor = next(self.parameters(), None)
        total = torch.zeros(features.size, self.dim, device=anchor.device if anchor is not None else None)
        for name in self.names:
            values, offsets = features.bags[name]
            if values.numel() > 0:
                weight = self.weights[name]
                total = total + F.embedding_bag(
                    values, weight, offsets, mode="mean", include_last_offset=True
                )
        return total


def table_rows(spec: FeatureSpec, side: str) -> dict[str, int]:
    """Rows of each bag feature's table on ``side``, in the order of the spec."""
    return {feature.name: feature.rows for feature in spec.side(side).bags}


def dense_widths(spec: FeatureSpec, side: str) -> dict[str, int]:
    """Width of each dense feature on ``side``."""
    return {feature.name: feature.width for feature in spec.side(side).dense}
