"""The one definition of how a user vector and a video vector are compared.

A score is the inner product of the *final* vectors, everywhere: loss, index, server, replay. With
``cosine`` the towers L2-normalise what they return, so the inner product is the cosine; the learned
temperature belongs to the loss and never changes an order.
"""

from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional as F


class Similarity(Enum):
    """How the towers finish their vectors."""

    dot = "dot"
    cosine = "cosine"


def finish(vector_ND: Tensor, similarity: Similarity) -> Tensor:
    """Final vectors ``[N, D]``; a zero vector stays zero under ``cosine``."""
    return F.normalize(vector_ND, dim=-1) if similarity is Similarity.cosine else vector_ND


def scores(user_BD: Tensor, video_ND: Tensor) -> Tensor:
    """Scores ``[B, N]`` of every user against every video."""
    return torch.matmul(user_BD, video_ND.T)
