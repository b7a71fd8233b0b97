"""Numbers that the ranker reads beside embeddings: the user's and the video's past, point in time.

One set of pure functions for training, replay and the server. They see a history (steps known strictly
before the request), the candidate, and counts of earlier days; never a label of the impression itself.

Axes: B requests, S history steps (padded at the end), K candidates, T tasks.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.counters import DAY_MS, DecayedCounts, counts_before
from data.features import BagFeature, EncodedTable, FeatureSpec
from data.history import UserRequest
from data.schema import LABEL_BIT

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
#: Bag features whose equality between a candidate and a step of the history is counted.
MATCHED = ("video_id", "video_creator_id", "video_category", "video_tags", "video_duration_ms",
           "video_product_ids", "product_merchant_id", "product_brand", "product_category")  # fmt: skip
#: Bag features that carry decayed counts over all users.
COUNTED = ("video_id", "video_creator_id", "video_product_ids")
#: Strength of the prior of a rate, in impressions: of a user, of a match within a user, of an entity.
USER_PRIOR, MATCH_PRIOR, ENTITY_PRIOR = 4.0, 3.0, 20.0
#: Half-life of the recent rates, in steps, and the length of a session for its depth.
RECENT_STEPS, SESSION_MS = 8.0, 30 * 60_000
#: Watch time over duration is counted up to this.
MAX_WATCH_RATIO = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingSpec:
    """What fixes the numbers: stored with the model. ``base_rate`` is of each task in training.

    ``day_zero_ms`` is the first moment of validation (0 for a given split); without real times
    (``use_time`` false) neither clocks nor counts of days are read.
    """

    tasks: tuple[str, ...]
    base_rate: tuple[float, ...]
    matched: tuple[str, ...]
    counted: tuple[str, ...]
    half_life_days: tuple[float, ...]
    day_zero_ms: int
    use_time: bool
    max_steps: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_json` gives back an equal spec."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RankingSpec":
        """Rebuild a spec; unknown or missing keys raise ``TypeError``."""
        plain: dict[str, Any] = {n: tuple(x) if isinstance(x, list) else x for n, x in value.items()}
        return cls(**plain)

    def day(self, time_ms: I64) -> I64:
        """Day of a moment; day 0 begins validation."""
        return (time_ms - self.day_zero_ms) // DAY_MS

    def hour(self, time_ms: I64) -> I64:
        """Local hour plus one, 1 … 24; 0 where the log's clock means nothing."""
        return ((time_ms - self.day_zero_ms) % DAY_MS // 3_600_000 + 1) * self.use_time

    @property
    def user_names(self) -> list[str]:
        """Columns of :func:`user_statistics`."""
        per_task = [f"{what}_{task}" for what in ("rate", "count", "recent") for task in self.tasks]
        return [*per_task, "steps", "watched", "watch_ratio", "recent_watch_ratio", "gap_s", "session_steps"]

    @property
    def candidate_names(self) -> list[str]:
        """Columns of :func:`candidate_statistics`."""
        matches = [
            f"{name}.{what}"
            for name in (*self.matched, "surface")
            for what in (*self.tasks, "steps", "watch_ratio")
        ]
        counts = [
            f"{name}.{half_life:g}d.{what}"
            for name in self.counted
            for half_life in self.half_life_days
            for what in (*self.tasks, "impressions", "watch_ratio")
        ]
        return [*matches, *counts, "duration", "age", "age_known"]


@dataclass(slots=True)
class CatalogueKeys:
    """Per catalogue row: one value of every matched and counted feature, duration and publication.

    ``key`` int64[N + 1]: of several values the first; 0 = unknown. Times in ms, −1 unknown.
    """

    key: dict[str, I64]
    duration_ms: I64
    publish_time_ms: I64

    @classmethod
    def of(cls, spec: RankingSpec, table: EncodedTable, raw: dict[str, I64]) -> "CatalogueKeys":
        """From the encoded catalogue and ``Prepared.video_raw``."""
        key = {}
        for name in {*spec.matched, *spec.counted}:
            if name == "video_id":  # the catalogue row itself: hashed ids would mix videos
                key[name] = np.arange(table.num_rows)
                continue
            values, offsets = table.bags[name]
            filled = np.diff(offsets) > 0
            key[name] = np.zeros(table.num_rows, np.int64)
            key[name][filled] = values[offsets[:-1][filled]]
        return cls(key, raw["duration_ms"], raw["publish_time_ms"])


@dataclass(slots=True)
class Requests:
    """B requests with padded histories, int64; ``length`` counts each one's steps, oldest first."""

    user_row: I64
    time_ms: I64
    surface: I64
    market: I64
    length: I64
    video: I64
    step_time_ms: I64
    actions: I64
    known: I64
    watch_ms: I64
    step_surface: I64

    @classmethod
    def of(cls, requests: Sequence[UserRequest], markets: Sequence[int], max_steps: int) -> "Requests":
        """Pad the newest ``max_steps`` steps of each request."""
        lasts = [request.history.last(max_steps) for request in requests]
        length = np.array([len(last) for last in lasts], np.int64)
        steps = int(length.max(initial=0))

        def pad(name: str) -> I64:
            out = np.zeros((len(lasts), steps), np.int64)
            for row, last in enumerate(lasts):
                out[row, : length[row]] = getattr(last, name)
            return out

        def column(values: list[int]) -> I64:
            return np.array(values, np.int64)

        return cls(
            column([request.user_row for request in requests]), column([r.time_ms for r in requests]),
            column([r.surface_row for r in requests]), column(list(markets)), length, pad("video_row"),
            pad("time_ms"), pad("actions"), pad("known"), pad("watch_ms"), pad("surface_row"),
        )  # fmt: skip

    def outcomes(self, spec: RankingSpec, duration_ms: I64) -> F32:
        """``[B, S, 2T + 3]``: true and known per task, one, watch ratio, whether it is known; padding 0."""
        batch, steps = self.video.shape
        bits = np.array([LABEL_BIT[task] for task in spec.tasks], np.int64)
        out = np.zeros((batch, steps, 2 * len(bits) + 3), np.float32)
        tasks = len(bits)
        out[..., :tasks] = (self.actions[..., None] & bits) > 0
        out[..., tasks : 2 * tasks] = (self.known[..., None] & bits) > 0
        out[..., 2 * tasks] = 1.0
        ratio = watch_ratio(self.watch_ms, duration_ms[self.video])
        out[..., 2 * tasks + 1], out[..., 2 * tasks + 2] = np.maximum(ratio, 0.0), ratio >= 0
        out *= (np.arange(steps) < self.length[:, None])[..., None]
        return out


def watch_ratio(watch_ms: I64, duration_ms: I64) -> F32:
    """Watch time over duration, capped; −1 where either is unknown."""
    known = (watch_ms >= 0) & (duration_ms > 0)
    ratio = np.minimum(watch_ms / np.maximum(duration_ms, 1), MAX_WATCH_RATIO)
    return np.where(known, ratio, -1.0).astype(np.float32)


def ranking_spec_features(spec: FeatureSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Those of ``names`` that the dataset has as bags of the video side."""
    have = {feature.name for feature in spec.bags if isinstance(feature, BagFeature)}
    return tuple(name for name in names if name in have)


def user_statistics(requests: Requests, outcome_BSC: F32, spec: RankingSpec) -> F32:
    """Rates and habits of each user ``[B, F]`` (``spec.user_names``); an empty history gives base rates."""
    tasks = len(spec.tasks)
    base_T = np.array(spec.base_rate, np.float32)
    steps = requests.video.shape[1]
    back_BS = np.maximum(requests.length[:, None] - 1 - np.arange(steps), 0)
    total_BC = outcome_BSC.sum(1)
    recent_BC = (outcome_BSC * np.exp2(-back_BS / RECENT_STEPS)[..., None].astype(np.float32)).sum(1)
    number_B = requests.length.astype(np.float32)
    gap_B = np.full(len(number_B), -1.0, np.float32)
    depth_B = np.zeros(len(number_B), np.float32)
    if spec.use_time and steps:
        last = requests.step_time_ms[np.arange(len(number_B)), np.maximum(requests.length - 1, 0)]
        gap_B = np.where(
            requests.length > 0, np.log1p(np.maximum(requests.time_ms - last, 0) / 1000.0), -1.0
        ).astype(np.float32)
        near = requests.time_ms[:, None] - requests.step_time_ms <= SESSION_MS
        depth_B = (near & (np.arange(steps) < requests.length[:, None])).sum(1).astype(np.float32)
    ratio = [(x[:, -2] + 1.0) / (x[:, -1] + 2.0) for x in (total_BC, recent_BC)]
    return np.concatenate(
        [
            _log_odds(total_BC[:, :tasks], total_BC[:, tasks : 2 * tasks], base_T, USER_PRIOR),
            np.log1p(total_BC[:, :tasks]),
            _log_odds(recent_BC[:, :tasks], recent_BC[:, tasks : 2 * tasks], base_T, USER_PRIOR),
            np.stack([np.log1p(number_B), np.log1p(total_BC[:, -1]), *ratio, gap_B, np.log1p(depth_B)], 1),
        ],
        axis=1,
    ).astype(np.float32)


def candidate_statistics(
    requests: Requests, outcome_BSC: F32, video_BK: I64, keys: CatalogueKeys,
    counts: dict[str, list[DecayedCounts]], spec: RankingSpec,
) -> F32:  # fmt: skip
    """What speaks for each candidate ``[B, K, G]`` (``spec.candidate_names``), each on its own.

    How the user took to steps with the same creator, category … or surface; how all users took to the
    video, its creator and product on earlier days; duration and age.
    """
    tasks = len(spec.tasks)
    total_BC = outcome_BSC.sum(1)
    own_BT = _rate(
        total_BC[:, :tasks], total_BC[:, tasks : 2 * tasks], np.array(spec.base_rate, np.float32), USER_PRIOR
    )
    own_ratio_B = (total_BC[:, -2] + 1.0) / (total_BC[:, -1] + 2.0)
    parts: list[npt.NDArray[Any]] = []
    pairs = [(keys.key[name][video_BK], keys.key[name][requests.video]) for name in spec.matched]
    pairs.append((np.broadcast_to(requests.surface[:, None], video_BK.shape), requests.step_surface))
    parts.append(_matches(pairs, outcome_BSC, own_BT, own_ratio_B))
    if spec.counted:
        parts.append(_entities(video_BK, spec.day(requests.time_ms), keys, counts, spec))
    duration, publish = keys.duration_ms[video_BK], keys.publish_time_ms[video_BK]
    age_days = np.maximum(requests.time_ms[:, None] - publish, 0) / DAY_MS
    age_known = (publish >= 0) & spec.use_time
    parts.append(np.log1p(np.maximum(duration, 0) / 1000.0)[..., None])
    parts += [np.where(age_known, np.log1p(age_days), 0.0)[..., None], age_known[..., None]]
    return np.concatenate([part.astype(np.float32, copy=False) for part in parts], axis=-1)


def _matches(
    pairs: Sequence[tuple[I64, I64]], outcome_BSC: F32, own_BT: F32, own_ratio_B: npt.NDArray[np.float32]
) -> F32:
    """How the user took to steps with the candidate's value, T + 2 columns for each of ``pairs``.

    A pair holds values of the candidates ``[B, K]`` and of the steps ``[B, S]``, 0 unknown.
    """
    if (
        len(own_BT) == 1
    ):  # a request has more candidates than its history has values: those are worked out once
        place_FK, sum_UC = _distinct_sums(pairs, outcome_BSC[0])
        columns_UX = _match_columns(sum_UC[None], own_BT, own_ratio_B)[0]
        return np.concatenate([columns_UX[place_K] for place_K in place_FK], axis=-1)[None]
    parts = []
    for mine_BK, theirs_BS in pairs:
        same_BKS = (mine_BK[:, :, None] == theirs_BS[:, None, :]) & (mine_BK > 0)[:, :, None]
        parts.append(_match_columns(same_BKS.astype(np.float32) @ outcome_BSC, own_BT, own_ratio_B))
    return np.concatenate(parts, axis=-1)


def _distinct_sums(pairs: Sequence[tuple[I64, I64]], outcome_SC: F32) -> tuple[list[I64], F32]:
    """Of one request: the row of every candidate by pair, and the outcomes in each row.

    A row sums the steps of one distinct value; row 0 is for values that no step has.
    """
    sums, place_FK, rows = [np.zeros((1, outcome_SC.shape[1]), np.float32)], [], 1
    for (mine_K,), (theirs_S,) in pairs:
        value_U = np.unique(theirs_S)
        sums.append((value_U[:, None] == theirs_S).astype(np.float32) @ outcome_SC)
        place_K = np.minimum(np.searchsorted(value_U, mine_K), max(len(value_U) - 1, 0))
        found_K = (value_U[place_K] == mine_K) & (mine_K > 0) if len(value_U) else np.zeros(len(mine_K), bool)
        place_FK.append(np.where(found_K, rows + place_K, 0))
        rows += len(value_U)
    return place_FK, np.concatenate(sums)


def _match_columns(sum_BKC: F32, own_BT: F32, own_ratio_B: npt.NDArray[np.float32]) -> F32:
    """``[B, K, T + 2]``: log-odds by task beyond the user's own, number of steps, watch ratio beyond it."""
    tasks = own_BT.shape[1]
    ratio_BK = (sum_BKC[..., -2] + own_ratio_B[:, None]) / (sum_BKC[..., -1] + 1.0)
    odds_BKT = _log_odds(sum_BKC[..., :tasks], sum_BKC[..., tasks : 2 * tasks], own_BT[:, None], MATCH_PRIOR)
    return np.concatenate(
        [
            odds_BKT - _logit(own_BT)[:, None],
            np.log1p(sum_BKC[..., 2 * tasks, None]),
            (ratio_BK - own_ratio_B[:, None])[..., None],
        ],
        axis=-1,
    )


def _entities(
    video_BK: I64, day_B: I64, keys: CatalogueKeys, counts: dict[str, list[DecayedCounts]], spec: RankingSpec
) -> F32:
    """How all users took to the candidate's video, creator, product: T + 2 columns for each and half-life."""
    tasks, flat = len(spec.tasks), video_BK.reshape(-1)
    day_E = np.repeat(day_B, video_BK.shape[1])
    sum_EHC = np.stack(
        [
            sum_EC
            for name in spec.counted
            for sum_EC in counts_before(counts[name], keys.key[name][flat], day_E)
        ],
        axis=1,
    )
    base_T = np.array(spec.base_rate, np.float32)
    odds = _log_odds(sum_EHC[..., :tasks], sum_EHC[..., tasks : 2 * tasks], base_T, ENTITY_PRIOR)
    ratio = (sum_EHC[..., -2] + 10.0) / (sum_EHC[..., -1] + 20.0)
    columns = [odds - _logit(base_T), np.log1p(sum_EHC[..., 2 * tasks, None]), ratio[..., None]]
    joined = np.concatenate(columns, axis=-1)
    return joined.reshape(*video_BK.shape, joined.shape[1] * joined.shape[2])


def _rate(true: F32, known: F32, prior: npt.NDArray[np.float32], strength: float) -> F32:
    """Smoothed rate, strictly between 0 and 1: outcomes that came later than their impression's step
    are known without it, so that there may be more of the former.
    """
    rate = (true + strength * prior) / (np.maximum(known, true) + strength)
    return np.asarray(rate, np.float32)


def _log_odds(true: F32, known: F32, prior: npt.NDArray[np.float32], strength: float) -> F32:
    return _logit(_rate(true, known, prior, strength))


def _logit(rate: npt.NDArray[np.float32]) -> F32:
    rate = np.clip(rate, 1e-6, 1 - 1e-6)
    odds: F32 = np.log(rate / (1.0 - rate)).astype(np.float32)
    return odds
