"""Prefetching: the loader's order, each batch with the position after it, errors, an early end."""

import threading

import pytest

from data.loader import LoaderPosition
from training.prefetch import prefetch


class Loader:
    def __init__(self, count: int, fail_at: int = -1) -> None:
        self.count, self.fail_at, self.made = count, fail_at, 0
        self.position = LoaderPosition()

    def epoch(self):
        for number in range(self.count):
            if number == self.fail_at:
                raise OSError("disk gone")
            self.made += 1
            self.position = LoaderPosition(0, 0, number + 1)
            yield number


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_order_and_positions(depth):
    assert list(prefetch(Loader(20), depth)) == [(n, LoaderPosition(0, 0, n + 1)) for n in range(20)]


def test_an_empty_epoch():
    assert list(prefetch(Loader(0))) == []


def test_an_error_reaches_the_consumer_after_the_good_batches():
    batches = prefetch(Loader(9, fail_at=3))
    assert [next(batches)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)


def test_an_early_end_stops_the_thread_and_never_runs_far_ahead():
    loader = Loader(1000)
    batches = prefetch(loader, depth=2)
    next(batches)
    batches.close()
    assert loader.made <= 5
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]
