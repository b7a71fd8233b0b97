"""Blocks of whole users as arrays: ties, causes, splits and labels, settled alike for every engine."""

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from data.hashing import mix, salt_of
from data.labels import causes, label
from data.log import Log
from data.schema import SPLITS
from data.split import SplitMode

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]


@dataclass(slots=True)
class Block:
    """R records of whole users, sorted by user, then in the order of a history.

    ``user`` rows; ``rank`` of the split; ``is_action``; ``own_true``/``own_known`` masks that the record
    carries itself (an action: its one bit); ``true``/``known`` after attribution (impressions only).
    -1 stands for unknown in ``watch_ms``, ``position`` and ``order_value_minor``, row 0 elsewhere.
    """

    user: I64
    time_ms: I64
    rank: I8
    is_action: npt.NDArray[np.bool_]
    video: I64
    own_true: I32
    own_known: I32
    watch_ms: I32
    surface: I32
    market: I32
    position: I32
    order_value_minor: I64
    request: I64
    true: I32
    known: I32
    attributed: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[np.generic]) -> "Block":
        """The chosen records."""
        return Block(*(getattr(self, column.name)[rows] for column in fields(self)))

    def tie_groups(self) -> I64:
        """Position of the first record at the same moment (user, split rank and time), for each."""
        fresh = np.ones(len(self), bool)
        fresh[1:] = (
            (self.user[1:] != self.user[:-1])
            | (self.time_ms[1:] != self.time_ms[:-1])
            | (self.rank[1:] != self.rank[:-1])
        )
        return np.maximum.accumulate(np.where(fresh, np.arange(len(self)), 0))

    def user_bounds(self) -> I64:
        """Where each user begins, and the length at the end: int64[users + 1]."""
        begins = np.flatnonzero(np.concatenate([[True], self.user[1:] != self.user[:-1]]))
        return np.append(begins, len(self)) if len(self) else np.zeros(1, np.int64)


def finish(block: Block, log: Log) -> Block:
    """Order ties, find causes, place actions in their split, and label."""
    block = _in_canonical_order(block)
    cause = causes(
        user=block.user, video=block.video, time_ms=block.time_ms, is_action=block.is_action,
        request=block.request if (block.request >= 0).any() else None,
    )  # fmt: skip
    if log.split.mode is SplitMode.given:
        block.rank = _ranks_of_actions(block, cause)
    labelled = label(
        time_ms=block.time_ms, true=block.own_true, known=block.own_known,
        order_value_minor=block.order_value_minor, is_action=block.is_action, cause=cause, video=block.video,
        attribution=log.attribution, logged=log.extent.logged, end_ms=_label_end_ms(block, log),
    )  # fmt: skip
    block = replace(
        block, true=labelled.true, known=labelled.known, order_value_minor=labelled.order_value_minor
    )
    block.attributed[block.is_action] = labelled.attributed
    if log.split.mode is SplitMode.given:
        block = block.take(_split_order(block, ordered=log.dataset.info.ordered))
    return block


def _user_number(block: Block) -> I64:
    return np.cumsum(np.concatenate([[0], block.user[1:] != block.user[:-1]]))


def _in_canonical_order(block: Block) -> Block:
    """Sort records of one user and millisecond; everything else is in order already."""
    user = _user_number(block)
    same = (user[1:] == user[:-1]) & (block.time_ms[1:] == block.time_ms[:-1])
    some = np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))
    if not len(some):
        return block
    order = np.arange(len(block))
    keys = [*_ties(block), block.time_ms, user]
    order[some] = some[np.lexsort([key[some] for key in keys])]
    return block.take(order)


def _ties(block: Block) -> list[npt.NDArray[np.generic]]:
    """Sort keys among records of one moment, the strongest last; those of a history's steps first."""
    return [
        block.request, block.order_value_minor, block.position, block.market,
        block.surface, block.watch_ms, block.own_known, block.own_true, block.video, block.is_action,
    ]  # fmt: skip


def _split_order(block: Block, *, ordered: bool) -> I64:
    """By user, split rank and time; a log without order gets a hashed one inside each moment."""
    keys = _ties(block)
    if not ordered:
        keys.append(mix(block.video ^ mix(block.user, salt_of("unordered")).astype(np.int64)))
    return np.lexsort([*keys, block.time_ms, block.rank, _user_number(block)])


def _ranks_of_actions(block: Block, cause: I64) -> I8:
    """An action belongs to the split of its impression, or a later one that the user had reached."""
    user, rank = _user_number(block), block.rank.copy()
    reached = np.maximum.accumulate(user * len(SPLITS) + np.where(block.is_action, 0, rank)) % len(SPLITS)
    own = np.where(cause >= 0, rank[cause], 0)
    rank[block.is_action] = np.maximum(own, reached[block.is_action])
    return rank


def _label_end_ms(block: Block, log: Log) -> I64 | int:
    split = log.split
    if not log.label_by_split or split.validation_ms is None or split.test_ms is None:
        return log.end_ms
    return np.array([split.validation_ms, split.test_ms, log.end_ms], np.int64)[block.rank]
