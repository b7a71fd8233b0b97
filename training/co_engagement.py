"""What was seen by the same people, beside trained towers: fitted in closed form, weighed by validation.

Axes: as in :mod:`models.co_engagement`.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from data.prepared import Prepared
from data.sequences import Sequences
from models.co_engagement import CoEngagement, Directions, from_learnt
from models.embeddings import table_rows
from models.inference import co_engagement_vectors, collate_steps, id_rows
from models.two_tower import VIDEO_ID
from training.config import TwoTowerConfig
from training.distributed import ALONE, Ranks
from training.retrieval import max_steps_of
from training.retrieval_validation import HeldVectors, deviation_ratio

#: Weights that validation tries: scores' standard deviation relative to that of the towers' scores.
SHARES = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
#: What an ndcg must be multiplied by to be worth longer vectors.
LEAST_GAIN = 1.02
#: A rank that is smaller by this factor is tried too: fewer directions, less noise, a smaller index.
RANK_STEP = 4
#: Trying ends after so many shares in a row that are no better.
FALLS = 2
#: Examples read for the fit, at most; shards are in random user order.
MOST_EXAMPLES = 20_000_000


@dataclass(frozen=True, slots=True)
class Choice:
    """What validation chose (rank and share 0: none helps), and the metrics with it."""

    rank: int
    share: float
    metrics: dict[str, float]


class CoEngagementFit:
    """The linear model of one training: chosen once, fitted again on what the served model learns from."""

    def __init__(self, recipe: TwoTowerConfig, prepared: Prepared, seed: int) -> None:
        self.prepared = prepared
        self.seed = seed
        self.config = recipe.co_engagement
        self.max_steps = max_steps_of(recipe, prepared)
        self.dim = recipe.dim
        self._last: tuple[int, Directions] | None = None
        managed = any(bag.name == VIDEO_ID and bag.managed_rows for bag in prepared.spec.bags)
        self.rows = 0 if managed else table_rows(prepared.spec, "video").get(VIDEO_ID, 0)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to fit: videos have ids with rows of their own, and are not too many."""
        videos = len(self.prepared.catalogue) - 1
        return self.rows > 0 and self.config.rank > 0 and videos <= self.config.max_videos

    def choose(self, towers: HeldVectors, k: int, ranks: Ranks = ALONE) -> Choice:
        """The rank and share with the best ndcg@k of validation, if best by ``LEAST_GAIN``. Collective."""
        metric = f"ndcg@{k}"
        alone = best = Choice(0, 0.0, towers.metrics(k, ranks))
        directions = self._directions(splits=1)
        for rank in sorted({self.config.rank // RANK_STEP, self.config.rank} - {0}):
            model = self._model(directions, rank, towers)
            user_BC, video_NC = self._vectors(model, towers)
            own = (towers.user_BD, towers.video_ND)
            unit, falls = deviation_ratio(own, (user_BC, video_NC), ranks), 0
            highest = 0.0
            for share in SHARES:
                metrics = towers.metrics(k, ranks, beside=(user_BC * np.float32(share * unit), video_NC))
                if metrics[metric] > best.metrics[metric]:
                    best = Choice(model.rank, share, metrics)
                falls = 0 if metrics[metric] > highest else falls + 1
                highest = max(highest, metrics[metric])
                if falls == FALLS:
                    break
        return best if best.metrics[metric] > LEAST_GAIN * alone.metrics[metric] else alone

    def weighed(
        self, choice: Choice, towers: HeldVectors, splits: int, ranks: Ranks = ALONE
    ) -> CoEngagement | None:
        """The model of the first ``splits`` splits to serve beside ``towers``; None where it does not help.
        Collective.
        """
        if not choice.rank:
            return None
        model = self._model(self._directions(splits), choice.rank, towers)
        own = (towers.user_BD, towers.video_ND)
        model.weight.fill_(choice.share * deviation_ratio(own, self._vectors(model, towers), ranks))
        return model

    def describe(self, choice: Choice, metric: str, alone: float) -> str:
        """What came of it, in one line."""
        if not choice.rank:
            return f"co-engagement: no better with it than {metric} {alone:.4f}, left out"
        return (
            f"co-engagement: {metric} {choice.metrics[metric]:.4f} with {choice.rank} directions at a share "
            f"of {choice.share:g}, {alone:.4f} without"
        )

    def _model(self, directions: Directions, rank: int, towers: HeldVectors) -> CoEngagement:
        vector_RC, id_row_N = directions.vectors(rank), id_rows(self.prepared.video_table)
        users_N = directions.users_R[id_row_N] * (id_row_N > 0)
        return CoEngagement.of(vector_RC, from_learnt(self._learnt(towers), vector_RC[id_row_N], users_N))

    def _learnt(self, towers: HeldVectors) -> np.ndarray:
        return towers.video_ND[:, : self.dim]

    def _directions(self, splits: int) -> Directions:
        """:meth:`_decomposed`, kept for the next call: without refitting the same serve twice."""
        if self._last is None or self._last[0] != splits:
            self._last = (splits, self._decomposed(splits))
        return self._last[1]

    def _decomposed(self, splits: int) -> Directions:
        """Of which video ids each user was shown in the first ``splits`` splits."""
        id_row_N = id_rows(self.prepared.video_table)
        users, videos, read = [], [], 0
        for shard in self.prepared.shards:
            sequences = Sequences.read(shard)
            row_E = id_row_N[sequences.examples["example_video"]]
            kept = (sequences.examples["example_split"] < splits) & (row_E > 0)
            users.append(sequences.user_row[sequences.example_rows()][kept])
            videos.append(row_E[kept])
            if (read := read + int(kept.sum())) >= MOST_EXAMPLES:
                break
        found, user = np.unique(np.concatenate(users), return_inverse=True)
        ones = np.ones(len(user))
        seen_UR = sp.csr_matrix((ones, (user, np.concatenate(videos))), shape=(len(found), self.rows))
        seen_UR.data[:] = 1.0  # building it has added up repeated views
        return Directions.of(seen_UR, self.config.rank, self.seed)

    def _vectors(
        self, model: CoEngagement, towers: HeldVectors, batch: int = 512
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of the held-out requests ``[B, C]`` and of the catalogue ``[N, C]``."""
        vector_NC = co_engagement_vectors(model, self.prepared.video_table, self._learnt(towers))
        video_NC = torch.from_numpy(vector_NC)
        histories = [request.history for request in towers.held.requests]
        parts = [
            model.users(collate_steps(histories[i : i + batch], self.max_steps), video_NC)
            for i in range(0, len(histories), batch)
        ]
        return (torch.cat(parts) if parts else video_NC[:0]).numpy(), vector_NC
