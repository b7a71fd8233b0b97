"""Prepare the next batches in a thread while the current one trains."""

import queue
import threading
from collections.abc import Iterator

from data.loader import Batch, LoaderPosition, SequenceLoader


def prefetch(loader: SequenceLoader, depth: int = 2) -> Iterator[tuple[Batch, LoaderPosition]]:
    """Batches of one epoch, each with the loader position *after* it (what a checkpoint stores)."""
    ready: queue.Queue[tuple[Batch, LoaderPosition] | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[Batch, LoaderPosition] | BaseException | None) -> None:
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
