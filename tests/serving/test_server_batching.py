"""Batches grow with the load, keep answers with their questions, and never wait for company."""

import threading
import time
from collections.abc import Sequence

import pytest

from serving.batching import Batcher, DeadlineExceeded, QueueFull


def test_answers_stay_with_their_questions_and_groups_never_mix() -> None:
    batches: list[tuple[object, list[int]]] = []
    gate, started = threading.Event(), threading.Event()

    def answer(group: object, questions: Sequence[int]) -> list[int]:
        started.set()
        gate.wait()
        batches.append((group, list(questions)))
        return [question * 10 for question in questions]

    batcher: Batcher[int, int] = Batcher(answer, max_batch=4, max_queue=100)
    first = batcher.submit(0, group="a")
    started.wait()  # the batcher is at work on the first alone
    others = [batcher.submit(number, group="a" if number < 7 else "b") for number in range(1, 10)]
    gate.set()
    assert [future.result(5) for future in (first, *others)] == [number * 10 for number in range(10)]
    assert batches == [("a", [0]), ("a", [1, 2, 3, 4]), ("a", [5, 6]), ("b", [7, 8, 9])]
    batcher.close()


def test_one_bad_question_does_not_spoil_the_others() -> None:
    gate = threading.Event()

    def answer(group: object, questions: Sequence[int]) -> list[float]:
        gate.wait()
        return [1 / question for question in questions]

    batcher: Batcher[int, float] = Batcher(answer, max_batch=8, max_queue=8)
    futures = [batcher.submit(number) for number in (1, 2, 0, 4)]
    gate.set()
    assert [futures[place].result(5) for place in (0, 1, 3)] == [1.0, 0.5, 0.25]
    with pytest.raises(ZeroDivisionError):
        futures[2].result(5)
    batcher.close()


def test_a_full_queue_turns_away_and_a_late_question_is_dropped() -> None:
    gate, started = threading.Event(), threading.Event()
    asked: list[int] = []

    def answer(group: object, questions: Sequence[int]) -> list[int]:
        started.set()
        gate.wait()
        asked.extend(questions)
        return list(questions)

    batcher: Batcher[int, int] = Batcher(answer, max_batch=1, max_queue=2)
    running = batcher.submit(0)
    started.wait()
    late = batcher.submit(1, deadline=time.monotonic() + 0.01)
    waiting = batcher.submit(2)
    with pytest.raises(QueueFull):
        batcher.submit(3)
    time.sleep(0.05)
    gate.set()
    assert (running.result(5), waiting.result(5)) == (0, 2)
    with pytest.raises(DeadlineExceeded):
        late.result(5)
    batcher.close()
    assert asked == [0, 2]


def test_closing_answers_what_waits_and_then_refuses() -> None:
    batcher: Batcher[int, int] = Batcher(lambda group, questions: list(questions), max_batch=2, max_queue=9)
    futures = [batcher.submit(number) for number in range(5)]
    batcher.close()
    assert [future.result(0) for future in futures] == list(range(5))
    with pytest.raises(QueueFull):
        batcher.submit(1)


def test_a_wrong_number_of_answers_is_an_error_not_a_mix_up() -> None:
    batcher: Batcher[int, int] = Batcher(lambda group, questions: [], max_batch=2, max_queue=9)
    with pytest.raises(RuntimeError, match="0 answers to 1 questions"):
        batcher.submit(1).result(5)
    batcher.close()
