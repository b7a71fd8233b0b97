"""Making the next one while this one is used."""

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(source: Iterator[T], depth: int = 1) -> Iterator[T]:
    """What ``source`` yields, made in a thread of its own up to ``depth`` ahead; errors come in their place.

    Closing the result early stops the thread after what it is making, and closes ``source`` there.
    """
    ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[T] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for made in source:
                put((made,))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)
        finally:
            if hasattr(source, "close"):
                source.close()

    thread = threading.Thread(target=produce, name="ahead", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        stop.set()
        thread.join()
