"""The two towers. Axes: B users, N videos, W feature width, D dimensions."""

from torch import Tensor, nn

from models.embeddings import FeatureBatch, Tables
from models.layers import Dropout
from models.managed import ManagedFeatures


def refinement(dim: int) -> nn.Sequential:
    """An MLP ``[…, dim]`` → ``[…, dim]`` to be added to its input; zero as training begins."""
    last = nn.Linear(2 * dim, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), last)


class VideoTower(nn.Module):
    """Ids, content and product tags of a video → its vector.

    The pooled features are added up (each has its own table), then refined by a residual MLP, so that
    an unknown id leaves a vector that lives on content alone.
    """

    def __init__(
        self, tables: nn.Module, dense_widths: dict[str, int], dim: int, managed: ManagedFeatures
    ) -> None:
        super().__init__()
        self.managed = managed
        self.tables: Tables = tables
        self.dense = nn.ModuleDict(
            {name: nn.Linear(width, dim, bias=False) for name, width in dense_widths.items()}
        )
        # with it the tower starts as the identity: ids and content are learnt first
        self.refine = refinement(dim)

    def forward(self, features: FeatureBatch) -> Tensor:
        """Unfinished video vectors ``[N, D]``."""
        video_ND = self.tables(self.managed(features))
        for name, matrix_NW in features.dense.items():
            video_ND = video_ND + self.dense[name](matrix_NW)
        out: Tensor = video_ND + self.refine(video_ND)
        return out


class UserToken(nn.Module):
    """User features → the token that opens the history; an unknown user gives the learned default."""

    def __init__(
        self,
        tables: nn.Module,
        dense_widths: dict[str, int],
        dim: int,
        dropout: float,
        managed: ManagedFeatures,
    ) -> None:
        super().__init__()
        self.managed = managed
        self.tables: Tables = tables
        self.dense = nn.ModuleDict(
            {name: nn.Linear(width, dim, bias=False) for name, width in dense_widths.items()}
        )
        self.dropout = Dropout(dropout)

    def forward(self, features: FeatureBatch) -> Tensor:
        """User token ``[B, D]``."""
        user_BD = self.tables(self.managed(features))
        for name, matrix_BW in features.dense.items():
            user_BD = user_BD + self.dense[name](matrix_BW)
        out: Tensor = self.dropout(user_BD)
        return out
