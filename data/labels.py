"""Labels by attribution: a later action goes to the impression that caused it, inside a window.

Pure functions over arrays of whole users; ``data.blocks`` brings the arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.schema import LABEL_BIT, LABELS

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
NO_IMPRESSION = -1


@dataclass(frozen=True, slots=True)
class Attribution:
    """How long after an impression an action still counts as its outcome, in ms.

    ``window_ms`` holds every label of the contract. The window includes its last millisecond.
    """

    window_ms: Mapping[str, int]

    @classmethod
    def of(cls, *, default_minutes: float, days: Mapping[str, float]) -> "Attribution":
        """``default_minutes`` for every label, ``days`` for those named there."""
        windows = dict.fromkeys(LABELS, round(default_minutes * 60_000))
        return cls({**windows, **{label: round(value * 86_400_000) for label, value in days.items()}})

    @property
    def by_bit(self) -> I64:
        """Window per bit position of an action mask."""
        return np.array([self.window_ms[label] for label in LABELS], np.int64)


def causes(
    *,
    user: I64,
    video: I64,
    time_ms: I64,
    is_action: npt.NDArray[np.bool_],
    request: I64 | None = None,
) -> I64:
    """For every action the position of its impression: the latest at or before it, -1 for none.

    The arrays hold impressions and actions of whole users in any order; the result has one entry per
    action, in their order. ``request`` numbers the ``request_id`` of each (-1 without one): where an
    impression of the action's own request exists, the latest such one wins, however old. Windows are
    not applied here. Impressions at the same moment: the last in the order of the arrays.
    A video that the catalogue lacks (row 0) has no cause: several of them share that row.
    """
    actions = np.flatnonzero(is_action)
    if not len(actions):
        return np.zeros(0, np.int64)
    videos = int(video.max()) + 1
    assert int(user.max()) < np.iinfo(np.int64).max // videos, "pairs of user and video overflow int64"
    key = user * videos + video
    concerned = np.unique(key[actions])
    place = np.minimum(np.searchsorted(concerned, key), len(concerned) - 1)
    some = np.flatnonzero((concerned[place] == key) & (video > 0))
    found = np.full(len(user), NO_IMPRESSION, np.int64)
    found[some] = _latest(place[some], time_ms[some], is_action[some], some)
    if request is not None:
        named = some[request[some] >= 0]
        own_key = place[named] * (int(request.max()) + 1) + request[named]
        own = _latest(own_key, time_ms[named], is_action[named], named)
        found[named] = np.where(own >= 0, own, found[named])
    return found[actions]


def _latest(key: I64, time_ms: I64, is_action: npt.NDArray[np.bool_], position: I64) -> I64:
    """Per entry the ``position`` of the last impression of its key at or before it, or -1."""
    order = np.lexsort((is_action, time_ms, key))
    place = np.where(is_action[order], NO_IMPRESSION, np.arange(len(order)))
    last = np.maximum.accumulate(place) if len(place) else place
    same = (last >= 0) & (key[order][last] == key[order])
    result = np.empty(len(order), np.int64)
    result[order] = np.where(same, position[order][last], NO_IMPRESSION)
    return result


@dataclass(slots=True)
class Labelled:
    """Masks per record (meaningful for impressions), and for every action whether it found its cause.

    ``order_value_minor``: of attributed purchases together where the impression names none itself.
    """

    true: I32
    known: I32
    order_value_minor: I64
    attributed: npt.NDArray[np.bool_]


def label(
    *,
    time_ms: I64,
    true: I32,
    known: I32,
    order_value_minor: I64,
    is_action: npt.NDArray[np.bool_],
    cause: I64,
    attribution: Attribution,
    logged: int,
    end_ms: I64 | int,
    video: I64,
) -> Labelled:
    """Give impressions the outcomes that their actions report.

    ``true`` and ``known`` are the masks that records carry themselves; ``cause`` is from
    :func:`causes`. ``logged``: mask of the labels that arrive as actions at all. ``end_ms``: the first
    moment (one, or one per record) that the log does not cover, or whose outcomes an impression may not
    know; an action at or after its impression's end is not attributed. Of a logged label, the absence of an
    action is a known false once the window lies inside the log; until then the label is unknown, also
    where it already came true (those alone would make it look certain). Labels that an impression
    carries itself stay known; true wins over false.
    """
    actions = np.flatnonzero(is_action)
    window = attribution.by_bit
    bit = _bit_position(true[actions])
    within = cause >= 0
    end = np.broadcast_to(np.asarray(end_ms, np.int64), time_ms.shape)
    when, since = time_ms[actions[within]], time_ms[cause[within]]
    within[within] = (when - since <= window[bit[within]]) & (when < end[cause[within]])
    new_true, new_known, value = true.copy(), known.copy(), order_value_minor.copy()
    np.bitwise_or.at(new_true, cause[within], true[actions[within]])
    for name in LABELS:
        if logged & LABEL_BIT[name]:
            closed = (time_ms + attribution.window_ms[name] < end) & (video > 0)
            new_known |= np.where(closed, LABEL_BIT[name], 0).astype(np.int32)
    bought = within & (true[actions] == LABEL_BIT["purchase"]) & (order_value_minor[actions] >= 0)
    total = np.zeros(len(value), np.int64)
    np.add.at(total, cause[bought], order_value_minor[actions[bought]])
    silent = np.flatnonzero(np.bincount(cause[bought], minlength=len(value)).astype(bool) & (value < 0))
    value[silent] = total[silent]
    return Labelled(new_true, new_known, value, within)


def _bit_position(mask: I32) -> I64:
    return np.log2(np.maximum(mask, 1)).astype(np.int64)
