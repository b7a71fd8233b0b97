"""Field embeddings: every feature of a ``FeatureSpec`` side keeps a vector of its own.

Axes: N videos or users, F fields, D dimensions of the joint vector.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.embeddings import FeatureBatch


class FieldEncoder(nn.Module):
    """Mean-pooled bags and dense vectors, side by side, behind one projection of them all.

    A bag has ``field_dim`` columns, a dense vector (an embedding that came from elsewhere) ``dim``.
    Encodes to ``[N, width]``: the first ``dim`` columns are the projection, the others the fields.
    """

    def __init__(
        self, rows: dict[str, int], dense: dict[str, int], field_dim: int, dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(count, field_dim) * 0.01) for name, count in rows.items()}
        )
        self.dense = nn.ModuleDict({name: nn.Linear(width, dim) for name, width in dense.items()})
        self.dropout = nn.Dropout(dropout)
        self.default = nn.Parameter(torch.zeros(dim))
        fields = len(rows) * field_dim + len(dense) * dim
        self.width = dim + fields
        self.out = nn.Linear(fields, dim, bias=False) if fields else None

    def forward(self, features: FeatureBatch) -> Tensor:
        """``[N, width]``; a side without features has the learned default alone."""
        parts = [
            F.embedding_bag(features.bags[name][0], weight, features.bags[name][1], mode="mean",
                            include_last_offset=True)
            if features.bags[name][0].numel() else weight.new_zeros(features.size, weight.shape[1])
            for name, weight in self.tables.items()
        ]  # fmt: skip
        parts += [layer(features.dense[name]) for name, layer in self.dense.items()]
        if self.out is None:
            return self.default.expand(features.size, -1)
        fields = torch.cat(parts, dim=1)
        return torch.cat([self.out(self.dropout(fields)) + self.default, fields], dim=1)
