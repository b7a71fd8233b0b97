"""The history encoder: what a user did, step by step, as one vector per moment.

Axes: B users, S steps (padded at the end), D model width, L labels.
Position 0 is the user token (user features); step s stands at position s + 1, so the state at
position h knows exactly the first h steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.schema import LABELS
from models.devices import to_device
from models.layers import BlockKind, Dropout, build_block

#: Bucket 0 = unknown; then powers of two.
WATCH_BUCKETS = 24
GAP_BUCKETS = 40
#: Steps that a taste is worth before anything is known of it.
PRIOR_STEPS = 8
#: Brings a taste to about the size of the other paths as training begins.
TASTE_SCALE = 4.0


@dataclass(slots=True)
class Steps:
    """History steps ``[B, S]``, oldest first, padded at the end with zeros.

    ``video_BS`` are rows of the video matrix handed to the encoder; ``actions_BS`` and ``known_BS``
    are label masks; ``watch_ms_BS`` is −1 where unknown; ``time_ms_BS`` is Unix time.
    """

    video_BS: Tensor
    actions_BS: Tensor
    known_BS: Tensor
    watch_ms_BS: Tensor
    surface_BS: Tensor
    time_ms_BS: Tensor
    length_B: Tensor

    def to(self, device: torch.device) -> "Steps":
        """Copy to ``device``."""
        return Steps(*(to_device(getattr(self, name), device) for name in self.__dataclass_fields__))


def log_bucket(value: Tensor, buckets: int) -> Tensor:
    """Bucket of a non-negative quantity by powers of two; negative (unknown) gives bucket 0.

    ``0 → 1, 1 → 2, 2‥3 → 3, 4‥7 → 4, …``, capped at ``buckets − 1``.
    """
    exponent = torch.frexp(value.clamp_min(0).to(torch.float64)).exponent
    return torch.where(value < 0, 0, (exponent.long() + 1).clamp_max(buckets - 1))


def outcomes_of(steps: Steps, dtype: torch.dtype) -> Tensor:
    """What came of each step, ``[B, S, 2L]``: which labels are true, and which are known not to be."""
    bit = torch.arange(len(LABELS), device=steps.actions_BS.device)
    actions_BSL = (steps.actions_BS[..., None] >> bit) & 1
    known_BSL = (steps.known_BS[..., None] >> bit) & 1
    return torch.cat([actions_BSL, known_BSL - actions_BSL * known_BSL], dim=-1).to(dtype)


class Taste(nn.Module):
    """A regression of outcomes on videos in one linear step: videos weighted by what came of them, added up.

    The other paths add a step's outcome to its video, so that a mean over steps keeps no trace of which
    outcome belonged to which video; here they are multiplied. The sum is divided by the number of steps plus
    ``PRIOR_STEPS``: a short history says little.
    """

    def __init__(self, video_dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Linear(2 * len(LABELS), width)
        self.video_in = nn.Linear(video_dim, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, video_ND: Tensor, video_BS: Tensor, outcome_BSL: Tensor) -> Tensor:
        """``[B, S + 1, width]``; zeros before the first step."""
        step_BSD = self.dropout(self.video_in(video_ND)[video_BS]) * self.weight(outcome_BSL)
        count_S = torch.arange(1, video_BS.shape[1] + 1, device=step_BSD.device, dtype=step_BSD.dtype)
        taste_BSD = self.out(TASTE_SCALE * step_BSD.cumsum(1) / (count_S[:, None] + PRIOR_STEPS))
        return F.pad(taste_BSD, (0, 0, 1, 0))


class HistoryEncoder(nn.Module):
    """Causal encoder over steps; the video matrix it reads is the video tower's own output.

    Beside what the blocks make of the last steps, a state has the mean of all steps: what a user always
    liked need not pass through attention. Where ``outcomes`` differ it also has what sets the videos
    that a user took to apart from the others (:class:`Taste`).
    """

    def __init__(
        self,
        *,
        video_dim: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        block: BlockKind,
        max_steps: int,
        surfaces: int,
        use_time: bool,
        outcomes: bool = False,
    ) -> None:
        super().__init__()
        self.max_steps = max_steps
        self.use_time = use_time
        self.video_in = nn.Linear(video_dim, width, bias=False)
        self.outcome_in = nn.Linear(2 * len(LABELS), width, bias=False)
        self.watch = nn.Embedding(WATCH_BUCKETS, width)
        self.surface = nn.Embedding(surfaces, width)
        self.gap = nn.Embedding(GAP_BUCKETS, width) if use_time else None
        self.position = nn.Embedding(max_steps + 1, width)
        self.start = nn.Parameter(torch.zeros(width))
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            build_block(block, width, heads, dropout, max_steps + 1) for _ in range(layers)
        )
        self.bag_norm = nn.LayerNorm(width)
        self.bag_out = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.taste = Taste(video_dim, width, dropout) if outcomes else None
        for table in (self.watch, self.surface, self.gap, self.position):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, steps: Steps, video_ND: Tensor, user_token_BD: Tensor | None) -> Tensor:
        """States ``[B, S + 1, width]``: position h knows the user and the first h steps."""
        batch, length = steps.video_BS.shape
        outcome_BSL = outcomes_of(steps, video_ND.dtype)
        x_BSD = (
            self.video_in(video_ND[steps.video_BS])
            + self.outcome_in(outcome_BSL)
            + self.watch(log_bucket(steps.watch_ms_BS, WATCH_BUCKETS))
            + self.surface(steps.surface_BS)
        )
        if self.gap is not None:
            x_BSD = x_BSD + self.gap(self._gaps(steps.time_ms_BS))
        start_BD = self.start.expand(batch, -1)
        if user_token_BD is not None:
            start_BD = start_BD + user_token_BD
        x_BSD = torch.cat([start_BD[:, None], x_BSD], dim=1)
        x_BSD = self.dropout(x_BSD + self.position.weight[: length + 1])
        count_S1 = torch.arange(1, length + 2, device=x_BSD.device, dtype=x_BSD.dtype)[:, None]
        bag_BSD = self.bag_out(self.dropout(self.bag_norm(x_BSD.cumsum(1) / count_S1)))
        for block in self.blocks:
            x_BSD = block(x_BSD)
        out: Tensor = self.norm(x_BSD) + bag_BSD
        if self.taste is not None:
            out = out + self.taste(video_ND, steps.video_BS, outcome_BSL)
        return out

    @staticmethod
    def _gaps(time_ms_BS: Tensor) -> Tensor:
        """Bucket of the seconds since the step before; unknown for the first."""
        gap_s = (time_ms_BS[:, 1:] - time_ms_BS[:, :-1]).clamp_min(0) // 1000
        return torch.cat([torch.zeros_like(time_ms_BS[:, :1]), log_bucket(gap_s, GAP_BUCKETS)], dim=1)
