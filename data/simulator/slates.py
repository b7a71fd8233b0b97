"""Logged slates small enough to know the value of any policy exactly: a proving ground for estimators.

Contexts are users of a market at one moment with a few candidates each; a slate is an ordered choice of
them without repeats. All ordered slates are enumerated, so that a policy's value is a finite sum, not an
estimate. With ``satiation`` the reward of a position depends on the positions above it (a cascade), which
estimators that assume independent positions get wrong. Axes: ``X`` contexts, ``M`` candidates, ``L``
positions, ``O`` ordered slates, ``R`` requests.
"""

from dataclasses import dataclass
from itertools import permutations
from math import perm

import numpy as np
import pyarrow as pa

from data.errors import ConfigError
from data.simulator.market import Market
from data.simulator.taste import F64, I64

MOST_SLATES = 100_000
#: Logits further than this below the best count as this far, which keeps every probability positive.
LARGEST_LEAD = 60.0


@dataclass(frozen=True, slots=True)
class SlatePolicy:
    """Draws position by position without repeats from (1 - explore) * softmax(logit) + explore * uniform."""

    logit_XM: F64
    explore: float


@dataclass(frozen=True, slots=True)
class SlateWorld:
    """``gain_XLM`` float64: P(click) of a candidate at a position with nothing like it above;

    ``group_XM``: its kind; each video of the same kind above multiplies the click by 1 - ``satiation``.
    ``baseline_XLM`` is an imperfect model of ``gain_XLM``, for the estimators that need one.
    """

    user_id: I64
    video_XM: I64
    gain_XLM: F64
    baseline_XLM: F64
    group_XM: I64
    satiation: float
    order_OL: I64

    def value(self, policy: SlatePolicy) -> float:
        """The policy's exact expected clicks per slate, contexts equally likely."""
        reward = sum(self._reward(position) for position in range(self.order_OL.shape[1]))
        return float((slate_probabilities(policy, self.order_OL) * reward).sum(axis=1).mean())

    def log(
        self, rng: np.random.Generator, requests: int, logging: SlatePolicy, target: SlatePolicy
    ) -> pa.Table:
        """Draw ``requests`` slates of the logging policy; one row per request and position.

        Columns: ``request_id``, ``user_id``, ``video_id``, ``position``, ``reward`` (0 or 1); ``propensity``
        and ``target_propensity``: P(this video at this position | context, positions above) of either
        policy; ``baseline``: the model's reward of this position; ``baseline_target``: its mean over the
        target's choice at this position; ``baseline_to_go`` and ``baseline_to_go_target``: the same for the
        sum of this and all later positions under the target, which is what a cascade estimator needs.
        """
        context = rng.integers(len(self.user_id), size=requests)
        chance_XO = np.cumsum(slate_probabilities(logging, self.order_OL), axis=1)
        dice = rng.random(requests) * chance_XO[context, -1]
        slate = np.empty(requests, dtype=np.int64)
        for x in np.unique(context):
            here = context == x
            slate[here] = np.searchsorted(chance_XO[x], dice[here], side="right")
        slate = np.minimum(slate, len(self.order_OL) - 1)
        length = self.order_OL.shape[1]
        columns = self._baselines(target)
        columns["propensity"] = conditional_probabilities(logging, self.order_OL)
        columns["target_propensity"] = conditional_probabilities(target, self.order_OL)
        reward_XOL = np.stack([self._reward(position) for position in range(length)], axis=2)
        video = self.video_XM[context[:, None], self.order_OL[slate]]
        names = pa.array([f"slate-{request}" for request in range(requests)])
        return pa.table(
            {
                "request_id": names.take(pa.array(np.repeat(np.arange(requests), length))),
                "user_id": np.repeat(self.user_id[context], length),
                "video_id": video.ravel(),
                "position": np.tile(np.arange(length, dtype=np.int32), requests),
                "reward": (rng.random((requests, length)) < reward_XOL[context, slate])
                .astype(np.float64)
                .ravel(),
                **{name: column[context, slate].ravel() for name, column in columns.items()},
            }
        )

    def _reward(self, position: int) -> F64:
        """P(click) at ``position`` of every slate, float64 [X, O]."""
        choice = self.order_OL[:, position]
        kind = self.group_XM[:, self.order_OL]
        alike = (kind[:, :, :position] == kind[:, :, position : position + 1]).sum(axis=2)
        return np.asarray(self.gain_XLM[:, position, choice] * (1 - self.satiation) ** alike)

    def _baselines(self, target: SlatePolicy) -> dict[str, F64]:
        length, candidates = self.order_OL.shape[1], self.video_XM.shape[1]
        chance_XO = slate_probabilities(target, self.order_OL)
        reward_XOL = np.stack(
            [self.baseline_XLM[:, step, self.order_OL[:, step]] for step in range(length)], axis=2
        )
        to_go_XOL = np.cumsum(reward_XOL[:, :, ::-1], axis=2)[:, :, ::-1]
        found = {"baseline": reward_XOL}
        for name, value_XOL, ahead in (
            ("baseline_target", reward_XOL, 0),
            ("baseline_to_go", to_go_XOL, 1),
            ("baseline_to_go_target", to_go_XOL, 0),
        ):
            steps = range(length)
            means = [_mean_given(chance_XO, value_XOL[:, :, s], candidates, length, s + ahead) for s in steps]
            found[name] = np.stack(means, axis=2)
        return found


def build_slate_world(
    market: Market,
    rng: np.random.Generator,
    *,
    contexts: int = 50,
    candidates: int = 7,
    length: int = 3,
    satiation: float = 0.0,
    baseline_noise: float = 0.3,
) -> SlateWorld:
    """Take contexts from the market at the first moment of its log: random users, random live videos."""
    if not 1 <= length <= candidates or perm(candidates, length) > MOST_SLATES:
        raise ConfigError(
            f"length={length} of candidates={candidates} is impossible or more than {MOST_SLATES:,} slates; "
            "take fewer"
        )
    time = market.world.settings.start_ms
    user_id = rng.choice(market.user_ids, contexts)
    video_XM = np.stack(
        [
            rng.choice(market.video_ids[market.live(int(user), time)], candidates, replace=False)
            for user in user_id
        ]
    )
    users, videos = np.repeat(user_id, candidates), video_XM.ravel()
    gains = [
        market.expected(users, videos, time, position=position, quantities=("click",))["click"]
        for position in range(length)
    ]
    gain_XLM = np.stack([gain.reshape(contexts, candidates) for gain in gains], axis=1)
    rows = (video_XM - market.video_ids[0]) // (market.video_ids[1] - market.video_ids[0])
    return SlateWorld(
        user_id=user_id,
        video_XM=video_XM,
        gain_XLM=gain_XLM,
        baseline_XLM=gain_XLM * np.exp(baseline_noise * rng.standard_normal(gain_XLM.shape)),
        group_XM=market.world.videos.cluster[rows],
        satiation=satiation,
        order_OL=np.array(list(permutations(range(candidates), length)), dtype=np.int64),
    )


def conditional_probabilities(policy: SlatePolicy, order_OL: I64) -> F64:
    """P(position l of slate o | its positions above), float64 [X, O, L]."""
    lead_XM = policy.logit_XM - policy.logit_XM.max(axis=1, keepdims=True)
    weight_XM = np.exp(np.maximum(lead_XM, -LARGEST_LEAD))
    weight_XOL = weight_XM[:, order_OL]
    # What is left is summed afresh rather than by subtraction: exact also for very sharp policies.
    member_OLM = np.zeros((*order_OL.shape, weight_XM.shape[1]), dtype=np.bool_)
    np.put_along_axis(member_OLM, order_OL[:, :, None], True, axis=2)
    above_OLM = np.cumsum(member_OLM, axis=1) - member_OLM
    mass_XOL = np.einsum("xm,olm->xol", weight_XM, 1.0 - above_OLM)
    left_L = weight_XM.shape[1] - np.arange(order_OL.shape[1])
    return np.asarray((1 - policy.explore) * weight_XOL / mass_XOL + policy.explore / left_L)


def slate_probabilities(policy: SlatePolicy, order_OL: I64) -> F64:
    """P(slate o), float64 [X, O]; rows sum to 1."""
    return np.asarray(conditional_probabilities(policy, order_OL).prod(axis=2))


def _mean_given(chance_XO: F64, value_XO: F64, candidates: int, length: int, prefix: int) -> F64:
    """E[value | the first ``prefix`` positions of the slate], float64 [X, O].

    ``permutations`` lists slates lexicographically: those with one prefix stand together, equally many.
    """
    size = perm(candidates, length) // perm(candidates, prefix)
    shape = (len(chance_XO), -1, size)
    chance, value = chance_XO.reshape(shape), value_XO.reshape(shape)
    mean = (chance * value).sum(axis=2) / chance.sum(axis=2)
    return np.repeat(mean, size, axis=1)
