"""What a user did before a moment, as equal arrays for training, replay and the server.

A *step* is one impression with the labels that it carries itself, or one later action on its own at
the time it happened. A history therefore never contains an outcome before it happened.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from data.schema import LABEL_BIT
from data.vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
#: ``watch_ms`` of a step whose watch time is not known.
UNKNOWN_WATCH = -1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class UserHistory:
    """S steps of one user, oldest first; all arrays have length S, which may be 0.

    ``video_row`` int64: catalogue rows (0 = a video that the catalogue lacks). ``time_ms`` int64: Unix
    milliseconds. ``actions`` int32: bit mask of labels known to be true, ``known`` int32: of labels that
    were observed (``data.schema.LABEL_BIT``). ``watch_ms`` int32, -1 unknown. ``surface_row`` int32.
    """

    video_row: I64
    time_ms: I64
    actions: I32
    known: I32
    watch_ms: I32
    surface_row: I32

    @classmethod
    def empty(cls) -> "UserHistory":
        """The history of a user never seen."""
        wide, narrow = np.zeros(0, np.int64), np.zeros(0, np.int32)
        return cls(wide, wide, narrow, narrow, narrow, narrow)

    def __len__(self) -> int:
        return len(self.video_row)

    def take(self, which: slice | npt.NDArray[Any]) -> "UserHistory":
        """The chosen steps."""
        return UserHistory(
            self.video_row[which], self.time_ms[which], self.actions[which],
            self.known[which], self.watch_ms[which], self.surface_row[which],
        )  # fmt: skip

    def last(self, n: int) -> "UserHistory":
        """The newest ``n`` steps (all of them where there are fewer)."""
        return self.take(slice(max(len(self) - n, 0), None))

    def before(self, time_ms: int) -> "UserHistory":
        """The steps strictly before ``time_ms``."""
        return self.take(slice(0, int(np.searchsorted(self.time_ms, time_ms, side="left"))))


@dataclass(slots=True)
class UserRequest:
    """One request for a feed: who asks (``user_row`` 0 = unknown), when, where, and with what history."""

    user_row: int
    history: UserHistory
    time_ms: int
    surface_row: int = 0


def history_from_records(
    records: Iterable[Mapping[str, Any]], catalogue: Vocabulary, surfaces: Vocabulary
) -> UserHistory:
    """Build a history from the server's records of one user, in any order.

    A record is an impression, ``{"video_id", "time_ms" or "event_time", label: bool…, "watch_ms",
    "surface"}`` (an absent or None label is unknown), or an action, ``{"video_id", "action", "time_ms"
    or "action_time"}``. Times are Unix milliseconds, or datetimes with a time zone. Steps come out in the
    order that ``prepare`` gives them: time to the millisecond, impressions before actions, video.
    """
    rows = list(records)
    masks = [_masks(row) for row in rows]
    return history_from_columns(
        catalogue, surfaces,
        video_id=[row["video_id"] for row in rows], time_ms=[_time_ms(row) for row in rows],
        actions=[true for true, _ in masks], known=[seen for _, seen in masks],
        watch_ms=[_watch_ms(row) for row in rows], surface=[row.get("surface") for row in rows],
        is_action=[_is_action(row) for row in rows],
    )  # fmt: skip


def history_from_columns(
    catalogue: Vocabulary, surfaces: Vocabulary, *, video_id: Sequence[int | str], time_ms: Sequence[int],
    actions: Sequence[int], known: Sequence[int], watch_ms: Sequence[int], surface: Sequence[str | None],
    is_action: Sequence[bool],
) -> UserHistory:  # fmt: skip
    """Build a history from equal-length columns, in any order; see :func:`history_from_records`.

    ``actions`` and ``known`` are bit masks, ``watch_ms`` is -1 where unknown. An action has no surface.
    """
    if not video_id:
        return UserHistory.empty()
    action = np.array(is_action, bool)
    steps = UserHistory(
        catalogue.rows(video_id), np.array(time_ms, np.int64), np.array(actions, np.int32),
        np.array(known, np.int32), np.array(watch_ms, np.int32), surfaces.rows(surface).astype(np.int32),
    )  # fmt: skip
    steps.surface_row[action] = 0
    ties = (steps.surface_row, steps.watch_ms, steps.known, steps.actions, steps.video_row, action)
    order = np.lexsort((*ties, steps.time_ms))
    return steps.take(order)


def _is_action(row: Mapping[str, Any]) -> bool:
    return row.get("action") is not None


def _time_ms(row: Mapping[str, Any]) -> int:
    for name in ("time_ms", "event_time", "action_time"):
        value = row.get(name)
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise ValueError(f"{name} {value} lacks a time zone")
            return (value - _EPOCH) // timedelta(milliseconds=1)
        if value is not None:
            return int(value)
    raise ValueError("a history record needs time_ms, event_time or action_time")


def _masks(row: Mapping[str, Any]) -> tuple[int, int]:
    if _is_action(row):
        bit = LABEL_BIT.get(row["action"], 0)
        return bit, bit
    true = sum(bit for label, bit in LABEL_BIT.items() if row.get(label) is True)
    known = sum(bit for label, bit in LABEL_BIT.items() if row.get(label) is not None)
    return true, known


def _watch_ms(row: Mapping[str, Any]) -> int:
    value = row.get("watch_ms")
    if value is None or _is_action(row):
        return UNKNOWN_WATCH
    return int(min(max(int(value), 0), np.iinfo(np.int32).max))
