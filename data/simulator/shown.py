"""What every user has been shown so far: four bytes an impression, looked up by day."""

import numpy as np

from data.simulator.taste import I32, I64, Bool


class Shown:
    """Shown videos of all users in the simulator's user order, appended chunk by chunk and day by day."""

    def __init__(self, users: int) -> None:
        self._users = users
        self._days: list[tuple[I64, I32]] = []
        self._counts: list[I64] = []
        self._videos: list[I32] = []

    def add(self, count: I64, video: I64) -> None:
        """Append a chunk of the day in progress: ``count`` videos per user, ``video`` in that order."""
        self._counts.append(count)
        self._videos.append(video.astype(np.int32))

    def end_day(self) -> None:
        """Close the day in progress; from now on its videos count as shown."""
        count = np.concatenate(self._counts) if self._counts else np.zeros(self._users, dtype=np.int64)
        video = np.concatenate(self._videos) if self._videos else np.zeros(0, dtype=np.int32)
        assert len(count) == self._users
        self._days.append((np.concatenate([[0], np.cumsum(count)]), video))
        self._counts, self._videos = [], []

    def left(self, first: int, last: int, pool_U: I64, video_SP: I32, videos: int) -> Bool:
        """Which slots of their pools the users ``first`` … ``last`` - 1 were not shown yet, bool [U, P].

        ``pool_U`` is the row of ``video_SP`` [S, P] (int32 video rows or -1, distinct in a row) that each of
        these users draws from; ``videos`` is the number of videos in the market.
        """
        video_UP = video_SP[pool_U]
        left = video_UP >= 0
        present, local = np.unique(pool_U, return_inverse=True)
        slot_of = np.full((len(present), videos), -1, dtype=np.int16)
        pool, slot = np.nonzero(video_SP[present] >= 0)
        slot_of[pool, video_SP[present][pool, slot]] = slot
        for offset, video in self._days:
            seen = video[offset[first] : offset[last]]
            user = np.repeat(np.arange(last - first), np.diff(offset[first : last + 1]))
            found = slot_of[local[user], seen]
            hit = found >= 0
            left[user[hit], found[hit]] = False
        return left
