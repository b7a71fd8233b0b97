"""The history encoder of logs without order: what a user engaged with, as the sum of its videos.

Where nothing tells what came first, a linear map of the sum is ahead of attention and of anything with a
nonlinearity (docs/retrieval.md). Axes: B users, S steps (padded at the end), D dimensions.
"""

import torch
from torch import Tensor, nn

from models.sequence import Steps


class SetEncoder(nn.Module):
    """Sums of the first h videos of a set, over the root of their number."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(dim))

    def forward(self, steps: Steps, video_ND: Tensor, user_token_BD: Tensor) -> Tensor:
        """States ``[B, S + 1, D]``: position h knows the user and the first h videos."""
        start_B1D = (self.start + user_token_BD)[:, None]
        sums_BSD = torch.cat([start_B1D, video_ND[steps.video_BS]], dim=1).cumsum(1)
        count_S = torch.arange(1, sums_BSD.shape[1] + 1, device=sums_BSD.device, dtype=sums_BSD.dtype)
        return sums_BSD / count_S.sqrt()[:, None]
