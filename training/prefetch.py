"""Prepare the next batches in a thread while the current one trains."""

import queue
import threading
from collections.abc import Iterator
from typing import Protocol, TypeVar

from data.loader import LoaderPosition

B_co = TypeVar("B_co", covariant=True)


class Source(Protocol[B_co]):
    """Batches of one epoch, and the position after the last one made."""

    position: LoaderPosition

    def epoch(self) -> Iterator[B_co]:
        """The rest of the current epoch."""
        ...


def prefetch(loader: Source[B_co], depth: int = 2) -> Iterator[tuple[B_co, LoaderPosition]]:
    """Batches of one epoch, each with the loader position *after* it (what a checkpoint stores)."""
    ready: queue.Queue[tuple[B_co, LoaderPosition] | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[B_co, LoaderPosition] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for batch in loader.epoch():
                put((batch, loader.position))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=produce, name="loader", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        stop.set()
        thread.join()
