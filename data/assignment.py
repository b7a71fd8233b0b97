"""Who gets what in a rollout: one salted hash, the same in every replica, offline and in every language.

``point(salt, unit)`` is the first 8 bytes of BLAKE2b-64 over ``salt``, a zero byte and the unit's text, read
as a big-endian number of which the upper 53 bits make a fraction. Nothing else decides: an assignment needs
no table, and whoever knows the salt can recompute it. ``tests/data/test_assignment.py`` holds test vectors.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

_BITS = 53  # a double holds every such fraction exactly
T = TypeVar("T")


def point(salt: str, unit: int | str) -> float:
    """Where ``unit`` (a user's id) falls in [0, 1) under ``salt``; 7 and "7" fall on the same point."""
    text = f"{salt}\x00{unit}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)


def within(salt: str, unit: int | str, share: float) -> bool:
    """Whether ``unit`` is in the first ``share`` of all; who is in a share stays in every larger one."""
    return point(salt, unit) < share


def choose(salt: str, unit: int | str, weights: Sequence[tuple[T, float]]) -> T:
    """One of several by weight (≥ 0, with a positive sum), in the order given.

    Raises ``ValueError`` for weights that choose nobody.
    """
    total = sum(weight for _, weight in weights)
    if not total > 0 or min(weight for _, weight in weights) < 0:
        raise ValueError(f"weights must not be negative and must add up to more than 0, not {weights}")
    at, reached = point(salt, unit) * total, 0.0
    for choice, weight in weights:
        reached += weight
        if at < reached:
            return choice
    return next(choice for choice, weight in reversed(weights) if weight > 0)  # rounding of the last sum
