"""Making the next one while this one is used: order, errors in their place, an early end."""

import threading

import pytest

from data.ahead import ahead


def counting(until, closed=None, fail_at=-1):
    try:
        for number in range(until):
            if number == fail_at:
                raise OSError("disk gone")
            yield number, threading.current_thread().name
    finally:
        if closed is not None:
            closed.set()


def test_it_yields_what_the_source_yields_from_another_thread():
    found = list(ahead(counting(50), depth=3))
    assert [number for number, _ in found] == list(range(50))
    assert {name for _, name in found} == {"ahead"}
    assert list(ahead(iter([]))) == []


def test_an_error_comes_after_what_was_made_before_it():
    made = ahead(counting(9, fail_at=3))
    assert [next(made)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(made)


def test_an_early_end_closes_the_source():
    closed = threading.Event()
    made = ahead(ahead(counting(10**9, closed)))
    assert next(made)[0] == 0
    made.close()
    assert closed.wait(5)
