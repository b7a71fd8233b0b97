"""The ranker's loss: every head's mean over the impressions that know its outcome.

Axes: B impressions, T tasks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from data.prepared import Prepared
from data.ranking_loader import RankingBatch, RankingFeatures
from data.schema import LABEL_BIT
from models.devices import to_device
from models.embeddings import FeatureBatch
from models.heads import counterfactual_losses, order_value_loss, task_losses
from models.ranker import Ranker
from models.ranker_inference import encode_requests
from models.watch import WatchBins, ordinal_targets
from training.ranking_config import RankerConfig

#: Share of training impressions whose position is hidden.
HIDDEN_POSITIONS = 0.2


@dataclass(slots=True)
class RankingObjective:
    """Loss of a batch: the sum of all heads' mean losses. ``rare`` are the features whose values
    are hidden now and then, so that common ones and statistics must carry a video or user that is new.
    """

    prepared: Prepared
    features: RankingFeatures
    bins: WatchBins | None
    recipe: RankerConfig
    device: torch.device
    rare: frozenset[str]

    @classmethod
    def of(
        cls, prepared: Prepared, features: RankingFeatures, bins: WatchBins | None, recipe: RankerConfig,
        device: torch.device,
    ) -> "RankingObjective":  # fmt: skip
        """Values are rare in a feature with at least ``recipe.id_rows`` rows."""
        rare = frozenset(bag.name for bag in prepared.spec.bags if bag.rows >= recipe.id_rows)
        return cls(prepared, features, bins, recipe, device, rare)

    def loss(self, model: Ranker, batch: RankingBatch) -> Tensor:
        """Scalar training loss."""
        losses = self.losses(model, batch)
        return torch.stack(list(losses.values())).sum()

    def losses(self, model: Ranker, batch: RankingBatch) -> dict[str, Tensor]:
        """Mean loss of every head over the impressions that know it."""
        spec, requests = self.features.spec, batch.requests.newest(model.shape.attention_steps)
        rows, place = np.unique(
            np.concatenate([batch.video_B, requests.video.reshape(-1)]), return_inverse=True
        )
        video_B, video_BS = place[: batch.examples], place[batch.examples :].reshape(requests.video.shape)
        video_ND = model.encode_videos(
            self.hide_ids(FeatureBatch.of(self.prepared.video_table.take(rows)).to(self.device))
        )
        user = encode_requests(
            model, requests, video_BS, video_ND, batch.user_statistics_BF,
            self.hide_ids(
                FeatureBatch.of(self.prepared.user_table.take(requests.user_row)).to(self.device)
            ),
            hour=spec.hour(requests.time_ms), device=self.device,
        )  # fmt: skip
        scores = model.score(
            user, video_ND[self._tensor(video_B)][:, None],
            self._tensor(batch.candidate_statistics_BG)[:, None],
            self._positions(batch.position_B)[:, None],
        )  # fmt: skip
        true_BT, known_BT = labels_of(batch, spec.tasks)
        per_task = task_losses(
            scores.task_BKT[:, 0], self._tensor(true_BT).float(), self._tensor(known_BT).float(),
            model.shape.parents,
        )  # fmt: skip
        if self.recipe.counterfactual_weight > 0:
            per_task = per_task + self.recipe.counterfactual_weight * counterfactual_losses(
                scores.task_BKT[:, 0], self._tensor(true_BT).float(), self._tensor(known_BT).float(),
                model.shape.parents,
            )  # fmt: skip
        losses = dict(zip(spec.tasks, per_task, strict=True))
        if scores.watch_BKE is not None and self.bins is not None:
            seen = np.flatnonzero(batch.watch_ms_B >= 0)
            group = self.bins.group(self.features.keys.duration_ms[batch.video_B[seen]])
            target = ordinal_targets(
                self._tensor(batch.watch_ms_B[seen].astype(np.float64)),
                self._tensor(self.bins.edge_ms[group]),
            )
            logit = scores.watch_BKE[:, 0][self._tensor(seen)].to(target.dtype)
            losses["watch"] = (
                F.binary_cross_entropy_with_logits(logit, target, reduction="sum") / max(target.numel(), 1)
            ) * self.recipe.watch_weight
        if scores.order_BK2 is not None:
            value = np.where(batch.true_B & LABEL_BIT["purchase"], batch.order_value_B, -1)
            losses["order_value"] = self.recipe.order_weight * order_value_loss(
                scores.order_BK2[:, 0], self._tensor(value)
            )
        return losses

    def hide_ids(self, features: FeatureBatch) -> FeatureBatch:
        """Rare values are learnt by heart within an epoch or two: only a share of the rows shows theirs.

        A row shows all or none of them. At serving all are shown, and a model that had never seen that would
        add up effects that it has learnt one at a time.
        """
        if self.recipe.id_dropout == 0:
            return features
        bags = dict(features.bags)
        hidden_N = torch.rand(features.size, device=self.device) < self.recipe.id_dropout
        for name in sorted(self.rare & set(bags)):
            values, offsets = bags[name]
            hidden = torch.repeat_interleave(hidden_N, offsets.diff(), output_size=len(values))
            bags[name] = (values.masked_fill(hidden, 0), offsets)
        return FeatureBatch(bags, features.dense, features.size)

    def _positions(self, position_B: npt.NDArray[np.int64]) -> Tensor:
        """Some are hidden: what serving says, which has none, is then the mean over positions."""
        position = self._tensor(position_B)
        return position.masked_fill(torch.rand(position.shape, device=self.device) < HIDDEN_POSITIONS, -1)

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return to_device(array, self.device)


def labels_of(
    batch: RankingBatch, tasks: tuple[str, ...]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """True and known ``[B, T]``; a label is true only where it is known."""
    bits = np.array([LABEL_BIT[task] for task in tasks], np.int64)
    known = (batch.known_B[:, None] & bits) > 0
    return ((batch.true_B[:, None] & bits) > 0) & known, known
