"""Shadow scoring: a second bundle ranks some of the requests too, after they were answered; nobody sees it.

What it says is written as a run table, so that ``shopreel evaluate`` can compare it with what was served.
It can never hold a page up: requests are offered without waiting, dropped when the queue is full, and
worked on by one thread that keeps to a share of one core.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from data.assignment import within
from serving.live import LiveBundle
from serving.metrics import Metrics
from serving.pipeline import RankRequest
from serving.rules import Audience
from serving.state.protocol import Id, Step

logger = logging.getLogger("shopreel.shadow")
#: How much lower than the server's own threads the shadow's stands with the scheduler.
NICE = 10


@dataclass(frozen=True, slots=True)
class ShadowSettings:
    """``share`` of the requests are scored, ``depth`` deep, on at most ``load`` of one core.

    At most ``max_queue`` wait; of more, the latest are dropped.
    """

    share: float
    depth: int
    load: float
    max_queue: int

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 < self.load <= 1 or self.depth < 1 or self.max_queue < 1:
            raise ValueError("needs 0 <= share <= 1, 0 < load <= 1, depth >= 1 and max_queue >= 1")


@dataclass(frozen=True, slots=True)
class ShadowRequest:
    """A request that was answered: what the shadow needs to answer it too, and which videos were shown.

    ``audience`` is in the codes of ``live``, the bundle that answered.
    """

    request_id: str
    user_id: Id
    steps: Sequence[Step]
    surface: str | None
    live: LiveBundle
    audience: Audience
    now_ms: int
    served: Sequence[Id]


class Offers(Protocol):
    """Where requests go once they are answered."""

    def offer(self, request: ShadowRequest) -> None:
        """Offer a request; returns at once."""
        ...


class NoShadow:
    """Takes nothing."""

    def offer(self, request: ShadowRequest) -> None:
        """See :class:`Offers`."""


class Shadow:
    """Scores what is offered on a thread of its own. Safe to call from several threads."""

    def __init__(
        self,
        live: Callable[[], LiveBundle],
        settings: ShadowSettings,
        write: Callable[[pa.Table], object],
        metrics: Metrics,
    ) -> None:
        """``live`` gives the second bundle, ``write`` takes the rows of one request."""
        self._live = live
        self._settings = settings
        self._write = write
        self._metrics = metrics
        self._queue: queue.Queue[ShadowRequest | None] = queue.Queue(settings.max_queue)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, request: ShadowRequest) -> None:
        """See :class:`Offers`; a request is chosen by its id alone."""
        if not within("shadow", request.request_id, self._settings.share):
            return
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            self._metrics.shadow.labels("dropped").inc()

    def close(self) -> None:
        """Leave what waits, and stop."""
        self._stop.set()
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join()

    def _loop(self) -> None:
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while (request := self._queue.get()) is not None and not self._stop.is_set():
            start = time.perf_counter()
            try:
                table = shadow_rows(self._live(), request, self._settings.depth)
                self._write(table)
                self._metrics.shadow.labels("scored").inc()
                self._metrics.shadow_overlap.observe(_overlap(table, len(request.served)))
            except Exception:
                logger.exception("shadow scoring failed; nothing that was served depends on it")
                self._metrics.shadow.labels("failed").inc()
            spent_s = time.perf_counter() - start
            self._stop.wait(spent_s * (1 - self._settings.load) / self._settings.load)


def shadow_rows(live: LiveBundle, request: ShadowRequest, depth: int) -> pa.Table:
    """What ``live`` would rank first for a request, as a run table, and where a video of it was served."""
    user = live.user_request(request.user_id, request.steps, request.surface, request.now_ms)
    gone = request.live.catalogue.ids(request.audience.excluded).to_pylist()
    asked = RankRequest(user, k=depth, exclude_rows=live.rows_of(gone), market=request.audience.market)
    (ranked,) = live.pipeline.rank([asked])
    position = {str(video_id): place for place, video_id in enumerate(request.served)}
    video_ids = live.catalogue.ids(ranked.video_row)
    count = len(video_ids)
    return pa.table(
        {
            "request_id": pa.array([request.request_id] * count, pa.string()),
            "user_id": pa.array([str(request.user_id)] * count, pa.string()),
            "video_id": video_ids,
            "rank": pa.array(range(1, count + 1), pa.int32()),
            "score": pa.array(ranked.score, pa.float32()),
            "stage": pa.array(["shadow"] * count, pa.string()),
            "served_position": pa.array([position.get(str(v)) for v in video_ids.to_pylist()], pa.int32()),
            "bundle": pa.array([live.name] * count, pa.string()),
            "degraded": pa.array([",".join(ranked.degraded)] * count, pa.string()),
        }
    )


def _overlap(table: pa.Table, served: int) -> float:
    """The share of what was served that is among as many of the shadow's best."""
    head = table.slice(0, served)["served_position"]
    return (len(head) - head.null_count) / served if served else 1.0


class ShadowLog:
    """Gathers rows and writes them as parts of a run table; what is not yet written is lost in a crash.

    Several processes may write into one directory.
    """

    def __init__(self, directory: str | Path, *, part_rows: int = 50_000, part_s: float = 60.0) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._part_rows, self._part_s = part_rows, part_s
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._since = time.monotonic()

    def write(self, table: pa.Table) -> None:
        """Take the rows of one request."""
        self._tables.append(table)
        self._rows += table.num_rows
        if self._rows >= self._part_rows or time.monotonic() - self._since >= self._part_s:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._tables:
            name = f"part-{time.time_ns():020}-{os.getpid()}.parquet"
            draft = self._directory / f".{name}.draft"
            pq.write_table(pa.concat_tables(self._tables), draft, compression="zstd")
            draft.replace(self._directory / name)
        self._tables, self._rows, self._since = [], 0, time.monotonic()
