"""What is particular to training the two-tower model: its shape, its loader, its loss on a batch."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from data.columns import ranges
from data.features import key_name
from data.loader import Batch, SequenceLoader
from data.prepared import Prepared
from data.targets import TargetWeights
from data.trend import HALF_LIVES_DAYS, Trend, days_before, has_trend, training_end_ms
from models.devices import to_device
from models.embeddings import FeatureBatch, dense_widths, managed_table_rows
from models.losses import Moving, Targets, ignored_loss, outcome_loss, softmax_loss
from models.sequence import Steps
from models.two_tower import VIDEO_ID, TwoTower, TwoTowerShape
from training.config import TwoTowerConfig
from training.validation import gain_mask

#: Added to the score of a video that had not come out yet.
NOT_OUT = -1e9
#: Steps read of a log without order, at least.
SET_STEPS = 1024
#: Impressions with which an id is hidden half as often, beyond ``id_dropout``, as one never seen.
RARE = 10.0
#: Steps of a batch of such a log in terms of ``tokens``: a set has few queries for many steps, and a small
#: batch of queries learns slowly. The learning rate follows by the root.
SET_BATCH = 8


def shape_of(config: TwoTowerConfig, prepared: Prepared) -> TwoTowerShape:
    """The model's shape: tables from the ``FeatureSpec``, the rest from the config.

    Times are read only where the log's times are real, positions only where its order is.
    """
    dataset = prepared.manifest["dataset"]
    return TwoTowerShape(
        video_rows=managed_table_rows(prepared.spec, "video"),
        video_dense=dense_widths(prepared.spec, "video"),
        user_rows=managed_table_rows(prepared.spec, "user"),
        user_dense=dense_widths(prepared.spec, "user"),
        surfaces=len(prepared.surfaces),
        dim=config.dim,
        layers=config.layers,
        heads=config.heads,
        dropout=config.dropout,
        block=config.block,
        max_steps=max_steps_of(config, prepared),
        use_time=bool(dataset["real_time"] and dataset["ordered"]),
        use_position=bool(dataset["ordered"]),
        similarity=config.similarity,
        outcomes=outcomes_differ(prepared),
        outcome_dim=config.outcome.dim if outcomes_differ(prepared) else 0,
        trend=len(HALF_LIVES_DAYS) if has_trend(prepared) else 0,
        managed=tuple(bag.name for bag in prepared.spec.bags if bag.managed_rows),
    )


def outcomes_differ(prepared: Prepared) -> bool:
    """Whether some label is true of some training impressions and not of others."""
    shown, true_L = prepared.video_train_count.sum(), prepared.video_train_true.sum(axis=0)
    return bool(((true_L > 0) & (true_L < shown)).any())


def recipe_for(config: TwoTowerConfig, prepared: Prepared) -> TwoTowerConfig:
    """The recipe as it is run: batches and rate of a log without order are larger."""
    if prepared.manifest["dataset"]["ordered"]:
        return config
    rate = config.optimizer.learning_rate * SET_BATCH**0.5
    optimizer = replace(config.optimizer, learning_rate=rate)
    return replace(config, tokens=config.tokens * SET_BATCH, optimizer=optimizer)


def max_steps_of(config: TwoTowerConfig, prepared: Prepared) -> int:
    """The longest history read; sets are cheap to read and have no newest part."""
    return config.max_steps if prepared.manifest["dataset"]["ordered"] else max(config.max_steps, SET_STEPS)


def build_loader(
    config: TwoTowerConfig, prepared: Prepared, seed: int, rank: int = 0, world: int = 1, splits: int = 1
) -> SequenceLoader:
    """The training loader; small catalogues are scored whole, large ones sampled."""
    whole = len(prepared.catalogue) - 1 <= config.full_softmax_below
    return SequenceLoader(
        prepared,
        TargetWeights(dict(config.target.weights), config.target.impression),
        tokens=config.tokens,
        max_steps=max_steps_of(config, prepared),
        n_uniform=None if whole else config.uniform_negatives,
        seed=seed,
        splits=splits,
        ignored=config.ignored_weight > 0 or config.outcome.dim > 0,
        gain=gain_mask(prepared, config.validation.gain),
        rank=rank,
        world=world,
    )


def hidden_share(id_dropout: float, count_N: np.ndarray) -> np.ndarray:
    """The share of steps in which each video's id is hidden, float32 ``[N]``, from its training impressions.

    ``id_dropout`` of an id that is known well, more of a rare one, every step of one never seen: a rare id
    learns its few users by heart.
    """
    share_N = id_dropout + (1 - id_dropout) * RARE / (RARE + count_N)
    return np.asarray(share_N, np.float32)


class RetrievalObjective:
    """Loss of a batch, with id dropout: a hidden id becomes row 0, so that content must carry the video.

    With a ``trend`` each target is ranked by the trend of its own day, among the videos out by then. Telling
    what was ignored from what was engaged with counts ``ignored`` beside finding it.
    """

    def __init__(
        self,
        prepared: Prepared,
        device: torch.device,
        id_dropout: float,
        trend: Trend | None,
        splits: int = 1,
        ignored: float = 0.0,
    ) -> None:
        self.device = device
        self.ignored = ignored
        self.trend = trend
        self.end_ms = 0 if trend is None else training_end_ms(prepared, splits)
        self.video_table = prepared.video_table
        self.user_table = prepared.user_table
        content = [name for name in self.video_table.bags if name not in (VIDEO_ID, key_name(VIDEO_ID))]
        # with ids alone there is nothing that could carry a hidden video
        hides = id_dropout > 0 and bool(content or self.video_table.dense)
        self.hidden_share_N = hidden_share(id_dropout, prepared.video_train_count) if hides else None
        self._whole: FeatureBatch | None = None
        self._moving: dict[int, Tensor] = {}

    def loss(self, model: TwoTower, batch: Batch) -> Tensor:
        """Scalar training loss of one batch."""
        dim, outcome_towers = model.shape.dim, model.outcome_towers
        video_VL = model.encode_videos(self._hide_ids(self._videos(batch), batch.video_rows))
        video_VD = video_VL[:, :dim]
        user_features = FeatureBatch.of(self.user_table.take(batch.user_row_B)).to(self.device)
        steps = steps_of(batch, self.device)
        states_BSD = model.encode_states(steps, video_VL, user_features)
        day_Q = None
        if self.trend is not None:
            day_Q = self.trend.period(days_before(batch.query_time_ms_Q, self.end_ms))
            batch = by_day(batch, day_Q, self.trend)
            day_Q = np.sort(day_Q)
        user_QD = model.finish_users(
            states_BSD, steps, self._tensor(batch.query_window_Q), self._tensor(batch.query_position_Q),
            self._tensor(batch.query_time_ms_Q),
        )  # fmt: skip
        moving = None
        if day_Q is not None:
            days, begins = np.unique(day_Q, return_index=True)
            user_QD = torch.cat([user_QD, torch.ones_like(user_QD[:, :1])], dim=1)
            parts = [self._moving_part(int(day), batch) for day in days]
            moving = Moving([*begins.tolist(), len(day_Q)], parts)
        targets = Targets(
            batch.target_offsets, self._tensor(batch.query_of_target_P), self._tensor(batch.target_video_P),
            self._tensor(batch.target_weight_P), self._tensor(hidden_videos(batch)),
        )  # fmt: skip
        correction_V = None if batch.log_correction is None else self._tensor(batch.log_correction)
        loss = softmax_loss(user_QD, video_VD, targets, model.temperature, correction_V, moving)
        if model.ignored_bias is not None:
            contrast_P = self._tensor(batch.target_contrast_P)
            apart = ignored_loss(
                user_QD, video_VD, targets, contrast_P, model.temperature, model.ignored_bias, moving
            )
            loss = loss + self.ignored * apart
        if outcome_towers is not None:
            states_BSE = outcome_towers.states(steps, video_VL[:, dim:], user_features)
            row, position = self._tensor(batch.query_window_Q), self._tensor(batch.query_position_Q)
            user_QE = outcome_towers.users(states_BSE[row, position])
            outcome_P = self._tensor(batch.target_outcome_P)
            loss = loss + outcome_loss(user_QE, video_VL[:, dim:], targets, outcome_P)
        return loss

    def _moving_part(self, day: int, batch: Batch) -> Tensor:
        """Trend of the candidates as ``day`` begins and, last, what keeps those not out yet away."""
        assert self.trend is not None
        if day in self._moving:
            return self._moving[day]
        later_V = ~self.trend.is_out(day, batch.video_rows)[:, None]
        later_V[batch.video_rows == 0] = False
        columns = [self.trend.at(day, batch.video_rows), np.where(later_V, NOT_OUT, 0.0)]
        moving_VX = self._tensor(np.concatenate(columns, axis=1).astype(np.float32))
        if batch.log_correction is None:  # full softmax: the same videos in every step
            self._moving[day] = moving_VX
        return moving_VX

    def _videos(self, batch: Batch) -> FeatureBatch:
        if batch.log_correction is not None:
            return FeatureBatch.of(self.video_table.take(batch.video_rows)).to(self.device)
        if self._whole is None:  # full softmax: the same videos in every step
            self._whole = FeatureBatch.of(self.video_table.take(batch.video_rows)).to(self.device)
        return self._whole

    def _hide_ids(self, features: FeatureBatch, video_rows: np.ndarray) -> FeatureBatch:
        if self.hidden_share_N is None or VIDEO_ID not in features.bags:
            return features
        values, offsets = features.bags[VIDEO_ID]
        share = self._tensor(self.hidden_share_N[video_rows]).repeat_interleave(offsets.diff())
        hidden = torch.rand(values.shape, device=values.device) < share
        bags = features.bags | {VIDEO_ID: (values.masked_fill(hidden, 0), offsets)}
        if key_name(VIDEO_ID) in bags:  # one key a video, like the id
            keys, _ = features.bags[key_name(VIDEO_ID)]
            bags[key_name(VIDEO_ID)] = (keys.masked_fill(hidden, 0), offsets)
        return FeatureBatch(bags, features.dense, features.size)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return to_device(array, self.device)


def by_day(batch: Batch, day_Q: np.ndarray, trend: Trend) -> Batch:
    """The same batch with its queries in order of their day; targets not out by then weigh nothing."""
    order = np.argsort(day_Q, kind="stable")
    begin, end = batch.target_offsets[:-1][order], batch.target_offsets[1:][order]
    targets = ranges(begin, end)
    count = end - begin
    out_P = trend.is_out(np.repeat(day_Q[order], count), batch.video_rows[batch.target_video_P[targets]])
    return replace(
        batch,
        query_window_Q=batch.query_window_Q[order],
        query_position_Q=batch.query_position_Q[order],
        query_time_ms_Q=batch.query_time_ms_Q[order],
        target_offsets=np.concatenate([[0], np.cumsum(count)]),
        target_video_P=batch.target_video_P[targets],
        target_weight_P=batch.target_weight_P[targets] * out_P,
        target_contrast_P=batch.target_contrast_P[targets] * out_P,
        target_outcome_P=batch.target_outcome_P[targets],
    )


def hidden_videos(batch: Batch) -> np.ndarray:
    """What the feed would not show at each query's moment, ``[Q, S + 1]`` indices of ``video_rows``.

    The steps known by then (no video returns) and, in full softmax, the unknown row at index 0; padded
    with what came next, which takes part in any case.
    """
    next_Q1 = batch.target_video_P[batch.target_offsets[:-1], None]
    known_QS = np.arange(batch.video_BS.shape[1]) < batch.query_position_Q[:, None]
    seen_QS = np.where(known_QS, batch.video_BS[batch.query_window_Q], next_Q1)
    unknown_Q1 = np.zeros_like(next_Q1) if batch.log_correction is None else next_Q1
    return np.concatenate([unknown_Q1, seen_QS], axis=1)


def steps_of(batch: Batch, device: torch.device) -> Steps:
    """The history part of a batch as tensors on ``device``."""
    arrays = (
        batch.video_BS,
        batch.actions_BS,
        batch.known_BS,
        batch.watch_ms_BS,
        batch.surface_BS,
        batch.time_ms_BS,
        batch.length_B,
    )
    return Steps(*(to_device(array, device) for array in arrays))
