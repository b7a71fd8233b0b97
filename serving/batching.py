"""Micro-batching: questions asked at the same time are answered together, by one thread.

No question ever waits for company: an idle batcher runs what is there at once, and what arrives while
it works forms the next batch. So batches grow with the load and cost nothing without it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class QueueFull(Exception):
    """More questions wait than may; turn the caller away."""


class DeadlineExceeded(Exception):
    """The question was not begun before its deadline, and was dropped."""


@dataclass(slots=True)
class _Job(Generic[Q, A]):
    group: Hashable
    question: Q
    deadline: float
    future: "Future[A]" = field(default_factory=Future)


class Batcher(Generic[Q, A]):
    """Collects questions and answers them in batches of one ``group`` on its own thread."""

    def __init__(
        self,
        answer: Callable[[Hashable, Sequence[Q]], Sequence[A]],
        *,
        max_batch: int,
        max_queue: int,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        """``answer(group, questions)`` gives one answer per question, in order.

        Where it raises for several questions they are asked one by one, so that only the one at fault
        fails. ``observe`` gets the size of every batch.
        """
        self._answer = answer
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._observe = observe
        self._jobs: deque[_Job[Q, A]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, question: Q, *, group: Hashable = None, deadline: float = float("inf")) -> "Future[A]":
        """Ask; the future holds the answer or what ``answer`` raised.

        ``deadline`` is on the clock of :func:`time.monotonic`; a question not begun by then gets
        :class:`DeadlineExceeded`. Raises :class:`QueueFull` when too many wait.
        """
        job: _Job[Q, A] = _Job(group, question, deadline)
        with self._wake:
            if self._closed or len(self._jobs) >= self._max_queue:
                raise QueueFull
            self._jobs.append(job)
            self._wake.notify()
        return job.future

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        while jobs := self._next():
            now = time.monotonic()
            live = [job for job in jobs if job.deadline > now and job.future.set_running_or_notify_cancel()]
            for job in jobs:
                if job.deadline <= now and job.future.set_running_or_notify_cancel():
                    job.future.set_exception(DeadlineExceeded())
            if live:
                self._observe(len(live))
                self._run(live)

    def _next(self) -> list[_Job[Q, A]]:
        """The next jobs of one group, in order of arrival; empty when closed and drained."""
        with self._wake:
            while not self._jobs and not self._closed:
                self._wake.wait()
            jobs: list[_Job[Q, A]] = []
            while (
                self._jobs
                and len(jobs) < self._max_batch
                and (not jobs or self._jobs[0].group == jobs[0].group)
            ):
                jobs.append(self._jobs.popleft())
            return jobs

    def _run(self, jobs: list[_Job[Q, A]]) -> None:
        try:
            answers = self._answer(jobs[0].group, [job.question for job in jobs])
            if len(answers) != len(jobs):
                raise RuntimeError(f"{len(answers)} answers to {len(jobs)} questions")
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._run([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)
