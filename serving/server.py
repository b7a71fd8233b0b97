"""``shopreel serve``: bundles, store and application put together, under uvicorn."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, AddressFamily
from socket import socket as Socket

import torch
import uvicorn
from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from data.contract import check_types
from data.dataset import Dataset
from data.errors import ConfigError
from serving.app import create_app
from serving.edge import JsonLines
from serving.live import Deployment, LiveBundle, load_bundle
from serving.log_writer import LogThread, LogWriter
from serving.metrics import Metrics
from serving.plan_follower import PlanFollower
from serving.server_config import LOG, NOW, Device, ServeConfig, Traces, moment_ms
from serving.service import FeedService, wall_clock_ms
from serving.shadow import Shadow, ShadowLog
from serving.state import Store, open_store
from serving.state.protocol import Id, StoreUnavailable
from serving.tracing import NoTracing, otlp_tracing
from serving.warm import log_end_ms, rules_of_bundle, warm_store
from serving.worker_processes import run_workers

CONFIG = ServeConfig
logger = logging.getLogger("shopreel.server")
#: Seconds between two sweeps of the store.
SWEEP_S = 60.0
#: Seconds that a worker gets to close store and log after its last answer.
_END_S = 10.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(config: ServeConfig) -> None:
    """Serve until stopped; requests in hand are answered first."""
    log_as_json()
    with bind(config.host, config.port) as socket:
        clock = _clock(config)
        with closing(open_store(config.store, config.limits())) as store:
            _warm(config, store, clock)
        _warn_if_open(config)
        work = partial(serve, config, socket, clock)
        if config.workers == 1:
            work(0, lambda: _tell(socket))
        else:
            run_workers(
                work,
                config.workers,
                on_ready=lambda: _tell(socket),
                shutdown_s=_END_S + config.http.shutdown_s,
            )
    logger.info("stopped: every request in hand was answered")


def serve(
    config: ServeConfig, socket: Socket, clock_ms: Callable[[], int], number: int, ready: Callable[[], None]
) -> None:
    """One of ``config.workers`` processes: serve until SIGTERM; call ``ready`` when it listens.

    Number 0 also sweeps the store and writes the served log, which one process alone may do.
    """
    if number or config.workers > 1:
        log_as_json(worker=number)
    if config.model_threads:
        torch.set_num_threads(config.model_threads)
        # BLAS would take all cores for every product, and keep them busy while it waits for the next one
        threadpool_limits(config.model_threads, user_api="blas")
    with (
        closing(open_store(config.store, config.limits())) as store,
        _service(config, store, clock_ms, housekeeping=number == 0) as service,
    ):
        _listen(config, create_app(service, config.http_settings()), socket, ready)


def log_as_json(worker: int | None = None) -> None:
    """Send all logs to standard error, one JSON object a line; those of a worker bear its number."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines({} if worker is None else {"worker": worker}))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("uvicorn", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def _service(
    config: ServeConfig, store: Store, clock_ms: Callable[[], int], *, housekeeping: bool
) -> Iterator[FeedService]:
    """The service on a deployment that follows ``CURRENT``; ``housekeeping`` sweeps the store and logs."""
    tracing = otlp_tracing() if config.traces is Traces.otlp else NoTracing()
    metrics = Metrics(tracing)
    load = partial(
        load_bundle,
        device=_device(config.device),
        threads=config.model_threads,
        compiled=None if config.compiled is None else Path(config.compiled),
        stage=metrics.stage,
    )
    deployment = Deployment(config.bundles, load, metrics, poll_s=config.poll_s)
    deployment.start()
    secret = None if config.cursor_secret is None else config.cursor_secret.encode()
    settings = config.feed_settings()
    plans = None
    if config.plan is not None:
        deploy = partial(_deploy, load, metrics, config.poll_s)
        plans = PlanFollower(
            config.plan,
            settings,
            deploy,
            metrics,
            poll_s=config.poll_s,
            missing=partial(_missing, deployment),
        )
    shadow = _Shadowing(config, load, metrics) if config.shadow.bundles is not None else None
    service = FeedService(
        deployment,
        store,
        settings,
        metrics,
        secret=secret,
        clock_ms=clock_ms,
        plans=plans,
        shadow=None if shadow is None else shadow.shadow,
    )
    stop = threading.Event()
    sweeper = threading.Thread(target=_sweep, args=(service, stop), name="sweeper", daemon=True)
    if housekeeping:
        sweeper.start()
    log = None
    try:
        if config.log is not None and housekeeping:
            writer = LogWriter(config.log, store, deployment.live, metrics)
            log = LogThread(writer, metrics, config.log_every_s)
        yield service
    finally:
        if log is not None:
            log.close()
        stop.set()
        if housekeeping:
            sweeper.join()
        if plans is not None:
            plans.close()
        if shadow is not None:
            shadow.close()
        deployment.close()
        service.close()
        tracing.close()


def bind(host: str, port: int) -> Socket:
    """Take an address before anything slow is begun; nobody is listened to yet."""
    family = AddressFamily.AF_INET6 if ":" in host else AddressFamily.AF_INET
    socket = Socket(family)
    try:
        socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        socket.bind((host, port))
    except OSError as error:
        socket.close()
        raise ConfigError(f"host={host} port={port}: {error.strerror or error}; choose another") from None
    return socket


def _listen(config: ServeConfig, app: FastAPI, socket: Socket, ready: Callable[[], None]) -> None:
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=config.http.shutdown_s,
    )
    # uvicorn drains, then raises the signal that stopped it once more: that one must not kill us
    signal.signal(signal.SIGTERM, lambda *_: None)
    with suppress(KeyboardInterrupt):
        _Server(settings, ready).run(sockets=[socket])


class _Server(uvicorn.Server):
    """Calls ``ready`` once it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[Socket] | None = None) -> None:
        """See :meth:`uvicorn.Server.startup`."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def _tell(socket: Socket) -> None:
    host, port = socket.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    logger.info("listening on %s", url, extra={"url": url})
    print(f"shopreel serves at {url}   (Ctrl-C ends it)", flush=True)


def _warn_if_open(config: ServeConfig) -> None:
    if config.host not in _LOOPBACK and not config.http.api_keys:
        logger.warning(
            "host=%s lets other machines in, and without http.api_keys anyone may ask", config.host
        )


@dataclass(frozen=True, slots=True)
class OffsetClock:
    """The wall's clock in Unix ms, ``offset_ms`` ahead; it can be sent to another process."""

    offset_ms: int

    def __call__(self) -> int:
        """Now, in Unix milliseconds."""
        return wall_clock_ms() + self.offset_ms


def _clock(config: ServeConfig) -> Callable[[], int]:
    """The server's clock: the wall's, or one that runs on from ``as_of``."""
    if config.as_of == NOW:
        return wall_clock_ms
    if config.as_of == LOG:
        begin_ms = log_end_ms(_log(config), memory_limit_gb=config.memory_limit_gb)
    else:
        begin_ms = moment_ms("as_of", config.as_of)
    return OffsetClock(begin_ms - wall_clock_ms())


def _warm(config: ServeConfig, store: Store, clock_ms: Callable[[], int]) -> None:
    if config.warm_from is None:
        return
    try:
        if not store.is_empty():
            logger.info("the store knows users already; warm_from is left alone")
            return
        started = time.monotonic()
        until = config.warm_until
        count = warm_store(
            store,
            _log(config),
            rules_of_bundle(config.bundles),
            until_ms=None if until is None else moment_ms("warm_until", until),
            now_ms=clock_ms(),
            history_steps=config.memory.history_steps,
            memory_limit_gb=config.memory_limit_gb,
        )
    except StoreUnavailable as error:
        raise ConfigError(f"store={config.store}: {error}") from None
    logger.info("warmed %d users from %s in %.1f s", count, config.warm_from, time.monotonic() - started)


def _log(config: ServeConfig) -> Dataset:
    dataset = Dataset.open(config.warm_from or "")
    check_types(dataset)
    return dataset


def _sweep(service: FeedService, stop: threading.Event) -> None:
    while not stop.wait(SWEEP_S):
        try:
            gone = service.sweep()
        except Exception:
            logger.exception("sweeping the store failed; it is tried again")
        else:
            logger.info("swept the store", extra={"rows": gone})


class _Shadowing:
    """The second bundle, the thread that scores with it, and where that is written."""

    def __init__(self, config: ServeConfig, load: Callable[[Path], LiveBundle], metrics: Metrics) -> None:
        assert config.shadow.bundles is not None
        assert config.shadow.out is not None
        self._deployment = Deployment(config.shadow.bundles, load, metrics, poll_s=config.poll_s, shown=False)
        self._deployment.start()
        self._log = ShadowLog(config.shadow.out, part_s=config.log_every_s)
        self.shadow = Shadow(
            lambda: self._deployment.live, config.shadow.settings(), self._log.write, metrics
        )

    def close(self) -> None:
        """Write what was scored; leave the rest."""
        self.shadow.close()
        self._log.flush()
        self._deployment.close()


def _deploy(load: Callable[[Path], LiveBundle], metrics: Metrics, poll_s: float, bundles: str) -> Deployment:
    """Another folder of bundles, for an arm of an experiment."""
    deployment = Deployment(bundles, load, metrics, poll_s=poll_s)
    deployment.start()
    return deployment


def _missing(deployment: Deployment, video_ids: Sequence[Id]) -> list[Id]:
    """Those videos that the bundle being served now lacks."""
    return deployment.live.missing(video_ids)


def _device(device: Device) -> str:
    if device is Device.cuda and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch sees no CUDA device; use device=auto, or run shopreel doctor"
        )
    return "cuda" if device is not Device.cpu and torch.cuda.is_available() else "cpu"
