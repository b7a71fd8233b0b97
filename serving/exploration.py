"""Exploration slots: a draw from a known distribution, with the exact propensity of what was drawn.

The pool of the page is split into one sub-pool per exploration slot before anything is drawn, so that
the slots are independent: the probability of a video in its slot is exactly its share of the sub-pool,
whatever the other slots drew. Candidates that may not stand on the page together never meet: what they
have in common belongs to one sub-pool.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.schema import MAX_PAGE_SIZE


@dataclass(frozen=True, slots=True)
class ExplorationPreferences:
    """``positions`` (from 0) of the page's exploration slots; none switches exploration off.

    Of the probability ``uniform_share`` (0, 1] is spread evenly over the sub-pool, the rest is a softmax
    of the standardised scores at ``temperature``. ``pool`` bounds how many candidates are drawn from.
    """

    positions: tuple[int, ...]
    pool: int
    uniform_share: float
    temperature: float

    def __post_init__(self) -> None:
        if any(not 0 <= place < MAX_PAGE_SIZE for place in self.positions):
            raise ValueError(f"positions={list(self.positions)} must lie within 0 … {MAX_PAGE_SIZE - 1}")
        if len(set(self.positions)) < len(self.positions):
            raise ValueError(f"positions={list(self.positions)} names a position twice")
        if not 0 < self.uniform_share <= 1 or self.temperature <= 0 or self.pool < 1:
            raise ValueError("needs 0 < uniform_share <= 1, temperature > 0, pool >= 1")


NO_EXPLORATION = ExplorationPreferences((), 1, 1.0, 1.0)


class Draw(NamedTuple):
    """The candidate drawn, by its index, and the probability with which it was."""

    candidate: int
    propensity: float


def split_pool(
    candidates: Iterable[tuple[int, bool, Iterable[Hashable]]], wants: Sequence[bool | None]
) -> list[list[int]]:
    """Deal candidates ``(index, shopping, keys)``, in order, to one sub-pool per entry of ``wants``.

    A sub-pool that wants True takes shopping videos only, False none, None both. Candidates with a common
    key go into the same sub-pool; one whose keys already belong to two, or to one that does not want it,
    goes into none. Others go to the smallest that wants them. A sub-pool may stay empty.
    """
    pools: list[list[int]] = [[] for _ in wants]
    owner: dict[Hashable, int] = {}
    for index, shopping, keys in candidates:
        own = list(keys)
        owners = {owner[key] for key in own if key in owner}
        open_to = [slot for slot, want in enumerate(wants) if want is None or want == shopping]
        fitting = [slot for slot in open_to if not owners or owners == {slot}]
        if fitting:
            slot = min(fitting, key=lambda slot: len(pools[slot]))
            pools[slot].append(index)
            owner.update(dict.fromkeys(own, slot))
    return pools


def distribution(scores: Sequence[float], preferences: ExplorationPreferences) -> npt.NDArray[np.float64]:
    """Probability of each candidate of a sub-pool, float64, summing to 1; every one is positive."""
    values = np.asarray(scores, np.float64)
    spread = values.std()
    logits = (values - values.max()) / ((spread if spread > 0 else 1.0) * preferences.temperature)
    weights = np.exp(logits)
    share = preferences.uniform_share
    mixed: npt.NDArray[np.float64] = share / len(values) + (1.0 - share) * weights / weights.sum()
    return mixed


def draw(
    pool: Sequence[int],
    scores: Sequence[float],
    preferences: ExplorationPreferences,
    random: np.random.Generator,
) -> Draw:
    """Draw one candidate of a sub-pool that is not empty; ``scores`` are those of the sub-pool."""
    probabilities = distribution(scores, preferences)
    place = int(random.choice(len(pool), p=probabilities))
    return Draw(pool[place], float(probabilities[place]))
