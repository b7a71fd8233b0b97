"""A simulated market: build it, write its log, and ask for the truth about any (user, video)."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.dataset import write_table
from data.errors import ConfigError, ContractError
from data.simulator.behaviour import SURFACES, Exposure
from data.simulator.campaigns import CAMPAIGN_POSITION
from data.simulator.chunk import Audience, scores
from data.simulator.delays import ATTRIBUTION_DAYS
from data.simulator.expectation import QUANTITIES, expect
from data.simulator.ledger import Ledger, open_ledger
from data.simulator.log import LogCounts, simulate_days
from data.simulator.policy import Candidates, mixture, weights
from data.simulator.settings import DAY_MS, MarketSettings
from data.simulator.tables import products_table, users_table, videos_table
from data.simulator.taste import F64, I64, Bool
from data.simulator.truth import load_truth, save_truth
from data.simulator.world import World, build_world

#: A moment: Unix ms, or a datetime with a time zone; an array of Unix ms gives one per pair.
Time = int | datetime | npt.NDArray[np.integer]
Ids = Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Market:
    """``world`` is what was there before the log, ``ledger`` what happened in it (sold out, pools, budgets).

    A market that was built but never simulated has an empty ledger: nothing has sold out yet.
    """

    world: World
    ledger: Ledger

    @staticmethod
    def build(settings: MarketSettings, seed: int) -> "Market":
        """Draw a market; equal settings and seed give an equal market."""
        world = build_world(settings, seed)
        return Market(world, open_ledger(world))

    @staticmethod
    def load(dataset: str | Path) -> "Market":
        """The market behind a simulated dataset; raises :class:`ContractError` where the truth is missing."""
        return Market(*load_truth(Path(dataset)))

    def write(self, directory: Path) -> Iterator[LogCounts]:
        """Write all tables and the truth into ``directory`` (without ``dataset.json``), yielding progress.

        Use up the iterator. The ledger is reset first, so that writing twice writes the same bytes.
        """
        fresh = open_ledger(self.world)
        yield from simulate_days(self.world, fresh, directory)
        for name in Ledger.__dataclass_fields__:
            getattr(self.ledger, name)[...] = getattr(fresh, name)
        write_table(directory, "videos", videos_table(self.world))
        write_table(directory, "products", products_table(self.world, self.ledger))
        write_table(directory, "users", users_table(self.world))
        save_truth(directory, self.world, self.ledger)

    @property
    def user_ids(self) -> I64:
        """All user ids, ascending."""
        return self.world.users.id

    @property
    def video_ids(self) -> I64:
        """All video ids, ascending: the order of :meth:`oracle_scores`."""
        return self.world.videos.id

    def expected(
        self,
        user_ids: Ids,
        video_ids: Ids,
        time: Time,
        *,
        surface: str | Sequence[str] = "feed",
        position: int | npt.NDArray[np.integer] = 0,
        window_days: float = ATTRIBUTION_DAYS,
        quantities: Collection[str] = QUANTITIES,
    ) -> dict[str, F64]:
        """The exact expectation of every label for n pairs (user i is shown video i), float64 [n] each.

        A label's value is the probability that it comes true when the video is shown at ``position`` of a
        slate on ``surface`` at ``time``; ``purchase`` counts orders within ``window_days`` of the impression.
        ``watch_ms`` (ms) and ``order_value_minor`` (minor units of the user's currency, within the window)
        are expected values. Every argument but the ids may be one value for all or n values. Nobody asks
        whether the video was live or allowed in the market then: see :meth:`live`. Raises
        :class:`ContractError` for an id that is not of this market; no pairs give empty arrays.
        """
        user = rows_of(self.world.users.id, user_ids, "user_id")
        video = rows_of(self.world.videos.id, video_ids, "video_id")
        exposure = self._exposure(user, video, time, surface, position)
        return expect(self.world, exposure, self.ledger.stock_out_day, window_days, quantities)

    def live(self, user_id: int, time: Time) -> Bool:
        """Which videos are published at ``time`` and allowed in the user's market, bool [N]."""
        row = rows_of(self.world.users.id, [user_id], "user_id")[0]
        published = self.world.videos.publish_ms <= _moments(time)
        return published & self.world.videos.market_NR[:, self.world.users.region[row]]

    def oracle_scores(
        self, user_id: int, time: Time, *, quantity: str = "long_view", surface: str = "feed"
    ) -> F64:
        """The true expectation of ``quantity`` of every video at position 0; -inf where not live, [N]."""
        live = np.flatnonzero(self.live(user_id, time))
        users = np.full(len(live), user_id, dtype=np.int64)
        found = self.expected(users, self.video_ids[live], time, surface=surface, quantities=(quantity,))
        scores = np.full(len(self.video_ids), -np.inf)
        scores[live] = found[quantity]
        return scores

    def choice_probabilities(
        self,
        user_id: int,
        day: int,
        shown_video_ids: Ids,
        *,
        position: int = 0,
        random: bool = False,
    ) -> tuple[I64, F64]:
        """What the logging policy shows next to the user: video ids left in the pool and their probabilities.

        ``shown_video_ids`` is all that the user was shown before, earlier positions of the slate included;
        ``random`` asks for the policy ``random`` instead of ``production``. Known only for days of a log
        that was written: :class:`ConfigError` otherwise.
        """
        if not 0 <= day < len(self.ledger.video_TSP) or (self.ledger.video_TSP[day] < 0).all():
            raise ConfigError(f"day={day} was not simulated; take a day of a written log")
        user = rows_of(self.world.users.id, [user_id], "user_id")
        shown = rows_of(self.world.videos.id, shown_video_ids, "video_id")
        pools = self.ledger.pools(day)
        pool = np.searchsorted(pools.segment, self.world.users.segment[user])
        video_UP = pools.video_SP[pool]
        left_UP = (video_UP >= 0) & ~np.isin(video_UP, shown)
        score_UP = scores(self.world, pools, Audience(user, pool, left_UP))
        weight_UP = weights(score_UP, left_UP, self.world.settings.policy_sharpness)
        promotes = position == CAMPAIGN_POSITION and not random
        share_U = self.ledger.campaign_TR[day, self.world.users.region[user]] * promotes
        explore_U = np.array([1.0 if random else self.world.settings.explore_share])
        chance = mixture(Candidates(weight_UP, left_UP, pools.campaign_S[pool]), explore_U, share_U)[0]
        left = np.flatnonzero(left_UP[0])
        return self.video_ids[video_UP[0, left]], chance[left]

    def _exposure(
        self,
        user: I64,
        video: I64,
        time: Time,
        surface: str | Sequence[str],
        position: int | npt.NDArray[np.integer],
    ) -> Exposure:
        if len(user) != len(video):
            raise ConfigError(f"{len(user)} user ids with {len(video)} video ids; give pairs")
        names = [surface] if isinstance(surface, str) else list(surface)
        strangers = sorted(set(names) - set(SURFACES))
        if strangers:
            raise ConfigError(f"no surface {strangers[0]!r} in the market; there are {', '.join(SURFACES)}")
        place = np.array([SURFACES.index(name) for name in names], dtype=np.int64)
        day = (_moments(time) - self.world.settings.start_ms) // DAY_MS

        def each(value: npt.ArrayLike) -> I64:
            return np.broadcast_to(np.asarray(value, dtype=np.int64), user.shape)

        return Exposure(user, video, each(day), each(place if len(place) > 1 else place[0]), each(position))


def rows_of(ids: I64, wanted: Ids, column: str) -> I64:
    """Rows of ``wanted`` in the ascending ``ids``."""
    sought = np.asarray(wanted, dtype=np.int64)
    rows = np.minimum(np.searchsorted(ids, sought), len(ids) - 1)
    strange = np.flatnonzero(ids[rows] != sought)
    if len(strange):
        raise ContractError(f"{column} {sought[strange[0]]} is not of this market; take ids from its dataset")
    return np.asarray(rows, dtype=np.int64)


def _moments(time: Time) -> I64:
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise ConfigError(f"{time} has no time zone; give one, such as datetime.UTC")
        return np.asarray(round(time.astimezone(UTC).timestamp() * 1000), dtype=np.int64)
    return np.asarray(time, dtype=np.int64)
