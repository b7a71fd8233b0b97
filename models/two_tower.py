"""The two-tower retrieval model: users and videos in one space, compared by ``models.similarity``.

Axes: B users, S history steps, N videos, P positives, D dimensions, E of what comes of what is shown,
L = D + E, K trend features, C directions.

A final vector has D + E + K + C dimensions: D that the towers learn, E that a second pair of towers learns
(``models.outcome_towers``); K that hold the trend, how much the video was shown lately (``data.trend``), with
the user's weights for it on the other side; and C of what was seen by the same people
(``models.co_engagement``), fitted in closed form once the towers are trained. The score stays one inner
product. The history encoder reads the first D alone.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.co_engagement import CoEngagement
from models.embeddings import INITIAL_STD, FeatureBatch, PlainTables, TablesFactory
from models.layers import BlockKind
from models.managed import ManagedFeatures
from models.outcome_towers import MOST_ROWS, OutcomeTowers
from models.sequence import GAP_BUCKETS, HistoryEncoder, Steps, log_bucket
from models.sets import SetEncoder
from models.similarity import Similarity, finish
from models.towers import UserToken, VideoTower

#: The feature that tells one video from another.
VIDEO_ID = "video_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTowerShape:
    """Everything that fixes the parameters of a :class:`TwoTower`; stored beside its weights.

    ``video_rows`` / ``user_rows`` are embedding-table rows per bag feature, ``*_dense`` the widths of
    dense features, all derived from the ``FeatureSpec``. ``max_steps`` is the longest history read.
    ``outcomes`` says that what came of steps differs, ``outcome_dim`` is E − 1, 0 without such towers.
    ``trend`` is K, 0 where days mean nothing; ``co_engagement`` is C, 0 where it does not help.
    ``managed`` are the features whose rows the model hands out (``models.managed``).
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
    outcomes: bool = False
    outcome_dim: int = 0
    trend: int = 0
    co_engagement: int = 0
    managed: tuple[str, ...] = ()

    @property
    def learnt(self) -> int:
        """Dimensions of final vectors that are learnt step by step, L."""
        return self.dim + (self.outcome_dim + 1 if self.outcome_dim else 0)

    @property
    def trend_columns(self) -> slice:
        """Dimensions of final vectors that hold the trend."""
        return slice(self.learnt, self.learnt + self.trend)

    @property
    def width(self) -> int:
        """Dimensions of final vectors, D + E + K + C."""
        return self.learnt + self.trend + self.co_engagement

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :meth:`from_json`."""
        return asdict(self) | {"block": self.block.value, "similarity": self.similarity.value}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "TwoTowerShape":
        """Rebuild a shape; unknown or missing keys raise ``TypeError``."""
        enums = {"block": BlockKind(value["block"]), "similarity": Similarity(value["similarity"])}
        return cls(**(value | enums | {"managed": tuple(value.get("managed", ()))}))


class TwoTower(nn.Module):
    """User tower over the history, video tower over ids, content and product tags."""

    def __init__(self, shape: TwoTowerShape, *, tables: TablesFactory = PlainTables) -> None:
        """``tables`` makes the embedding tables of each side (``training`` has sharded ones)."""
        super().__init__()
        self.shape = shape
        dim = shape.dim
        self.video_tower = VideoTower(
            tables(shape.video_rows, dim), shape.video_dense, dim, _managed(shape, shape.video_rows)
        )
        self.user_token = UserToken(
            tables(shape.user_rows, dim), shape.user_dense, dim, shape.dropout,
            _managed(shape, shape.user_rows),
        )  # fmt: skip
        self.history = _history_encoder(shape)
        self.request_gap = nn.Embedding(GAP_BUCKETS, dim) if shape.use_time else None
        if self.request_gap is not None:
            nn.init.normal_(self.request_gap.weight, std=INITIAL_STD)
        self.user_out = nn.Linear(dim, dim)
        self.ordered = shape.use_position
        self.trend_out = nn.Linear(dim, shape.trend) if shape.trend else None
        self.trend_shift_K: Tensor
        if self.trend_out is not None:
            self.register_buffer("trend_shift_K", torch.zeros(shape.trend))
            # everybody starts as a follower of what is shown, half-lives alike
            nn.init.zeros_(self.trend_out.weight)
            nn.init.constant_(self.trend_out.bias, 1 / shape.trend)
        self.outcome_towers = _outcome_towers(shape, tables) if shape.outcome_dim else None
        rank = shape.co_engagement
        self.co_engagement = CoEngagement(shape.video_rows[VIDEO_ID], rank, dim) if rank else None
        # log-odds of engagement at a score of 0; it never changes an order
        self.ignored_bias = nn.Parameter(torch.zeros(())) if shape.outcomes else None
        # scores of the loss are divided by this; it never changes an order
        self.log_temperature = nn.Parameter(
            torch.tensor(-2.5 if shape.similarity is Similarity.cosine else 0.0)
        )

    def encode_videos(self, features: FeatureBatch) -> Tensor:
        """The learnt part of final video vectors, ``[N, L]``."""
        video_ND = finish(self.video_tower(features), self.shape.similarity)
        if self.outcome_towers is None:
            return video_ND
        return torch.cat([video_ND, self.outcome_towers.videos(features)], dim=1)

    def encode_users(
        self, steps: Steps, video_NL: Tensor, user_features: FeatureBatch, time_ms_B: Tensor
    ) -> Tensor:
        """User vectors ``[B, L + K]`` at the end of each history, asked for at ``time_ms_B``.

        The trend's weights are those of training, shifted by what validation says of them
        (``training.trend_shift``).
        """
        dim = self.shape.dim
        states_BSD = self.encode_states(steps, video_NL, user_features)
        row = torch.arange(states_BSD.shape[0], device=states_BSD.device)
        user_BX = self.finish_users(states_BSD, steps, row, steps.length_B, time_ms_B)
        if self.trend_out is not None:
            user_BX = user_BX + F.pad(self.trend_shift_K, (dim, 0))
        if self.outcome_towers is None:
            return user_BX
        state_BE = self.outcome_towers.states(steps, video_NL[:, dim:], user_features)[row, steps.length_B]
        outcome_BE = self.outcome_towers.weight * self.outcome_towers.users(state_BE)
        return torch.cat([user_BX[:, :dim], outcome_BE, user_BX[:, dim:]], dim=1)

    def encode_states(self, steps: Steps, video_NL: Tensor, user_features: FeatureBatch) -> Tensor:
        """States ``[B, S + 1, D]``: position h knows the user and the first h steps."""
        states: Tensor = self.history(steps, video_NL[:, : self.shape.dim], self.user_token(user_features))
        return states

    def finish_users(
        self, states_BSD: Tensor, steps: Steps, row_P: Tensor, position_P: Tensor, time_ms_P: Tensor
    ) -> Tensor:
        """User vectors ``[P, D + K]`` of states by row and position, asked for at ``time_ms_P``."""
        state_PD = states_BSD[row_P, position_P]
        if self.request_gap is not None:
            state_PD = state_PD + self.request_gap(_request_gap(steps, row_P, position_P, time_ms_P))
        out_PD = state_PD + self.user_out(F.gelu(state_PD)) if self.ordered else self.user_out(state_PD)
        user_PD = finish(out_PD, self.shape.similarity)
        if self.trend_out is None:
            return user_PD
        # the loss divides scores by the temperature; the trend is to act on what comes after
        return torch.cat([user_PD, self.trend_out(state_PD) * self.temperature], dim=1)

    @property
    def temperature(self) -> Tensor:
        """Positive scalar; clamped so that a runaway cannot overflow the softmax."""
        return self.log_temperature.clamp(-5.0, 3.0).exp()


def _managed(shape: TwoTowerShape, rows: dict[str, int]) -> ManagedFeatures:
    """The maps of one side's managed features."""
    return ManagedFeatures({name: count for name, count in rows.items() if name in shape.managed})


def _outcome_towers(shape: TwoTowerShape, tables: TablesFactory) -> OutcomeTowers:
    """Towers over the same features but for managed ones, whose rows are given to the others."""
    video, user = (
        {name: count for name, count in rows.items() if name not in shape.managed and count <= MOST_ROWS}
        for rows in (shape.video_rows, shape.user_rows)
    )
    return OutcomeTowers((video, shape.video_dense), (user, shape.user_dense), shape.outcome_dim, tables)


def _history_encoder(shape: TwoTowerShape) -> nn.Module:
    """What reads the history: positions mean something only in a log with an order."""
    if not shape.use_position:
        return SetEncoder(shape.dim)
    return HistoryEncoder(
        video_dim=shape.dim, width=shape.dim, layers=shape.layers, heads=shape.heads, dropout=shape.dropout,
        block=shape.block, max_steps=shape.max_steps,
        surfaces=shape.surfaces, use_time=shape.use_time, outcomes=shape.outcomes,
    )  # fmt: skip


def _request_gap(steps: Steps, row_P: Tensor, position_P: Tensor, time_ms_P: Tensor) -> Tensor:
    """Bucket of the seconds from the last known step to the request; unknown without a step."""
    if steps.time_ms_BS.shape[1] == 0:
        return torch.zeros_like(position_P)
    last_ms_P = steps.time_ms_BS[row_P, (position_P - 1).clamp_min(0)]
    gap_s_P = (time_ms_P - last_ms_P).clamp_min(0) // 1000
    return log_bucket(torch.where(position_P > 0, gap_s_P, -1), GAP_BUCKETS)
