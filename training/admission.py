"""Who gets a row of a managed table: ids seen often enough, until others need their rows more.

Axes: L looked-up keys, U distinct keys of a step, W keys that wait for a row, K rows that ids can have.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data.features import EncodedTable, key_name, take_bags
from data.hashing import salt_of
from data.loader import Batch
from data.prepared import Prepared
from models.managed import FREE, ManagedRows, managed_rows
from training.distributed import Ranks
from training.placement import Placement

I64 = npt.NDArray[np.int64]
#: Keys without a row whose sightings are remembered, those seen last; a forgotten one is counted anew.
WAITING = 1 << 17


class Eviction(Enum):
    """Whose row goes first: ``lru``, the id seen longest ago; ``lfu``, the one seen least often."""

    lru = "lru"
    lfu = "lfu"


@dataclass(frozen=True, slots=True)
class Sightings:
    """Distinct ``key_U``, ascending, and how often each was seen."""

    key_U: I64
    count_U: I64

    @classmethod
    def of(cls, key_L: I64, count_L: I64) -> "Sightings":
        """Add up repeated keys; key 0, an unknown id, counts for nobody."""
        key_U, place_L = np.unique(key_L, return_inverse=True)
        count_U = np.bincount(place_L, count_L, len(key_U)).astype(np.int64)
        kept = (key_U > 0) & (count_U > 0)
        return cls(key_U[kept], count_U[kept])

    @classmethod
    def of_rows(cls, table: EncodedTable, name: str, rows: I64) -> "Sightings":
        """Of the keys that feature ``name`` has in ``rows`` of a table, each row as often as it occurs."""
        row_U, times_U = np.unique(rows, return_counts=True)
        key_L, offsets = take_bags(table.bags[key_name(name)], row_U)
        return cls.of(key_L, np.repeat(times_U, np.diff(offsets)))

    def of_all(self, ranks: Ranks) -> "Sightings":
        """Those of all ranks together, equal on each. Collective."""
        if ranks.world == 1:
            return self
        own = np.zeros((2, ranks.largest(len(self.key_U))), np.int64)
        own[:, : len(self.key_U)] = self.key_U, self.count_U
        every = ranks.gather(own)
        return Sightings.of(every[:, 0].reshape(-1), every[:, 1].reshape(-1))


class RowKeeper:
    """Admission and eviction of one table. Every rank has a copy and is told the same, so all stay equal.

    ``state`` are live tensors of what only training needs: how often each row's id was seen and in which step
    last; key, sightings and last step of those that wait; step and epoch.
    """

    def __init__(self, rows: ManagedRows, *, admission: int, eviction: Eviction) -> None:
        """A key gets a row once it was seen ``admission`` ≥ 1 times within an epoch."""
        self.rows = rows
        self.admission = admission
        self.eviction = eviction
        table_rows = len(rows.row_K) + 1
        waiting_3W = torch.zeros(3, WAITING, dtype=torch.int64)
        waiting_3W[0] = FREE
        self.state: dict[str, Tensor] = {
            "count": torch.zeros(table_rows, dtype=torch.int64),
            "last": torch.zeros(table_rows, dtype=torch.int64),
            "waiting": waiting_3W,
            "clock": torch.zeros(2, dtype=torch.int64),
        }

    def see(self, seen: Sightings, epoch: int) -> I64:
        """Take in one step's sightings; returns the rows that have a new owner, ascending.

        A full table gives a newcomer the row of the id that ``eviction`` names, never of one seen in this
        step, and with ``lfu`` only of one seen less often than the newcomer.
        """
        count_R, last_R, clock = (self.state[name].numpy() for name in ("count", "last", "clock"))
        waiting_3W = self.state["waiting"].numpy()
        if epoch != clock[1]:  # who was not seen often enough in one pass over the log begins again
            waiting_3W = waiting_3W[:, :0]
        clock[:] = clock[0] + 1, epoch
        now = int(clock[0])
        key_K, row_K = self.rows.key_K.cpu().numpy(), self.rows.row_K.cpu().numpy()
        place_U = np.minimum(np.searchsorted(key_K, seen.key_U), len(key_K) - 1)
        has_row_U = key_K[place_U] == seen.key_U
        own = row_K[place_U[has_row_U]]
        count_R[own] += seen.count_U[has_row_U]
        last_R[own] = now
        waiting_3W = _joined(waiting_3W, seen.key_U[~has_row_U], seen.count_U[~has_row_U], now)
        ready = np.flatnonzero((waiting_3W[1] >= self.admission) & (waiting_3W[2] == now))
        ready = ready[np.argsort(-waiting_3W[1, ready], kind="stable")]  # most seen first, then by key
        given = self._given(key_K, row_K, waiting_3W[1, ready], now)
        admitted, rows = ready[: len(given)], row_K[given]
        if len(given):
            count_R[rows], last_R[rows] = waiting_3W[1, admitted], now
            self._hand_over(key_K, row_K, given, waiting_3W[0, admitted])
            waiting_3W = np.delete(waiting_3W, admitted, axis=1)
        self._wait(waiting_3W)
        return np.sort(rows)

    def _given(self, key_K: I64, row_K: I64, wanted: I64, now: int) -> I64:
        """Places in ``key_K`` of rows for newcomers with ``wanted`` sightings, most first; maybe fewer."""
        free = len(key_K) - int(np.searchsorted(key_K, FREE))
        given = np.arange(len(key_K) - free, len(key_K))[: len(wanted)]
        more = len(wanted) - len(given)
        if not more:
            return given
        count_R, last_R = self.state["count"].numpy(), self.state["last"].numpy()
        last_K = last_R[row_K]
        old = np.flatnonzero((last_K < now) & (key_K != FREE))
        order = last_K[old] if self.eviction is Eviction.lru else count_R[row_K[old]]
        victims = old[_smallest(order, more)]
        if self.eviction is Eviction.lfu:
            worth = count_R[row_K[victims]] < wanted[len(given) : len(given) + len(victims)]
            victims = victims[: int(worth.argmin()) if not worth.all() else len(victims)]
        return np.concatenate([given, victims])

    def _hand_over(self, key_K: I64, row_K: I64, given: I64, key_N: I64) -> None:
        """Give the rows at places ``given`` to ``key_N``, in that order, and keep the map sorted."""
        kept_key, kept_row = np.delete(key_K, given), np.delete(row_K, given)
        order = np.argsort(key_N)
        place = np.searchsorted(kept_key, key_N[order])
        self.rows.key_K.copy_(torch.from_numpy(np.insert(kept_key, place, key_N[order])))
        self.rows.row_K.copy_(torch.from_numpy(np.insert(kept_row, place, row_K[given][order])))

    def _wait(self, waiting_3W: I64) -> None:
        """Remember those who wait, at most :data:`WAITING` of them, those seen last."""
        if waiting_3W.shape[1] > WAITING:
            waiting_3W = waiting_3W[:, np.sort(_smallest(-waiting_3W[2], WAITING))]
        stored = self.state["waiting"].numpy()
        stored[0], stored[1:] = FREE, 0
        stored[:, : waiting_3W.shape[1]] = waiting_3W


class Admission:
    """All managed tables of a model under training: told of each batch before its forward pass."""

    def __init__(
        self, model: nn.Module, prepared: Prepared, placement: Placement, ranks: Ranks,
        *, admission: int, eviction: Eviction, seed: int,
    ) -> None:  # fmt: skip
        """Adds its state to that of ``placement``."""
        self.prepared, self.placement, self.ranks, self.seed = prepared, placement, ranks, seed
        self.tables = {}
        for name, (table, rows) in managed_rows(model).items():
            keeper = RowKeeper(rows, admission=admission, eviction=eviction)
            self.tables[name] = (table, keeper)
            placement.further |= {f"admission.{name}.{key}": value for key, value in keeper.state.items()}

    @torch.no_grad()
    def see(self, batch: Batch) -> None:
        """Count each target of ``batch``, an impression that trains: its video and its user. Collective.

        A row with a new owner starts anew, weights and optimizer state.
        """
        trained = batch.target_weight_P > 0
        video_P = batch.video_rows[batch.target_video_P[trained]]
        user_P = batch.user_row_B[batch.query_window_Q[batch.query_of_target_P[trained]]]
        for name, (table, keeper) in self.tables.items():
            of_video = key_name(name) in self.prepared.video_table.bags
            encoded = self.prepared.video_table if of_video else self.prepared.user_table
            seen = Sightings.of_rows(encoded, name, video_P if of_video else user_P)
            changed = keeper.see(seen.of_all(self.ranks), batch.epoch)
            if len(changed):
                step = int(keeper.state["clock"][0])
                draw = torch.Generator().manual_seed(salt_of("admission", name, self.seed, step) >> 1)
                self.placement.renew_rows(table, torch.from_numpy(changed), draw)


def _joined(waiting_3W: I64, key_U: I64, count_U: I64, now: int) -> I64:
    """Who waits, the newly seen among them: ascending keys, their sightings and last steps ``[3, W]``."""
    waiting_3W = waiting_3W[:, : int(np.searchsorted(waiting_3W[0], FREE))]
    key_W = np.union1d(waiting_3W[0], key_U)
    joined_3W = np.stack([key_W, np.zeros_like(key_W), np.zeros_like(key_W)])
    joined_3W[1:, np.searchsorted(key_W, waiting_3W[0])] = waiting_3W[1:]
    place_U = np.searchsorted(key_W, key_U)
    joined_3W[1, place_U] += count_U
    joined_3W[2, place_U] = now
    return joined_3W


def _smallest(values: I64, number: int) -> I64:
    """Positions of the ``number`` smallest values, ascending, equal ones by position; all where fewer."""
    if number < len(values):
        bound = np.partition(values, number - 1)[number - 1]
        below, equal = np.flatnonzero(values < bound), np.flatnonzero(values == bound)
        chosen = np.concatenate([below, equal[: number - len(below)]])
    else:
        chosen = np.arange(len(values))
    return chosen[np.argsort(values[chosen], kind="stable")]
