"""Embedding tables behind one interface: bags of rows in, one pooled vector per feature out.

Which tables exist, and how many rows each has, follows from the ``FeatureSpec`` alone. Two
implementations with equal results: :class:`PlainTables` here (one process, CPU or GPU, serving) and
``training.distributed`` with TorchRec collections (several ranks).

Axes: N rows looked up, F features, D dimensions.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

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
    """Pooled lookups of all bag features of one side."""

    def __call__(self, features: FeatureBatch) -> Tensor:
        """Mean-pooled embeddings ``[N, F, D]`` in the order of the spec; an empty bag gives zeros."""
        ...


class PlainTables(nn.Module):
    """One ``nn.Embedding``-like weight per bag feature, pooled by ``embedding_bag``."""

    def __init__(self, rows: dict[str, int], dim: int) -> None:
        super().__init__()
        self.names = list(rows)
        self.dim = dim
        self.weights = nn.ParameterDict(
            {
                name.replace(".", "__"): nn.Parameter(torch.randn(count, dim) * 0.02)
                for name, count in rows.items()
            }
        )

    def forward(self, features: FeatureBatch) -> Tensor:
        """See :class:`Tables`."""
        pooled = []
        for name in self.names:
            values, offsets = features.bags[name]
            weight = self.weights[name.replace(".", "__")]
            if values.numel() == 0:
                pooled.append(weight.new_zeros(features.size, self.dim))
                continue
            pooled.append(
                nn.functional.embedding_bag(values, weight, offsets, mode="mean", include_last_offset=True)
            )
        if not pooled:
            device = next(iter(features.dense.values())).device if features.dense else torch.device("cpu")
            return torch.zeros(features.size, 0, self.dim, device=device)
        return torch.stack(pooled, dim=1)


def table_rows(spec: FeatureSpec, side: str) -> dict[str, int]:
    """Rows of each bag feature's table on ``side``, in the order of the spec."""
    return {feature.name: feature.rows for feature in spec.side(side).bags}


def dense_widths(spec: FeatureSpec, side: str) -> dict[str, int]:
    """Width of each dense feature on ``side``."""
    return {feature.name: feature.width for feature in spec.side(side).dense}
