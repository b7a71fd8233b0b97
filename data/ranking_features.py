"""Numbers that the ranker reads beside embeddings: the user's and the video's past, point in time.

One set of pure functions for training, replay and the server. They see a history (steps known strictly
before the request), the candidate, and counts of earlier days; never a label of the impression itself.

Axes: B requests, S history steps (padded at the end), K candidates, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from data.catalogue_keys import CatalogueKeys
from data.counters import DAY_MS, DecayedCounts, counts_before
from data.history import UserRequest
from data.ranking_spec import RankingSpec
from data.schema import FUNNEL, LABEL_BIT, LABELS
from data.taste_regression import taste_vectors

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
#: Strength of the prior of a rate, in impressions: of a user, of a match within a user, of an entity.
USER_PRIOR, MATCH_PRIOR, ENTITY_PRIOR = 4.0, 3.0, 20.0
#: Half-life of the recent rates, in steps, and the length of a session for its depth.
RECENT_STEPS, SESSION_MS = 8.0, 30 * 60_000
#: Strength of the belief that a user pays the middle price, in shopping steps.
PRICE_PRIOR = 2.0
#: No outcome is expected for surer than this.
MAX_EXPECTED = 0.95
#: Watch time over duration is counted up to this.
MAX_WATCH_RATIO = 4.0


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

    def newest(self, steps: int) -> "Requests":
        """The same requests with the newest ``steps`` steps of each."""
        if self.video.shape[1] <= steps:
            return self
        index = np.maximum(self.length - steps, 0)[:, None] + np.arange(steps)
        names = ("video", "step_time_ms", "actions", "known", "watch_ms", "step_surface")
        kept = {name: np.take_along_axis(getattr(self, name), index, axis=1) for name in names}
        return replace(self, length=np.minimum(self.length, steps), **kept)

    def outcomes(self, spec: RankingSpec, duration_ms: I64) -> F32:
        """``[B, S, 2T + 3]``: true and known per task, one, watch ratio, whether it is known; padding 0."""
        batch, steps = self.video.shape
        tasks = len(spec.tasks)
        bits = np.array([LABEL_BIT[task] for task in spec.tasks], np.int64)
        # every mask's row of zeros and ones: a look-up is several times faster than testing bits
        mask_MT = ((np.arange(1 << len(LABELS))[:, None] & bits) > 0).astype(np.float32)
        valid = np.arange(steps) < self.length[:, None]
        out = np.empty((batch, steps, 2 * tasks + 3), np.float32)
        out[..., :tasks] = mask_MT[np.where(valid, self.actions, 0)]
        out[..., tasks : 2 * tasks] = mask_MT[np.where(valid, self.known, 0)]
        out[..., 2 * tasks] = valid
        ratio = np.where(valid, watch_ratio(self.watch_ms, duration_ms[self.video]), -1.0)
        out[..., 2 * tasks + 1], out[..., 2 * tasks + 2] = np.maximum(ratio, 0.0), ratio >= 0
        return out


def watch_ratio(watch_ms: I64, duration_ms: I64) -> F32:
    """Watch time over duration, capped; −1 where either is unknown."""
    known = (watch_ms >= 0) & (duration_ms > 0)
    ratio = np.minimum(watch_ms / np.maximum(duration_ms, 1), MAX_WATCH_RATIO)
    return np.where(known, ratio, -1.0).astype(np.float32)


def user_statistics(requests: Requests, outcome_BSC: F32, spec: RankingSpec) -> F32:
    """Rates and habits of each user ``[B, F]`` (``spec.user_names``); an empty history gives base rates."""
    tasks = len(spec.tasks)
    base_T = np.array(spec.base_rate, np.float32)
    steps = requests.video.shape[1]
    back_BS = np.maximum(requests.length[:, None] - 1 - np.arange(steps), 0)
    fading_BS = np.exp2(-back_BS / RECENT_STEPS).astype(np.float32)
    both_B2C = np.stack([np.ones_like(fading_BS), fading_BS], axis=1) @ outcome_BSC
    total_BC, recent_BC = both_B2C[:, 0], both_B2C[:, 1]
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
            np.stack(
                [
                    np.log1p(number_B),
                    np.log1p(total_BC[:, -1]),
                    *ratio,
                    gap_B,
                    np.log1p(depth_B),
                    spec.weekend(requests.time_ms),
                ],
                1,
            ),
        ],
        axis=1,
    ).astype(np.float32)


def candidate_statistics(
    requests: Requests, outcome_BSC: F32, video_BK: I64, keys: CatalogueKeys,
    counts: dict[str, list[DecayedCounts]], spec: RankingSpec,
) -> F32:  # fmt: skip
    """What speaks for each candidate ``[B, K, G]`` (``spec.candidate_names``), each on its own.

    How the user took to steps with the same creator, category … or surface; how all users took to the
    video, its creator and product on earlier days; price, offer and language; duration and age.
    """
    tasks = len(spec.tasks)
    total_BC = (np.ones((len(video_BK), 1, outcome_BSC.shape[1]), np.float32) @ outcome_BSC)[:, 0]
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
    parts += _product_side(requests, outcome_BSC, video_BK, keys, spec)
    if spec.content:
        parts.append(_taste_fit(requests, outcome_BSC, video_BK, keys, counts, spec, own_BT))
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


def _taste_fit(
    requests: Requests, outcome_BSC: F32, video_BK: I64, keys: CatalogueKeys,
    counts: dict[str, list[DecayedCounts]], spec: RankingSpec, own_BT: F32,
) -> F32:  # fmt: skip
    """How far each candidate's content lies along what the user took to, and what was shown ``[B, K, R]``.

    Taking to a video that all take to says little: an outcome counts less the user's rate times the video's
    over the log's.
    """
    chosen = [spec.tasks.index(task) for task in spec.regressed]
    known = [len(spec.tasks) + place for place in chosen]
    expected_BSR = own_BT[:, None, chosen]
    if "video_id" in spec.counted:
        day_BS = np.broadcast_to(spec.day(requests.time_ms)[:, None], requests.video.shape)
        sum_EX = counts["video_id"][-1].before(requests.video.reshape(-1), day_BS.reshape(-1), chosen + known)
        base_R = np.array(spec.base_rate, np.float32)[chosen]
        ratio_ER = _rate(sum_EX[:, : len(chosen)], sum_EX[:, len(chosen) :], base_R, ENTITY_PRIOR) / base_R
        expected_BSR = np.minimum(
            expected_BSR * ratio_ER.reshape(*requests.video.shape, len(chosen)), MAX_EXPECTED
        )
    residual_BSR = (outcome_BSC[..., chosen] - expected_BSR) * outcome_BSC[..., known]
    taste_BRE = taste_vectors(keys.content_NE[requests.video], residual_BSR, requests.length)
    fit_BKR = keys.content_NE[video_BK] @ taste_BRE.transpose(0, 2, 1)
    usual_B1R = taste_BRE[:, -1:] @ taste_BRE.transpose(0, 2, 1)
    return np.asarray(np.concatenate([fit_BKR[..., :-1] - usual_B1R[..., :-1], fit_BKR[..., -1:]], axis=2))


def _product_side(
    requests: Requests, outcome_BSC: F32, video_BK: I64, keys: CatalogueKeys, spec: RankingSpec
) -> list[npt.NDArray[Any]]:
    """Price beside what the user usually pays, whether the products are sold there, the user's own language.

    What a user usually pays is the mean over shopping steps, each as often as it has steps of the funnel.
    """
    parts: list[npt.NDArray[Any]] = []
    if spec.price_rows:
        shopping = [place for place, task in enumerate(spec.tasks) if task in FUNNEL[1:]]
        price_BS = keys.price_N[requests.video]
        weight_BS = outcome_BSC[..., shopping].sum(-1) * (price_BS >= 0)
        usual_B = ((weight_BS * price_BS).sum(1) + PRICE_PRIOR / 2) / (weight_BS.sum(1) + PRICE_PRIOR)
        price_BK = keys.price_N[video_BK]
        known_BK = price_BK >= 0
        above_BK = np.where(known_BK, price_BK - usual_B[:, None], 0.0)
        parts += [np.maximum(price_BK, 0.0)[..., None], known_BK[..., None]]
        parts += [above_BK[..., None], np.abs(above_BK)[..., None]]
    if spec.market_rows:
        parts.append(np.log1p(keys.products_N[video_BK])[..., None])
        parts.append(keys.offered_NM[video_BK, requests.market[:, None]][..., None])
    if spec.language_rows:
        mine_B, theirs_BK = keys.user_language_U[requests.user_row], keys.video_language_N[video_BK]
        known_BK = (mine_B > 0)[:, None] & (theirs_BK > 0)
        parts.append(np.where(known_BK, np.where(mine_B[:, None] == theirs_BK, 1.0, -1.0), 0.0)[..., None])
    return parts


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
