"""Decayed counts of outcomes per video, creator or other entity, as they stood when a day began.

An impression reads the counts of the days before its own, in training as at serving: a bundle that is
published daily knows no more, so the two cannot differ. Days begin at the split's boundaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data.errors import ContractError

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
DAY_MS = 86_400_000
#: Days fit in this many values on either side of day zero.
_SPAN = 1 << 20


@dataclass(frozen=True, slots=True)
class DecayedCounts:
    """Running sums of C channels per (entity, day) with something to count; half-life in days.

    ``key`` int64[M] ascending: entity row · 2²⁰ + day + 2¹⁹. ``state`` float32[M, C]: the decayed sum at the
    end of that day, the day itself undecayed.
    """

    half_life_days: float
    key: I64
    state: F32

    @classmethod
    def build(cls, entity: I64, day: I64, amount: F32, half_life_days: float) -> "DecayedCounts":
        """Sum ``amount`` [E, C] of E records of ``entity`` rows on ``day``; entity 0 (unknown) is left out.

        No records give a table whose every lookup is zero.
        """
        kept = entity > 0
        key, place = np.unique(entity[kept] * _SPAN + day[kept] + _SPAN // 2, return_inverse=True)
        state = np.stack(
            [np.bincount(place, column[kept], len(key)) for column in amount.T.astype(np.float64)], axis=1
        ).reshape(len(key), amount.shape[1])
        first = np.flatnonzero(np.r_[True, key[1:] // _SPAN != key[:-1] // _SPAN]) if len(key) else key
        rank = np.arange(len(key)) - np.repeat(first, np.diff(np.append(first, len(key))))
        for step in range(1, int(rank.max(initial=0)) + 1):
            now = np.flatnonzero(rank == step)
            gap = key[now] - key[now - 1]
            state[now] += state[now - 1] * np.exp2(-gap / half_life_days)[:, None]
        return cls(half_life_days, key, state.astype(np.float32))

    def before(self, entity: I64, day: I64, channels: Sequence[int] | None = None) -> F32:
        """Counts ``[E, C]`` of the days before ``day``, decayed to the day before it; zeros where none.

        ``channels`` picks some of them.
        """
        table = self
        if channels is not None:
            table = DecayedCounts(self.half_life_days, self.key, self.state[:, list(channels)])
        return counts_before([table], entity, day)[0]

    def since(self, day: int) -> "DecayedCounts":
        """What lookups of ``day`` and later can still reach."""
        entity, at = self.key // _SPAN, self.key % _SPAN - _SPAN // 2
        last_before = np.r_[entity[1:] != entity[:-1], True] if len(entity) else np.zeros(0, bool)
        last_before[:-1] |= at[1:] >= day
        kept = (at >= day) | last_before
        return DecayedCounts(self.half_life_days, self.key[kept], self.state[kept])


def counts_before(tables: Sequence[DecayedCounts], entity: I64, day: I64) -> list[F32]:
    """:meth:`DecayedCounts.before` of tables of the same records, which differ in their half-lives alone."""
    key = tables[0].key if tables else np.zeros(0, np.int64)
    if len(key) == 0:
        return [np.zeros((len(entity), table.state.shape[1]), np.float32) for table in tables]
    wanted = entity * _SPAN + day + _SPAN // 2
    place = np.searchsorted(key, wanted, side="left") - 1
    found = (place >= 0) & (key[place] // _SPAN == entity) & (entity > 0)
    age = np.where(found, wanted - key[place] - 1, 0)
    sums = []
    for table in tables:
        share = np.where(found, np.exp2(-age / table.half_life_days), 0.0).astype(np.float32)
        sums.append(table.state[place] * share[:, None])
    return sums


def save_counts(counts: dict[str, list[DecayedCounts]], path: Path) -> None:
    """Write the tables of every entity as safetensors."""
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    for name, tables in counts.items():
        for place, table in enumerate(tables):
            tensors[f"{name}.{place}.key"], tensors[f"{name}.{place}.state"] = table.key, table.state
            tensors[f"{name}.{place}.half_life_days"] = np.array([table.half_life_days])
    save_file(tensors, path)
    path.chmod(0o644)


def load_counts(path: Path) -> dict[str, list[DecayedCounts]]:
    """Read what :func:`save_counts` wrote; a damaged file raises :class:`ContractError`."""
    try:
        tensors = load_file(path)
        places = sorted(
            {tuple(name.rsplit(".", 2)[:2]) for name in tensors}, key=lambda at: (at[0], int(at[1]))
        )
        counts: dict[str, list[DecayedCounts]] = {}
        for name, place in places:
            half_life, key, state = (
                tensors[f"{name}.{place}.{part}"] for part in ("half_life_days", "key", "state")
            )
            counts.setdefault(name, []).append(DecayedCounts(float(half_life[0]), key, state))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ContractError(f"{path}: not a table of counts ({str(error).splitlines()[0]})") from None
    return counts
