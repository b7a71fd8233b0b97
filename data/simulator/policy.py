"""The logging policy: sequences without repeats, with the exact probability of every choice.

For each user the pool of the day is fixed and what the user was shown before is struck out. Position
after position one video is drawn from the mixture

    p(v) = (1 - c) * ((1 - e) * w_v / W  +  e / A)  +  c * [v is the campaign's] / A_c

over the videos left: ``w = exp(sharpness * score)``, ``W`` their sum, ``A`` their number, ``A_c`` the
number of campaign videos left, ``e`` the share of exploration and ``c`` that of the campaign (0 where
none of its videos is left). The recorded propensity is this p(v): conditional on the pool and on all
that the user was shown earlier, the earlier positions of the slate included. Axes: ``U`` users, ``P``
slots of the pool, ``S`` steps.
"""

from dataclasses import dataclass

import numpy as np

from data.simulator.taste import F32, F64, I64, Bool

POLICIES = ("production", "random")
#: A weight is at least this logarithm below the user's largest, so that every candidate keeps a chance.
LOWEST_LOG_WEIGHT = -12.0
_TRIES = 6


@dataclass(frozen=True, slots=True)
class Candidates:
    """``weight_UP`` float64 (see :func:`weights`), ``left_UP``: what may still be shown; the first
    ``campaign_slots_U`` slots of each row are the campaign's.
    """

    weight_UP: F64
    left_UP: Bool
    campaign_slots_U: I64


@dataclass(frozen=True, slots=True)
class Choices:
    """``slot_US`` int64 (-1 after a user's last step), ``propensity_US`` float64, ``by_campaign_US``."""

    slot_US: I64
    propensity_US: F64
    by_campaign_US: Bool


def weights(score_UP: F32, left_UP: Bool, sharpness: float) -> F64:
    """Softmax weights of the production policy, float64 [U, P] in [exp(-12), 1]; 0 where not left."""
    log_weight = np.where(left_UP, sharpness * score_UP.astype(np.float64), -np.inf)
    log_weight -= np.where(left_UP.any(axis=1), log_weight.max(axis=1), 0.0)[:, None]
    return np.where(left_UP, np.exp(np.maximum(log_weight, LOWEST_LOG_WEIGHT)), 0.0)


def mixture(candidates: Candidates, explore_U: F64, campaign_U: F64) -> F64:
    """The probability of every slot as the next choice, float64 [U, P]; rows sum to 1.

    At least one slot per row must be left.
    """
    left_UP = candidates.left_UP
    weight = np.where(left_UP, candidates.weight_UP, 0.0)
    promoted = left_UP & (np.arange(weight.shape[1]) < candidates.campaign_slots_U[:, None])
    promoted_count = promoted.sum(axis=1)
    share = np.where(promoted_count > 0, campaign_U, 0.0)
    return np.asarray(
        ((1 - share) * (1 - explore_U))[:, None] * weight / weight.sum(axis=1, keepdims=True)
        + ((1 - share) * explore_U / left_UP.sum(axis=1))[:, None] * left_UP
        + (share / np.maximum(promoted_count, 1))[:, None] * promoted
    )


def draw_sequences(
    rng: np.random.Generator, candidates: Candidates, *, explore_US: F64, campaign_US: F64, length_U: I64
) -> Choices:
    """Draw ``length_U`` choices for every user; at least as many slots must be left.

    Softmax and uniform draws go by rejection: a draw from the whole pool that falls on a used slot is
    repeated, which gives exactly the distribution over the slots left. Rows that stay unlucky are drawn
    from the distribution written out.
    """
    order = np.argsort(-length_U, kind="stable")
    length = length_U[order]
    steps = int(length[0]) if len(length) else 0
    state = _State(candidates, order)
    active_S = np.searchsorted(-length, -np.arange(steps), side="left")
    shape = (len(length_U), steps)
    choices = Choices(np.full(shape, -1, dtype=np.int64), np.ones(shape), np.zeros(shape, dtype=np.bool_))
    for step, active in enumerate(active_S):
        rows = order[:active]
        slot, propensity, promoted = state.step(rng, explore_US[rows, step], campaign_US[rows, step])
        choices.slot_US[rows, step] = slot
        choices.propensity_US[rows, step] = propensity
        choices.by_campaign_US[rows, step] = promoted
    return choices


class _State:
    """What is left of each user's pool while sequences grow; a step serves the first rows in ``order``."""

    def __init__(self, candidates: Candidates, order: I64) -> None:
        self.left = candidates.left_UP[order]
        self.weight = np.where(self.left, candidates.weight_UP[order], 0.0)
        self.mass = self.weight.sum(axis=1)
        self.count = self.left.sum(axis=1)
        self.campaign_slots = campaign_slots_U = candidates.campaign_slots_U[order]
        promoted = np.arange(int(campaign_slots_U.max(initial=0)))[None, :] < campaign_slots_U[:, None]
        self.promoted = promoted
        self.promoted_left = (self.left[:, : promoted.shape[1]] & promoted).sum(axis=1)
        cumulative = np.cumsum(self.weight, axis=1)
        cumulative /= cumulative[:, -1:]
        cumulative[:, -1] = 1.0
        # One search serves all rows: row r's distribution function runs from r to r + 1.
        self.cumulative = (cumulative + np.arange(len(cumulative))[:, None]).ravel()

    def step(self, rng: np.random.Generator, explore: F64, campaign: F64) -> tuple[I64, F64, Bool]:
        active = len(explore)
        rows = np.arange(active)
        campaign = np.where(self.promoted_left[:active] > 0, campaign, 0.0)
        dice = rng.random(active)
        by_campaign = dice < campaign
        by_chance = (dice < campaign + (1 - campaign) * explore) & ~by_campaign
        slot = np.empty(active, dtype=np.int64)
        self._fill(rng, slot, np.flatnonzero(~by_campaign & ~by_chance), by_weight=True)
        self._fill(rng, slot, np.flatnonzero(by_chance), by_weight=False)
        promoted = np.flatnonzero(by_campaign)
        if len(promoted):
            free = self.promoted[promoted] & self.left[promoted, : self.promoted.shape[1]]
            slot[promoted] = np.argmax(np.where(free, rng.random(free.shape), -1.0), axis=1)
        weight = self.weight[rows, slot]
        in_campaign = slot < self.campaign_slots[:active]
        organic = (1 - explore) * weight / self.mass[:active] + explore / self.count[:active]
        promotion = np.where(in_campaign, campaign / np.maximum(self.promoted_left[:active], 1), 0.0)
        propensity = (1 - campaign) * organic + promotion
        self.left[rows, slot] = False
        self.mass[:active] -= weight
        self.count[:active] -= 1
        self.promoted_left[:active] -= in_campaign
        return slot, propensity, by_campaign

    def _fill(self, rng: np.random.Generator, slot: I64, rows: I64, *, by_weight: bool) -> None:
        width = self.left.shape[1]
        for _ in range(_TRIES):
            if not len(rows):
                return
            if by_weight:
                found = np.searchsorted(self.cumulative, rows + rng.random(len(rows)), side="right")
                found = np.minimum(found - rows * width, width - 1)
            else:
                found = rng.integers(width, size=len(rows))
            slot[rows] = found
            rows = rows[~self.left[rows, found]]
        if len(rows):
            free = self.left[rows]
            chance = np.cumsum(np.where(free, self.weight[rows], 0.0) if by_weight else free, axis=1)
            target = rng.random(len(rows)) * chance[:, -1]
            found = (chance <= target[:, None]).sum(axis=1)
            last = width - 1 - np.argmax(free[:, ::-1], axis=1)
            slot[rows] = np.minimum(found, last)
