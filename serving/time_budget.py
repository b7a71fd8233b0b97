"""Whether a step still fits before a deadline, told from how long it took lately."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Weight of the latest run in the estimate.
_LATEST = 0.2
#: What remains of the estimate each time the step is left out, so that one slow run cannot end it for good.
_FORGET = 0.98


class StepCost:
    """A moving average of one step's seconds. Between threads a race costs accuracy only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: float | None = None

    def fits(self, deadline: float) -> bool:
        """Whether the step, begun now, should end by ``deadline``; a step never run takes no time."""
        if self._clock() + (self._seconds or 0.0) <= deadline:
            return True
        if self._seconds is not None:
            self._seconds *= _FORGET
        return False

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Run the step in this block."""
        start = self._clock()
        try:
            yield
        finally:
            took = self._clock() - start
            self._seconds = took if self._seconds is None else (1 - _LATEST) * self._seconds + _LATEST * took
