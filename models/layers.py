"""Blocks of the history encoder. Axes: B batch, S steps, D model width, H heads.

Steps are padded at the end; causal attention alone then keeps padding out of every valid position.
"""

from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BlockKind(Enum):
    """Which block the history encoder stacks."""

    sasrec = "sasrec"
    ligr = "ligr"
    hstu = "hstu"


class Dropout(nn.Module):
    """``nn.Dropout`` in less than half its time on CPU, where drawing is most of it: 16 bits a value."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Zero a ``share`` of the values in training and scale the others up."""
        if not self.training or self.share == 0.0:
            return x
        if x.is_cuda:
            return F.dropout(x, self.share, True)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        threshold = round(self.share * 65536) - 32768
        kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= threshold
        return x * kept.to(x.dtype).mul_(1 / (1 - self.share))


class CausalAttention(nn.Module):
    """Multi-head causal self-attention ``[B, S, D] → [B, S, D]``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"model width {width} must be a multiple of heads {heads}")
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width, bias=False)
        self.project_out = nn.Linear(width, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Attend to this and earlier steps only."""
        batch, steps, width = x_BSD.shape
        qkv = self.project_in(x_BSD).view(batch, steps, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # the kernel that fits a CPU has no dropout of its own
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.project_out(attended.transpose(1, 2).reshape(batch, steps, width))
        return out


class SasRecBlock(nn.Module):
    """Pre-norm transformer block (SASRec, Kang and McAuley 2018, with GELU)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """``[B, S, D] → [B, S, D]``."""
        x_BSD = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD)))
        out: Tensor = x_BSD + self.dropout(self.feed(self.feed_norm(x_BSD)))
        return out


class LigrBlock(nn.Module):
    """Gated residual block with SwiGLU (LiGR, Borisyuk 2025, as used in eSASRec 2025)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.attention_gate = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 8 * width // 3 * 2, bias=False)
        self.feed_out = nn.Linear(8 * width // 3, width, bias=False)
        self.feed_gate = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """``[B, S, D] → [B, S, D]``."""
        attended = self.attention(self.attention_norm(x_BSD))
        x_BSD = x_BSD + self.dropout(attended * torch.sigmoid(self.attention_gate(x_BSD)))
        value, gate = self.feed_in(self.feed_norm(x_BSD)).chunk(2, dim=-1)
        fed = self.feed_out(value * F.silu(gate))
        out: Tensor = x_BSD + self.dropout(fed * torch.sigmoid(self.feed_gate(x_BSD)))
        return out


class HstuBlock(nn.Module):
    """Pointwise-aggregated attention with SiLU (HSTU, Zhai 2024), relative positions learned."""

    def __init__(self, width: int, heads: int, dropout: float, max_steps: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, 4 * width, bias=False)
        self.value_norm = nn.LayerNorm(width)
        self.project_out = nn.Linear(width, width)
        self.relative_bias = nn.Parameter(torch.zeros(heads, max_steps))
        self.dropout = Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """``[B, S, D] → [B, S, D]``."""
        batch, steps, width = x_BSD.shape
        gate, value, query, key = F.silu(self.project_in(self.norm(x_BSD))).chunk(4, dim=-1)

        def split(t_BSD: Tensor) -> Tensor:
            return t_BSD.view(batch, steps, self.heads, -1).transpose(1, 2)

        position = torch.arange(steps, device=x_BSD.device)
        distance = position[:, None] - position[None, :]
        bias_HSS = self.relative_bias[:, distance.clamp(0, self.relative_bias.shape[1] - 1)]
        logits_BHSS = split(query) @ split(key).transpose(-1, -2) / (width // self.heads) ** 0.5 + bias_HSS
        # dividing by the number of visible steps keeps the scale equal over lengths
        visible = (position + 1).to(x_BSD.dtype)[:, None]
        weights_BHSS = F.silu(logits_BHSS).masked_fill(distance < 0, 0.0) / visible
        attended = (weights_BHSS @ split(value)).transpose(1, 2).reshape(batch, steps, width)
        out: Tensor = x_BSD + self.dropout(self.project_out(self.value_norm(attended) * gate))
        return out


def build_block(kind: BlockKind, width: int, heads: int, dropout: float, max_steps: int) -> nn.Module:
    """One block of ``kind``; ``max_steps`` bounds HSTU's relative positions."""
    match kind:
        case BlockKind.sasrec:
            return SasRecBlock(width, heads, dropout)
        case BlockKind.ligr:
            return LigrBlock(width, heads, dropout)
        case BlockKind.hstu:
            return HstuBlock(width, heads, dropout, max_steps)
