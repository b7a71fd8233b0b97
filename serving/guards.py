"""Who may ask, how often, and how much at once: API keys, rate limits, and the cap on work in hand."""

import asyncio
import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from serving.metrics import Metrics
from serving.schema import ApiError

T = TypeVar("T")
#: Callers whose rate is remembered; the longest silent are forgotten first.
_CALLERS = 100_000


class ApiKeys:
    """Checks ``Authorization: Bearer KEY``; without any key configured everyone may ask."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def check(self, authorization: str | None) -> str | None:
        """The name under which the caller's rate is counted, None where anyone may ask. Refuses with 401."""
        if not self._keys:
            return None
        given = (authorization or "").removeprefix("Bearer ").encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        if not any(matches):
            raise ApiError(
                401, "unauthorized", "send Authorization: Bearer with one of the server's API keys"
            )
        return f"key {matches.index(True)}"


class RateLimit:
    """A token bucket per caller: ``per_second`` on average, ``burst`` at once; 0 sets no limit."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = max(burst, 1)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, caller: str) -> None:
        """Count one request. Refuses with 429 and when to come back."""
        if self._per_second <= 0:
            return
        now = self._clock()
        tokens, last = self._buckets.pop(caller, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - last) * self._per_second)
        enough = tokens >= 1.0
        self._buckets[caller] = (tokens - 1.0 if enough else tokens, now)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        if not enough:
            wait_s = math.ceil((1.0 - tokens) / self._per_second)
            raise ApiError(
                429, "too_many_requests", f"slow down; try again in {wait_s} s", retry_after_s=wait_s
            )


class Workers:
    """Threads that do the blocking work, and a bound on how much of it waits for them."""

    def __init__(self, name: str, threads: int, max_in_flight: int, metrics: Metrics) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._max = max_in_flight
        self._metrics = metrics
        self._count = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` on a thread. Refuses with 503 when too much is in hand. Call from one event loop."""
        if self._count >= self._max:
            self._metrics.shed.labels("overloaded").inc()
            raise ApiError(503, "overloaded", "too many requests at once; try again", retry_after_s=1)
        self._count += 1
        self._metrics.in_flight.inc()
        try:
            context = copy_context()
            return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: context.run(work))
        finally:
            self._count -= 1
            self._metrics.in_flight.dec()

    def close(self) -> None:
        """Finish what is in hand."""
        self._pool.shutdown(wait=True)
