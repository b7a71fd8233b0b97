"""The two-tower retrieval model: users and videos in one space, compared by ``models.similarity``.

Axes: B users, S history steps, N videos, P positives, D dimensions.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.embeddings import FeatureBatch, PlainTables, TablesFactory
from models.layers import BlockKind
from models.sequence import HistoryEncoder, Steps
from models.similarity import Similarity, finish
from models.towers import UserToken, VideoTower


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTowerShape:
    """Everything that fixes the parameters of a :class:`TwoTower`; stored beside its weights.

    ``video_rows`` / ``user_rows`` are embedding-table rows per bag feature, ``*_dense`` the widths of
    dense features, all derived from the ``FeatureSpec``. ``max_steps`` is the longest history read.
    """

    video_rows: dict[str, int]
    video_dense: dict[str, int]
    user_rows: dict[str, int]
    user_dense: dict[str, int]
    surfaces: int
    dim: int
    layers: int
    heads: int
    dropout: float
    block: BlockKind
    max_steps: int
    use_time: bool
    use_position: bool
    similarity: Similarity

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :meth:`from_json`."""
        return asdict(self) | {"block": self.block.value, "similarity": self.similarity.value}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TwoTowerShape":
        """Rebuild a shape; unknown or missing keys raise ``TypeError``."""
        enums = {"block": BlockKind(value["block"]), "similarity": Similarity(value["similarity"])}
        return cls(**(value | enums))


class TwoTower(nn.Module):
    """User tower over the history, video tower over ids, content and product tags."""

    def __init__(self, shape: TwoTowerShape, *, tables: TablesFactory = PlainTables) -> None:
        """``tables`` makes the embedding tables of each side (``training`` has sharded ones)."""
        super().__init__()
        self.shape = shape
        dim = shape.dim
        self.video_tower = VideoTower(tables(shape.video_rows, dim), shape.video_dense, dim)
        self.user_token = UserToken(tables(shape.user_rows, dim), shape.user_dense, dim, shape.dropout)
        self.history = HistoryEncoder(
            video_dim=dim, width=dim, layers=shape.layers, heads=shape.heads, dropout=shape.dropout,
            block=shape.block, max_steps=shape.max_steps, surfaces=shape.surfaces, use_time=shape.use_time,
            use_position=shape.use_position,
        )  # fmt: skip
        self.user_out = nn.Linear(dim, dim)
        # scores of the loss are divided by this; it never changes an order
        self.log_temperature = nn.Parameter(
            torch.tensor(-2.5 if shape.similarity is Similarity.cosine else 0.0)
        )

    def encode_videos(self, features: FeatureBatch) -> Tensor:
        """Final video vectors ``[N, D]``."""
        return finish(self.video_tower(features), self.shape.similarity)

    def encode_users(self, steps: Steps, video_ND: Tensor, user_features: FeatureBatch) -> Tensor:
        """Final user vectors ``[B, D]`` at the end of each history (row ``length`` of the states)."""
        states_BSD = self.encode_states(steps, video_ND, user_features)
        row = torch.arange(states_BSD.shape[0], device=states_BSD.device)
        return self.finish_users(states_BSD[row, steps.length_B])

    def encode_states(self, steps: Steps, video_ND: Tensor, user_features: FeatureBatch) -> Tensor:
        """States ``[B, S + 1, D]``: position h knows the user and the first h steps."""
        states: Tensor = self.history(steps, video_ND, self.user_token(user_features))
        return states

    def finish_users(self, state_PD: Tensor) -> Tensor:
        """Final user vectors of chosen states ``[P, D]``."""
        return finish(state_PD + self.user_out(F.gelu(state_PD)), self.shape.similarity)

    @property
    def temperature(self) -> Tensor:
        """Positive scalar; clamped so that a runaway cannot overflow the softmax."""
        return self.log_temperature.clamp(-5.0, 3.0).exp()
