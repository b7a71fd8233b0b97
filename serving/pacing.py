"""How much of a budget may be gone by now: the share of the period's traffic that has passed.

A budget that follows the traffic meets every viewer with the same chance, is never burnt early, and is
spent when the period ends. Pure functions; traffic is given as the weights of the 24 hours of a UTC day.
"""

from collections.abc import Sequence
from dataclasses import dataclass

HOUR_MS = 3_600_000
HOURS = 24


@dataclass(frozen=True, slots=True)
class Traffic:
    """Weights ≥ 0 of the hours 0 … 23 of a UTC day, with a positive sum; within an hour it is even."""

    weight_H: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.weight_H) != HOURS or min(self.weight_H) < 0 or not 0 < sum(self.weight_H) < float("inf"):
            raise ValueError(f"traffic needs {HOURS} weights, none negative and not all 0")

    def between(self, begin_ms: int, end_ms: int) -> float:
        """The traffic from one moment to another, in the unit of the weights; 0 where that is no time."""
        return max(0.0, self._until(end_ms) - self._until(begin_ms))

    def passed(self, begin_ms: int, end_ms: int, now_ms: int) -> float:
        """The share of a period's traffic that has passed, 0 … 1; by the clock where it expects none."""
        if now_ms >= end_ms:
            return 1.0
        whole = self.between(begin_ms, end_ms)
        if whole <= 0:
            return min(1.0, max(0.0, (now_ms - begin_ms) / max(1, end_ms - begin_ms)))
        return min(1.0, self.between(begin_ms, now_ms) / whole)

    def _until(self, moment_ms: int) -> float:
        hours, within_ms = divmod(moment_ms, HOUR_MS)
        days, hour = divmod(hours, HOURS)
        done = days * sum(self.weight_H) + sum(self.weight_H[:hour])
        return done + self.weight_H[hour] * within_ms / HOUR_MS


FLAT = Traffic((1.0,) * HOURS)


def learned(pages_by_hour: Sequence[int], first_hour: int) -> Traffic:
    """Traffic from the pages of successive hours, of which the first is hour ``first_hour`` since 1970.

    Each hour of the day is the mean over its days. :data:`FLAT` for less than a day, or where an hour of
    the day was never counted at all, so that nothing is ever held back for want of a look.
    """
    if len(pages_by_hour) < HOURS or not any(pages_by_hour):
        return FLAT
    total, days = [0.0] * HOURS, [0] * HOURS
    for offset, pages in enumerate(pages_by_hour):
        hour = (first_hour + offset) % HOURS
        total[hour] += pages
        days[hour] += 1
    return Traffic(tuple(pages / seen for pages, seen in zip(total, days, strict=True)))


def may_spend(spent: int, price: int, budget: int, passed: float) -> bool:
    """Whether one more impression keeps to the pace: never past the budget, nor past its share by more
    than one price.
    """
    return spent + price <= budget and spent < budget * passed
