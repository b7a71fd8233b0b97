"""``shopreel serve``: bundles, store and application put together, under uvicorn."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, AddressFamily
from socket import socket as Socket

import torch
import uvicorn
from fastapi import FastAPI

from data.contract import check_types
from data.dataset import Dataset, read_info
from data.errors import ConfigError
from serving.app import create_app
from serving.edge import JsonLines
from serving.live import Deployment, LiveBundle, load_bundle
from serving.log_writer import LogThread, LogWriter
from serving.metrics import Metrics
from serving.plan_follower import PlanFollower
from serving.server_config import LOG, NOW, Device, ServeConfig, moment_ms
from serving.service import FeedService, wall_clock_ms
from serving.state import Store, open_store
from serving.state.protocol import StoreUnavailable
from serving.warm import log_end_ms, rules_of_bundle, warm_store

CONFIG = ServeConfig
logger = logging.getLogger("shopreel.server")
#: Seconds between two sweeps of the store.
SWEEP_S = 60.0


def run(config: ServeConfig) -> None:
    """Serve until stopped; requests in hand are answered first."""
    log_as_json()
    if config.model_threads:
        torch.set_num_threads(config.model_threads)
    with (
        bind(config.host, config.port) as socket,
        closing(open_store(config.store, config.limits())) as store,
    ):
        clock_ms = _clock(config)
        _warm(config, store, clock_ms)
        with _service(config, store, clock_ms) as service:
            _listen(config, create_app(service, config.http_settings()), socket)


def log_as_json() -> None:
    """Send all logs to standard error, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("uvicorn", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def _service(config: ServeConfig, store: Store, clock_ms: Callable[[], int]) -> Iterator[FeedService]:
    """The service on a deployment that follows ``CURRENT``, with a thread that sweeps the store."""
    metrics = Metrics()
    load = partial(load_bundle, device=_device(config.device))
    deployment = Deployment(config.bundles, load, metrics, poll_s=config.poll_s)
    deployment.start()
    secret = None if config.cursor_secret is None else config.cursor_secret.encode()
    settings = config.feed_settings()
    plans = None
    if config.plan is not None:
        deploy = partial(_deploy, load, metrics, config.poll_s)
        plans = PlanFollower(config.plan, settings, deploy, metrics, poll_s=config.poll_s)
    service = FeedService(deployment, store, settings, metrics, secret=secret, clock_ms=clock_ms, plans=plans)
    stop = threading.Event()
    sweeper = threading.Thread(target=_sweep, args=(service, stop), name="sweeper", daemon=True)
    sweeper.start()
    log = None
    try:
        if config.log is not None:
            writer = LogWriter(config.log, store, deployment.live, metrics)
            log = LogThread(writer, metrics, config.log_every_s)
        yield service
    finally:
        if log is not None:
            log.close()
        stop.set()
        sweeper.join()
        if plans is not None:
            plans.close()
        deployment.close()
        service.close()


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


def _listen(config: ServeConfig, app: FastAPI, socket: Socket) -> None:
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
        _Server(settings).run(sockets=[socket])
    logger.info("stopped: every request in hand was answered")


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    async def startup(self, sockets: list[Socket] | None = None) -> None:
        """See :meth:`uvicorn.Server.startup`."""
        await super().startup(sockets)
        if sockets and self.started:
            host, port = sockets[0].getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
            logger.info("listening on %s", url, extra={"url": url})
            print(f"shopreel serves at {url}   (Ctrl-C ends it)", flush=True)


def _clock(config: ServeConfig) -> Callable[[], int]:
    """The server's clock: the wall's, or one that runs on from ``as_of``."""
    if config.as_of == NOW:
        return wall_clock_ms
    if config.as_of == LOG:
        begin_ms = log_end_ms(_log(config), memory_limit_gb=config.memory_limit_gb)
    else:
        begin_ms = moment_ms("as_of", config.as_of)
    offset_ms = begin_ms - wall_clock_ms()
    return lambda: wall_clock_ms() + offset_ms


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
    path = Path(config.warm_from or "")
    dataset = Dataset(path, read_info(path))
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


def _deploy(load: Callable[[Path], LiveBundle], metrics: Metrics, poll_s: float, bundles: str) -> Deployment:
    """Another folder of bundles, for an arm of an experiment."""
    deployment = Deployment(bundles, load, metrics, poll_s=poll_s)
    deployment.start()
    return deployment


def _device(device: Device) -> str:
    if device is Device.cuda and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch sees no CUDA device; use device=auto, or run shopreel doctor"
        )
    return "cuda" if device is not Device.cpu and torch.cuda.is_available() else "cpu"
