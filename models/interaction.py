"""How the ranker lets features meet: attention of the candidate over the history, cross layers, experts.

Axes: B requests, K candidates, S history steps, D width, H heads, W width of the joint input, T heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Steps that a history must outweigh before its tastes count for half.
TASTE_PRIOR = 16.0


class CandidateAttention(nn.Module):
    """The candidate asks the history: multi-head attention with a learned empty step.

    The empty step is always there, so a user without history, or without anything related, has a
    well-defined answer. Keys and values belong to the user and are computed once per request.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} must be a multiple of heads {heads}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.empty = nn.Parameter(torch.zeros(2 * width))
        self.out = nn.Linear(width, width, bias=False)

    def remember(self, step_BSD: Tensor) -> Tensor:
        """Keys and values ``[B, S + 1, 2D]``, the empty step last."""
        empty = self.empty.expand(step_BSD.shape[0], 1, -1)
        return torch.cat([self.key_value(step_BSD), empty], dim=1)

    def forward(self, candidate_BKD: Tensor, memory_BSE: Tensor, valid_BS: Tensor) -> Tensor:
        """``[B, K, D]``; ``valid_BS`` [B, S] marks real steps."""
        batch, candidates, width = candidate_BKD.shape

        def split(t: Tensor) -> Tensor:
            return t.view(t.shape[0], t.shape[1], self.heads, width // self.heads).transpose(1, 2)

        key, value = memory_BSE.chunk(2, dim=-1)
        valid = torch.cat([valid_BS, valid_BS.new_ones(batch, 1)], dim=1)[:, None, None]
        attended = F.scaled_dot_product_attention(
            split(self.query(candidate_BKD)), split(key), split(value), attn_mask=valid
        )
        out: Tensor = self.out(attended.transpose(1, 2).reshape(batch, candidates, width))
        return out


class Tastes(nn.Module):
    """What a user is drawn to: sums over the whole history of what was shown, weighted by what came of it.

    Attention asks which steps are like the candidate and averages what came of them; this adds up evidence,
    as a regression on the videos' vectors would, so that it keeps growing surer with a long history.
    """

    def __init__(self, width: int, tastes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Linear(width, tastes)
        self.key = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.key.weight)

    def remember(self, video_BSD: Tensor, came_BSD: Tensor, valid_BS: Tensor) -> Tensor:
        """Tastes ``[B, H, D]`` from normalised videos and what came of them; nothing from no history."""
        weight_BSH = self.weight(came_BSD) * valid_BS[..., None]
        share_B = 1.0 / (valid_BS.sum(1) + TASTE_PRIOR)
        taste_BHD: Tensor = self.key(weight_BSH.transpose(1, 2) @ video_BSD) * share_B[:, None, None]
        return taste_BHD

    def forward(self, candidate_BKD: Tensor, taste_BHD: Tensor) -> Tensor:
        """How far each normalised candidate lies along each taste ``[B, K, H]``."""
        return candidate_BKD @ taste_BHD.transpose(1, 2)


class CrossLayers(nn.Module):
    """DCNv2 with low-rank weights (Wang 2021): x₍ₗ₊₁₎ = x₀ ⊙ (U V xₗ + b) + xₗ, ``[…, W] → […, W]``."""

    def __init__(self, width: int, rank: int, layers: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(rank, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Cross the input with itself, layer by layer."""
        crossed = x
        for down, up in zip(self.down, self.up, strict=True):
            crossed = x * up(down(crossed)) + crossed
        return crossed


class Experts(nn.Module):
    """Multi-gate mixture of experts (MMoE, Ma 2018): ``[…, W] → […, T, hidden]``."""

    def __init__(self, width: int, hidden: int, experts: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.experts = nn.Linear(width, experts * hidden)
        self.gates = nn.Linear(width, heads * experts)
        self.dropout = nn.Dropout(dropout)
        self.heads, self.number = heads, experts

    def forward(self, x: Tensor) -> Tensor:
        """One mixture per head."""
        said = self.dropout(F.gelu(self.experts(x))).unflatten(-1, (self.number, -1))
        gate = self.gates(x).unflatten(-1, (self.heads, self.number)).softmax(-1)
        mixed: Tensor = gate @ said
        return mixed
