"""The multi-task ranker: one user, many candidates, a probability per step from watching to buying.

The per-user part (:meth:`Ranker.encode_users`) runs once per request, the per-candidate part
(:meth:`Ranker.score`) for every candidate on its own: nothing in it looks at another candidate.

Axes: B requests, S history steps, K candidates, T tasks, D width, F and G statistics.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.schema import LABELS
from models.embeddings import FeatureBatch
from models.fields import FieldEncoder
from models.interaction import CandidateAttention, CrossLayers, Experts, Tastes
from models.sequence import GAP_BUCKETS, WATCH_BUCKETS, Steps, log_bucket

#: Width of the embeddings of surface, market and hour.
CONTEXT_DIM = 8
HOURS = 25
#: Statistics are cut off at so many standard deviations.
MAX_STATISTIC = 5.0
#: The expected logarithm of an order's value stays within so many standard deviations of the log's mean.
MAX_ORDER = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerShape:
    """Everything that fixes the parameters of a :class:`Ranker`; stored beside its weights.

    ``parents[t]`` is the funnel step that task t is conditional on, −1 for none. ``watch_bins`` 0 and
    ``order_value`` false leave those heads out; ``order_columns``: the candidate's statistics, first and one
    after the last, that tell of its products. ``positions``: slots with a bias of their own in training.
    """

    video_rows: dict[str, int]
    video_dense: dict[str, int]
    user_rows: dict[str, int]
    user_dense: dict[str, int]
    surfaces: int
    markets: int
    tasks: tuple[str, ...]
    parents: tuple[int, ...]
    watch_bins: int
    watch_groups: int
    order_value: bool
    order_columns: tuple[int, int]
    positions: int
    user_statistics: int
    candidate_statistics: int
    field_dim: int
    dim: int
    width: int
    heads: int
    tastes: int
    cross_layers: int
    cross_rank: int
    experts: int
    hidden: int
    dropout: float
    attention_steps: int
    use_time: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RankerShape":
        """Rebuild a shape; unknown or missing keys raise ``TypeError``."""
        lists = {name: tuple(value[name]) for name in ("tasks", "parents", "order_columns")}
        return cls(**(value | lists))


@dataclass(slots=True)
class UserState:
    """What :meth:`Ranker.encode_users` computed once: the user's vector, its share of the first layer
    ``[B, W]`` and of the linear part ``[B, T]``, memory of the history, valid steps, tastes ``[B, H, D]``,
    and the mean logarithm of order values in the user's market (empty without that head).
    """

    vector_BD: Tensor
    first_BW: Tensor
    linear_BT: Tensor
    memory_BSE: Tensor
    valid_BS: Tensor
    taste_BHD: Tensor
    order_mean_B: Tensor


@dataclass(slots=True)
class Scores:
    """Raw heads: task logits ``[B, K, T]`` (conditional on the parent), watch ``[B, K, Q − 1]`` and order
    value ``[B, K, 2]``, None without that head.
    """

    task_BKT: Tensor
    watch_BKE: Tensor | None
    order_BK2: Tensor | None


class Ranker(nn.Module):
    """Fields, history attention, statistics → one layer → cross layers → experts → heads.

    The first layer is a sum of a user's and a candidate's share, so that the former is computed once.
    """

    user_mean: Tensor
    user_scale: Tensor
    candidate_mean: Tensor
    candidate_scale: Tensor
    order_mean: Tensor
    order_scale: Tensor

    def __init__(self, shape: RankerShape) -> None:
        super().__init__()
        self.shape = shape
        dim, width = shape.dim, shape.width
        self.videos = FieldEncoder(shape.video_rows, shape.video_dense, shape.field_dim, dim, shape.dropout)
        self.users = FieldEncoder(shape.user_rows, shape.user_dense, shape.field_dim, dim, shape.dropout)
        self.outcome = nn.Linear(2 * len(LABELS), dim, bias=False)
        self.watch_embedding = nn.Embedding(WATCH_BUCKETS, dim)
        self.recency_embedding = nn.Embedding(GAP_BUCKETS, dim)
        self.step_surface_embedding = nn.Embedding(shape.surfaces, dim)
        self.step_norm = nn.LayerNorm(dim)
        self.attention = CandidateAttention(dim, shape.heads)
        self.tastes = Tastes(dim, shape.tastes)
        self.surface_embedding = nn.Embedding(shape.surfaces, CONTEXT_DIM)
        self.market_embedding = nn.Embedding(shape.markets, CONTEXT_DIM)
        self.hour_embedding = nn.Embedding(HOURS, CONTEXT_DIM)
        for name, number in (("user", shape.user_statistics), ("candidate", shape.candidate_statistics)):
            self.register_buffer(f"{name}_mean", torch.zeros(number))
            self.register_buffer(f"{name}_scale", torch.ones(number))
        for table in (self.watch_embedding, self.recency_embedding, self.step_surface_embedding,
                      self.surface_embedding, self.market_embedding, self.hour_embedding):  # fmt: skip
            nn.init.normal_(table.weight, std=0.02)
        of_user = self.users.width + 3 * CONTEXT_DIM + shape.user_statistics
        of_candidate = self.videos.width + 2 * dim + shape.tastes + shape.candidate_statistics
        tasks = len(shape.tasks)
        self.user_first = nn.Linear(of_user, width)
        self.candidate_first = nn.Linear(of_candidate, width, bias=False)
        self.user_linear = nn.Linear(of_user, tasks)
        self.candidate_linear = nn.Linear(of_candidate, tasks, bias=False)
        for layer in (self.user_linear, self.candidate_linear):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.user_linear.bias)
        self.cross = CrossLayers(width, shape.cross_rank, shape.cross_layers)
        self.dropout = nn.Dropout(shape.dropout)
        heads = tasks + (shape.watch_bins > 0) + shape.order_value
        self.experts = Experts(width, shape.hidden, shape.experts, heads, shape.dropout)
        self.task_out = nn.Parameter(torch.randn(tasks, shape.hidden) * shape.hidden**-0.5)
        self.watch_out = nn.Linear(shape.hidden, shape.watch_bins - 1) if shape.watch_bins else None
        self.order_out = nn.Linear(shape.hidden, 2) if shape.order_value else None
        if self.order_out is not None:
            first, last = shape.order_columns
            self.order_products = nn.Parameter(torch.zeros(2, last - first))
            nn.init.normal_(self.order_out.weight, std=0.01)
            nn.init.zeros_(self.order_out.bias)
            # mean per market (currencies differ) and spread of the logarithm of training's order values:
            # the head says how far from them
            self.register_buffer("order_mean", torch.zeros(shape.markets))
            self.register_buffer("order_scale", torch.ones(()))
        # row 0 = unknown position, which is what serving always has
        self.position_embedding = nn.Embedding(shape.positions + 1, len(shape.tasks), padding_idx=0)
        nn.init.zeros_(self.position_embedding.weight)

    def encode_videos(self, features: FeatureBatch) -> Tensor:
        """Video vectors ``[N, V]``: the first ``dim`` columns joint, the last ``dim`` the same normalised.

        Serving computes them once.
        """
        vector_NV: Tensor = self.videos(features)
        return torch.cat([vector_NV, self.tastes.norm(vector_NV[:, : self.shape.dim])], dim=1)

    def encode_users(
        self, features: FeatureBatch, steps: Steps, now_ms_B: Tensor, video_NV: Tensor,
        statistics_BF: Tensor, surface_B: Tensor, market_B: Tensor, hour_B: Tensor,
    ) -> UserState:  # fmt: skip
        """The per-user part. ``steps.video_BS`` are rows of ``video_NV``; unknown user features are row 0."""
        context_BC = torch.cat(
            [self.surface_embedding(surface_B), self.market_embedding(market_B), self.hour_embedding(hour_B)],
            dim=1,
        )
        fields_BU = self.users(features)
        user_BU = torch.cat(
            [fields_BU, context_BC, _scaled(statistics_BF, self.user_mean, self.user_scale)], dim=1
        )
        bit = torch.arange(len(LABELS), device=now_ms_B.device)
        actions, known = (
            (mask[..., None] >> bit & 1).to(video_NV.dtype) for mask in (steps.actions_BS, steps.known_BS)
        )
        age = steps.length_B[:, None] - 1 - torch.arange(steps.video_BS.shape[1], device=now_ms_B.device)
        if self.shape.use_time:
            age = (now_ms_B[:, None] - steps.time_ms_BS) // 1000
        came_BSD = (
            self.outcome(torch.cat([actions, known * (1 - actions)], -1))
            + self.watch_embedding(log_bucket(steps.watch_ms_BS, WATCH_BUCKETS))
            + self.recency_embedding(log_bucket(age.clamp_min(0), GAP_BUCKETS))
            + self.step_surface_embedding(steps.surface_BS)
        )
        step_BSD = video_NV[:, : self.shape.dim][steps.video_BS]
        normal_BSD = video_NV[:, -self.shape.dim :][steps.video_BS]
        valid_BS = torch.arange(step_BSD.shape[1], device=now_ms_B.device) < steps.length_B[:, None]
        order_mean_B = self.order_mean[market_B] if self.order_out is not None else now_ms_B.new_zeros(0)
        return UserState(
            fields_BU[:, : self.shape.dim], self.user_first(user_BU), self.user_linear(user_BU),
            self.attention.remember(self.step_norm(step_BSD + came_BSD)), valid_BS,
            self.tastes.remember(normal_BSD, came_BSD, valid_BS), order_mean_B,
        )  # fmt: skip

    def score(
        self, user: UserState, video_BKV: Tensor, statistics_BKG: Tensor, position_BK: Tensor | None = None
    ) -> Scores:
        """The per-candidate part. ``position_BK`` (−1 unknown) is for training only: serving has none."""
        vector_BKD, normal_BKD = video_BKV[..., : self.shape.dim], video_BKV[..., -self.shape.dim :]
        history_BKD = self.attention(vector_BKD, user.memory_BSE, user.valid_BS)
        statistics_BKG = self.scaled_candidate(statistics_BKG)
        candidate_BKC = torch.cat(
            [video_BKV[..., : -self.shape.dim], history_BKD, user.vector_BD[:, None] * vector_BKD,
             self.tastes(normal_BKD, user.taste_BHD), statistics_BKG], dim=-1,
        )  # fmt: skip
        x = self.cross(user.first_BW[:, None] + self.candidate_first(candidate_BKC))
        mixed = self.experts(self.dropout(F.gelu(x)))
        tasks = len(self.shape.tasks)
        logit = (mixed[..., :tasks, :] * self.task_out).sum(-1)
        logit = logit + user.linear_BT[:, None] + self.candidate_linear(candidate_BKC)
        if position_BK is not None:
            logit = logit + self.position_embedding((position_BK + 1).clamp(0, self.shape.positions))
        watch = self.watch_out(mixed[..., tasks, :]) if self.watch_out is not None else None
        order = (
            self._order(mixed[..., -1, :], statistics_BKG, user.order_mean_B)
            if self.order_out is not None
            else None
        )
        return Scores(logit, watch, order)

    def scaled_candidate(self, statistics_G: Tensor) -> Tensor:
        """Candidates' statistics ``[…, G]`` as the layers read them: mean 0, variance 1, no extremes."""
        return _scaled(statistics_G, self.candidate_mean, self.candidate_scale)

    def _order(self, mixed_BKH: Tensor, statistics_BKG: Tensor, mean_B: Tensor) -> Tensor:
        """Mean and log spread of the logarithm of an order's value ``[B, K, 2]``, near those of training: few
        impressions teach this head, and it is read on all of them. So it reads few statistics, and what the
        other heads have made, of which it shapes nothing: it would fit those few by heart.
        """
        assert self.order_out is not None
        products_BKP = statistics_BKG[..., slice(*self.shape.order_columns)]
        apart_BK2 = self.order_out(mixed_BKH.detach()) + products_BKP @ self.order_products.T
        apart_BK2 = MAX_ORDER * torch.tanh(apart_BK2.to(self.order_mean.dtype) / MAX_ORDER)
        mu = mean_B[:, None] + self.order_scale * apart_BK2[..., 0]
        return torch.stack([mu, self.order_scale.log() + apart_BK2[..., 1].clamp_max(0.5)], dim=-1)


def _scaled(statistics: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return ((statistics - mean) * scale).clamp(-MAX_STATISTIC, MAX_STATISTIC)
