"""Which videos are new, whose, and which merchants: arrays over catalogue rows, sorted once per bundle."""

import numpy as np
import numpy.typing as npt

from serving.exact import NO_ROWS, Rows
from serving.state.protocol import DAY_MS

Times = npt.NDArray[np.int64]
#: Publication of a video whose time is not known.
UNKNOWN_TIME = -1


class Recency:
    """The videos of a catalogue by time of publication; those without a time are left out.

    ``merchant_first_ms[code]`` is when a merchant's first video came out (Unix ms), ``UNKNOWN_TIME`` for one
    that has a video whose time is not known, or none.
    """

    def __init__(
        self,
        publish_ms: Times,
        creator_code: npt.NDArray[np.int32],
        tag_offset: Rows,
        tag_merchant: npt.NDArray[np.int32],
    ) -> None:
        """``publish_ms`` and ``creator_code`` are per video, ``tag_merchant`` per product tag: those of row r
        are ``tag_offset[r]`` to before ``tag_offset[r + 1]``.
        """
        known = np.flatnonzero(publish_ms != UNKNOWN_TIME)
        newest_first: Rows = known[np.argsort(-publish_ms[known], kind="stable")]
        self.publish_ms = publish_ms
        self._rows = newest_first
        self._age = -publish_ms[newest_first]
        creators = creator_code[newest_first]
        by_creator = np.argsort(creators, kind="stable")
        self._by_creator: Rows = newest_first[by_creator]
        self._creators = creators[by_creator]
        videos = np.repeat(np.arange(len(publish_ms)), np.diff(tag_offset))
        first = np.full(int(tag_merchant.max(initial=0)) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, tag_merchant, publish_ms[videos])
        first[first == np.iinfo(np.int64).max] = UNKNOWN_TIME
        self.merchant_first_ms = first

    def fresh(self, now_ms: int, days: float) -> Rows:
        """Rows published within the last ``days``, newest first; nothing from the future."""
        newest = np.searchsorted(self._age, -now_ms, side="left")
        oldest = np.searchsorted(self._age, -(now_ms - int(days * DAY_MS)), side="right")
        return self._rows[newest:oldest]

    def of_creators(self, creators: Rows, now_ms: int) -> Rows:
        """Rows of these creators (by code), newest first; nothing from the future."""
        begins = np.searchsorted(self._creators, creators, side="left").tolist()
        ends = np.searchsorted(self._creators, creators, side="right").tolist()
        parts = [self._by_creator[begin:end] for begin, end in zip(begins, ends, strict=True)]
        rows: Rows = np.concatenate([NO_ROWS, *parts])
        rows = rows[self.publish_ms[rows] <= now_ms]
        return rows[np.argsort(-self.publish_ms[rows], kind="stable")]
