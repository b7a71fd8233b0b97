"""Validation of the towers through the inference path: held-out requests ranked over the whole catalogue."""

from dataclasses import dataclass

import numpy as np

from data.prepared import Prepared
from models.inference import UserEncoder, embed_catalogue, final_vectors
from models.two_tower import TwoTower
from training.distributed import ALONE, Ranks
from training.validation import HeldOut, rank_metrics

#: Requests of a rank whose scores tell how much scores deviate.
SAMPLE = 256


@dataclass(frozen=True, slots=True)
class HeldVectors:
    """Final vectors of this rank's share of the held-out requests, and of the whole catalogue.

    ``users`` is how many requests all ranks have; axes as in :mod:`models.inference`.
    """

    held: HeldOut
    users: int
    user_BD: np.ndarray
    video_ND: np.ndarray

    def metrics(
        self, k: int, ranks: Ranks = ALONE, beside: tuple[np.ndarray, np.ndarray] | None = None
    ) -> dict[str, float]:
        """Mean metrics over the requests of all ranks; ``beside``: further columns of users and videos.
        Collective.
        """
        user_BD, video_ND = self.user_BD, self.video_ND
        if beside is not None:
            user_BD = np.concatenate([user_BD, beside[0]], axis=1)
            video_ND = np.concatenate([video_ND, beside[1]], axis=1)
        metrics = rank_metrics(self.held, user_BD, video_ND, k)
        if ranks.world == 1:
            return metrics
        totals = ranks.sum([value * len(self.held.requests) for value in metrics.values()])
        return {name: total / max(self.users, 1) for name, total in zip(metrics, totals, strict=True)}


def held_vectors(
    model: TwoTower,
    prepared: Prepared,
    held: HeldOut,
    trend_NK: np.ndarray | None = None,
    ranks: Ranks = ALONE,
    batch: int = 512,
) -> HeldVectors:
    """Embed the catalogue and the users of the held-out requests, each rank its share. Collective.

    ``trend_NK`` is the trend as the split begins, for a model that has one.
    """
    was_training = model.training
    model.eval()
    device = str(next(model.parameters()).device)
    catalogue, users = prepared.video_table.num_rows, len(held.requests)
    own_NL = embed_catalogue(model, prepared.video_table.take(ranks.share(catalogue)))
    video_ND = final_vectors(model, prepared.video_table, ranks.joined(own_NL, catalogue), trend_NK)
    encoder = UserEncoder(model, prepared.user_table, video_ND, device)
    share = ranks.share(users) if users else np.zeros(0, np.int64)
    requests = [held.requests[user] for user in share]
    parts = [encoder.encode(requests[i : i + batch]) for i in range(0, len(requests), batch)]
    user_BD = np.concatenate(parts) if parts else np.zeros((0, model.shape.width), np.float32)
    model.train(was_training)
    owned = ranks.owned(users)
    return HeldVectors(held.take(share[:owned]), users, user_BD[:owned], video_ND)


def deviation_ratio(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], ranks: Ranks = ALONE
) -> float:
    """How much more scores of the first vectors of users and videos deviate over videos than those of the
    second; 0 where those do not. Collective.
    """
    own = [float((user_BD[:SAMPLE] @ video_ND.T).std(axis=1).sum()) for user_BD, video_ND in (first, second)]
    first_sum, second_sum = ranks.sum(own)
    return first_sum / second_sum if second_sum > 0 else 0.0
