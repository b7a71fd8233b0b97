"""The bundle being served, and how it is replaced: checked whole, then swapped in one assignment.

A request reads :attr:`Deployment.live` once and works with that bundle to its end; the old bundle goes
when its last request is done.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from data.errors import ShopreelError
from data.features import feature_name
from data.history import UserHistory, UserRequest, history_from_columns
from data.vocabulary import Vocabulary
from models.bundle import CURRENT, Bundle, locate
from models.ranker_inference import Predictions
from models.value import ValueFormula
from serving.catalogue import CatalogueFacts
from serving.compiled import use_compiled_ranker
from serving.exact import Rows, Vectors
from serving.golden import check_golden
from serving.metrics import Metrics
from serving.pipeline import Pipeline, RankedList, RankRequest
from serving.state.protocol import Id, Step

_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
logger = logging.getLogger("shopreel.bundles")


class NotReady(Exception):
    """No bundle is being served."""


class RankingPipeline(Protocol):
    """What the server asks of :class:`serving.pipeline.Pipeline`."""

    @property
    def formula(self) -> ValueFormula | None:
        """See :attr:`Pipeline.formula`."""
        ...

    def rank(self, requests: Sequence[RankRequest]) -> list[RankedList]:
        """See :meth:`Pipeline.rank`."""
        ...

    def popular(self, request: RankRequest, reason: str) -> RankedList:
        """See :meth:`Pipeline.popular`."""
        ...

    def score(self, user: UserRequest, rows: Rows, market: str | None = None) -> Vectors:
        """See :meth:`Pipeline.score`."""
        ...

    def vectors_of(self, rows: Rows) -> Vectors:
        """See :meth:`Pipeline.vectors_of`."""
        ...

    def predict(self, user: UserRequest, rows: Rows, market: str | None = None) -> Predictions:
        """See :meth:`Pipeline.predict`; asked only where the bundle has a ranker."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LiveBundle:
    """A bundle ready to answer. ``market_of(user_row)`` is the market in the user's profile, if any.

    ``has_ranker`` tells whether there are probabilities; without, values are the towers' scores.
    ``videos`` are raw, by catalogue row; ``products`` raw, in any order.
    """

    name: str
    pipeline: RankingPipeline
    has_ranker: bool
    facts: CatalogueFacts
    catalogue: Vocabulary
    users: Vocabulary
    surfaces: Vocabulary
    market_of: Callable[[int], str | None]
    videos: pa.Table
    products: pa.Table | None

    def user_id(self, value: Id) -> Id:
        """A user's id in the type of this bundle's ids; see :func:`canonical`."""
        return canonical(value, self.users)

    def video_id(self, value: Id) -> Id:
        """A video's id in the type of this bundle's ids; see :func:`canonical`."""
        return canonical(value, self.catalogue)

    def rows_of(self, video_ids: Sequence[Id]) -> Rows:
        """The distinct catalogue rows of those videos that the catalogue has."""
        rows = self.catalogue.rows(video_ids)
        return np.unique(rows[rows > 0])

    def missing(self, video_ids: Sequence[Id]) -> list[Id]:
        """Those videos that the catalogue lacks."""
        rows = self.catalogue.rows([self.video_id(video_id) for video_id in video_ids]).tolist()
        return [video_id for video_id, row in zip(video_ids, rows, strict=True) if row == 0]

    def user_request(
        self, user_id: Id, steps: Sequence[Step], surface: str | None, now_ms: int
    ) -> UserRequest:
        """A user as the model reads one; the history is made by the same rule as in training."""
        history = history_from_columns(
            self.catalogue,
            self.surfaces,
            video_id=[step.video_id for step in steps],
            time_ms=[step.time_ms for step in steps],
            actions=[step.actions for step in steps],
            known=[step.known for step in steps],
            watch_ms=[step.watch_ms for step in steps],
            surface=[step.surface for step in steps],
            is_action=[step.is_action for step in steps],
        )
        user_row = int(self.users.rows([user_id])[0])
        surface_row = int(self.surfaces.rows([surface])[0])
        return UserRequest(user_row, history, now_ms, surface_row)


def canonical(value: Id, vocabulary: Vocabulary) -> Id:
    """An id in the type of its vocabulary: ``"7"`` becomes 7 where ids are int64, 7 becomes "7" where not.

    A text that is no int64 stays a text, and is unknown.
    """
    numbers = pa.types.is_int64(vocabulary.type)
    if isinstance(value, int):
        return value if numbers else str(value)
    if not numbers or len(value) > 20 or not _INTEGER.fullmatch(value):
        return value
    number = int(value)
    return number if -(2**63) <= number < 2**63 else value


def load_bundle(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int = 0,
    compiled: Path | None = None,
    stage: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
) -> LiveBundle:
    """Open a bundle, check all of it and play its golden requests. Raises :class:`ContractError`.

    ``threads`` and ``stage`` are the pipeline's; ``compiled`` is the folder of :mod:`serving.compiled`.
    """
    bundle = Bundle.open(path, device=device)
    if compiled is not None:
        use_compiled_ranker(bundle, compiled, threads=threads)
    pipeline = Pipeline(bundle, threads=threads, stage=stage)
    count = check_golden(pipeline)
    logger.info("bundle %s is whole: %d golden requests as published", bundle.name, count)
    return LiveBundle(
        name=bundle.name,
        pipeline=pipeline,
        has_ranker=bundle.ranker is not None,
        facts=pipeline.facts,
        catalogue=bundle.catalogue,
        users=bundle.users,
        surfaces=bundle.surfaces,
        market_of=_profile_market(bundle),
        videos=bundle.videos,
        products=bundle.products,
    )


class Deployment:
    """Serves what ``bundles`` names and follows ``CURRENT``, refusing what is not whole."""

    def __init__(
        self,
        bundles: str | Path,
        load: Callable[[Path], LiveBundle],
        metrics: Metrics,
        *,
        poll_s: float = 1.0,
        shown: bool = True,
    ) -> None:
        """``bundles``: a directory with ``CURRENT``, or one bundle, which then never changes.

        ``shown`` False is for a bundle that no user sees: it does not count as one that is served.
        """
        self._place = Path(bundles)
        self._load = load
        self._metrics = metrics
        self._poll_s = poll_s
        self._shown = shown
        self._live: LiveBundle | None = None
        self._looked_at: object = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def live(self) -> LiveBundle:
        """The bundle to answer from. Raises :class:`NotReady`."""
        live = self._live
        if live is None:
            raise NotReady("no bundle is loaded yet")
        return live

    def start(self) -> None:
        """Load the first bundle, raising where it is refused, then watch for others."""
        self._looked_at = self._stamp()
        self._take(self._load(locate(self._place)))
        self._thread = threading.Thread(target=self._watch, name="bundle-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> bool:
        """Look whether ``CURRENT`` moved, and follow it; whether another bundle is served now.

        A bundle that is refused leaves a log line and a count; it is tried again when ``CURRENT`` is
        written again.
        """
        stamp = self._stamp()
        if stamp == self._looked_at:
            return False
        self._looked_at = stamp
        serving = self._live.name if self._live else "none"
        try:
            directory = locate(self._place)
            if directory.name == serving:
                return False
            self._take(self._load(directory))
        except Exception as error:
            self._metrics.swaps.labels("refused").inc()
            kind = logging.ERROR if isinstance(error, ShopreelError) else logging.CRITICAL
            unexpected = not isinstance(error, ShopreelError)
            logger.log(kind, "bundle refused, %s stays: %s", serving, error, exc_info=unexpected)
            return False
        return True

    def _take(self, live: LiveBundle) -> None:
        start = time.perf_counter()
        _warm_up(live)
        before, self._live = self._live, live
        if self._shown:
            self._metrics.serving(live.name, before.name if before else None)
        self._metrics.swaps.labels("taken").inc()
        logger.info("serving bundle %s (warm in %.0f ms)", live.name, 1000 * (time.perf_counter() - start))

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            self.look()

    def _stamp(self) -> object:
        """What changes whenever ``CURRENT`` is written."""
        for place in (self._place / CURRENT, self._place):
            try:
                stat = place.stat()
            except OSError:
                continue
            return (stat.st_mtime_ns, stat.st_ino) if place.is_file() else None
        return None


def _warm_up(live: LiveBundle) -> None:
    """Answer a few requests of nobody, alone and together, so that the first user pays for no start-up."""
    nobody = UserRequest(0, UserHistory.empty(), int(time.time() * 1000))
    for together in (1, 8, 1):
        live.pipeline.rank([RankRequest(nobody, k=20)] * together)
    live.facts.warm_up()


def _profile_market(bundle: Bundle) -> Callable[[int], str | None]:
    """Reads the market off the encoded user table: its vocabulary row is the name's."""
    name = feature_name("users", "market")
    vocabulary = bundle.vocabularies.get(name)
    if vocabulary is None or name not in bundle.user_table.bags:
        return lambda user_row: None
    values, offsets = bundle.user_table.bags[name]

    def market_of(user_row: int) -> str | None:
        start, stop = offsets[user_row], offsets[user_row + 1]
        row = int(values[start]) if stop > start else 0
        market = vocabulary.ids([row])[0].as_py()
        return market if isinstance(market, str) else None

    return market_of
