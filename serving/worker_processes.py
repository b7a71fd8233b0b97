"""Several processes behind one listening socket, watched by a parent that serves nothing itself.

Every process opens the same bundle files, which are mapped, so that the kernel holds them once. The parent
starts a process again when it dies, passes SIGTERM on, and is the only one whose exit code anybody sees.
"""

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from prometheus_client import multiprocess

from data.errors import ShopreelError
from serving.metrics import METRICS_DIRECTORY

logger = logging.getLogger("shopreel.workers")
#: Seconds until a process that died is started again, after the first time and at most.
BACKOFF_S = (0.5, 30.0)
#: A process that served so long was healthy: its next restart is quick again.
HEALTHY_S = 60.0
READY = "ready"

#: ``work(number, ready)`` serves until SIGTERM, and calls ``ready`` once it can be asked.
Work = Callable[[int, Callable[[], None]], None]


@dataclass(slots=True)
class _Worker:
    number: int
    process: BaseProcess
    pipe: Connection
    started: float
    backoff_s: float


def run_workers(work: Work, count: int, *, on_ready: Callable[[], None], shutdown_s: float) -> None:
    """Run ``work`` in ``count`` processes until SIGTERM or SIGINT; ``on_ready`` once all of them are.

    ``work`` must be picklable. What it raises before it is ready stops all and is raised here; a process
    that dies later is started again. Processes that have not ended ``shutdown_s`` after the signal are
    killed. Call from the main thread.
    """
    stopping = threading.Event()
    with _shared_metrics() as metrics, _signals(stopping):
        workers = {number: _start(work, number, BACKOFF_S[0]) for number in range(count)}
        try:
            for worker in workers.values():
                _await_ready(worker, stopping)
            if not stopping.is_set():
                on_ready()
            while not stopping.is_set():
                wait([worker.process.sentinel for worker in workers.values()], timeout=0.2)
                for number, worker in workers.items():
                    if not worker.process.is_alive() and not stopping.is_set():
                        workers[number] = _again(work, worker, metrics, stopping)
        finally:
            _end(list(workers.values()), shutdown_s)


def _start(work: Work, number: int, backoff_s: float) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(work, number, theirs), name=f"worker-{number}")
    process.start()
    theirs.close()
    return _Worker(number, process, ours, time.monotonic(), backoff_s)


def _child(work: Work, number: int, pipe: Connection) -> None:
    """In the process: serve; end as on SIGTERM when the parent is gone."""

    def orphaned() -> None:
        with suppress(EOFError, OSError):
            pipe.recv()
        os.kill(os.getpid(), signal.SIGTERM)

    # a label that is dropped stays in the shared files with its last value: Metrics sets that to 0 before
    warnings.filterwarnings("ignore", module="prometheus_client")
    threading.Thread(target=orphaned, name="parent-watch", daemon=True).start()
    try:
        work(number, lambda: pipe.send(READY))
    except ShopreelError as error:
        with suppress(OSError):
            pipe.send(error)
    logging.shutdown()
    os._exit(0)  # all is closed; what libraries say about their own end is nobody's business


def _await_ready(worker: _Worker, stopping: threading.Event) -> None:
    """Return when the process serves; raise what it could not begin for."""
    while not stopping.is_set():
        if worker.pipe.poll(0.1):
            try:
                told = worker.pipe.recv()
            except EOFError:
                worker.process.join()
                raise RuntimeError(
                    f"worker {worker.number} ended with {worker.process.exitcode} before it served"
                ) from None
            if told != READY:
                raise told
            return


def _again(work: Work, worker: _Worker, metrics: str, stopping: threading.Event) -> _Worker:
    pid, code = worker.process.pid, worker.process.exitcode
    served_s = time.monotonic() - worker.started
    backoff_s = BACKOFF_S[0] if served_s > HEALTHY_S else worker.backoff_s
    logger.error(
        "worker %d (process %s) ended with %s; starting it again in %.1f s",
        worker.number,
        pid,
        code,
        backoff_s,
    )
    worker.pipe.close()
    multiprocess.mark_process_dead(pid, metrics)  # type: ignore[no-untyped-call]
    stopping.wait(backoff_s)
    return _start(work, worker.number, min(2 * backoff_s, BACKOFF_S[1]))


def _end(workers: list[_Worker], shutdown_s: float) -> None:
    for worker in workers:
        if worker.process.is_alive():
            worker.process.terminate()
    until = time.monotonic() + shutdown_s
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():
            logger.error("worker %d did not end within %.0f s; killed", worker.number, shutdown_s)
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


@contextmanager
def _shared_metrics() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="shopreel-metrics-") as directory:
        os.environ[METRICS_DIRECTORY] = directory
        try:
            yield directory
        finally:
            del os.environ[METRICS_DIRECTORY]


@contextmanager
def _signals(stopping: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set ``stopping``."""
    before = {
        number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
