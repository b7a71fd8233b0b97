"""Towers apart from the others that learn what comes of what is shown, whoever chose to show it.

The softmax finds what was shown and liked; in a feed's log that is mostly a matter of what its policy shows,
and vectors that must tell both at once tell what is liked badly. So a second, smaller pair of towers learns
from shown videos alone which of them are engaged with and which ignored (log loss), and its vectors stand
beside the others in the one inner product. A user is features and a :class:`~models.sequence.Taste`.

Axes: B users, S steps, N videos, P moments, E dimensions of an outcome vector, the last one a video's bias.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.embeddings import FeatureBatch, TablesFactory
from models.managed import ManagedFeatures
from models.sequence import Steps, Taste, outcomes_of
from models.towers import UserToken, VideoTower, refinement

#: Features of more values are left out: of each too little is known to say whether it is liked.
MOST_ROWS = 500_000


class OutcomeTowers(nn.Module):
    """Log-odds of engagement as an inner product, without features whose rows the model hands out."""

    def __init__(
        self,
        video: tuple[dict[str, int], dict[str, int]],
        user: tuple[dict[str, int], dict[str, int]],
        dim: int,
        tables: TablesFactory,
    ) -> None:
        """``video`` and ``user``: table rows of bag features, widths of dense features. Vectors are of
        ``dim`` + 1.
        """
        super().__init__()
        none = ManagedFeatures({})
        self.video_tower = VideoTower(tables(video[0], dim), video[1], dim, none)
        self.user_token = UserToken(tables(user[0], dim), user[1], dim, 0.0, none)
        self.video_bias = nn.Linear(dim, 1)
        self.taste = Taste(dim, dim, 0.0)
        self.refine = refinement(dim)
        #: What its scores are multiplied by beside those of the other towers; validation says how much.
        self.weight: Tensor
        self.register_buffer("weight", torch.zeros(()))

    def videos(self, features: FeatureBatch) -> Tensor:
        """Video vectors ``[N, E]``."""
        video_ND = self.video_tower(features)
        return torch.cat([video_ND, self.video_bias(video_ND)], dim=1)

    def states(self, steps: Steps, video_NE: Tensor, user_features: FeatureBatch) -> Tensor:
        """States ``[B, S + 1, E − 1]``: position h knows the user and what came of the first h steps."""
        taste_BSD: Tensor = self.taste(video_NE[:, :-1], steps.video_BS, outcomes_of(steps, video_NE.dtype))
        token_BD: Tensor = self.user_token(user_features)
        return taste_BSD + token_BD[:, None]

    def users(self, state_PD: Tensor) -> Tensor:
        """User vectors ``[P, E]`` of such states: their inner product with a video's is the log-odds."""
        return F.pad(state_PD + self.refine(state_PD), (0, 1), value=1.0)
