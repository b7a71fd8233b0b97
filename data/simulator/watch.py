"""How long a shown video is watched: a lognormal attention span cut off by the video's end.

``T`` is lognormal with median ``exp(log_median)`` ms and log standard deviation ``SPREAD``; the time
watched is ``min(T, duration)``. Who does not click looks for at most ``GLANCE_LIMIT_MS``.
"""

import numpy as np
from scipy.special import ndtr

from data.simulator.taste import F64, I64

SPREAD = 0.8
GLANCE_LOG_MEDIAN_MS, GLANCE_SPREAD, GLANCE_LIMIT_MS = float(np.log(900.0)), 0.7, 3000.0
LONG_VIEW_SHARE, LONG_VIEW_MS = 0.8, 18_000.0


def long_view_ms(duration_ms: I64) -> I64:
    """The time from which a view counts as long: 80 % of the video, or 18 seconds if that is less."""
    return np.asarray(np.minimum(LONG_VIEW_SHARE * duration_ms, LONG_VIEW_MS), dtype=np.int64)


def log_median_ms(duration_ms: I64, affinity: np.ndarray, watchability: np.ndarray) -> F64:
    """Log median of the attention span after a click: longer videos are watched longer, less of them."""
    base = np.log(2500.0) + 0.62 * np.log(duration_ms / 2500.0)
    return np.asarray(base + 1.0 * affinity + 0.35 * watchability, dtype=np.float64)


def long_view_probability(log_median: F64, duration_ms: I64) -> F64:
    """P(watched ≥ ``long_view_ms`` | click)."""
    return np.asarray(ndtr((log_median - np.log(long_view_ms(duration_ms))) / SPREAD))


def expected_watch_ms(log_median: F64, duration_ms: I64) -> F64:
    """E[min(T, duration) | click], in ms."""
    return _expected_minimum(log_median, SPREAD, duration_ms.astype(np.float64))


def expected_glance_ms() -> float:
    """E[min(T, limit)] of a video that was seen and not clicked, in ms."""
    return float(_expected_minimum(np.array(GLANCE_LOG_MEDIAN_MS), GLANCE_SPREAD, np.array(GLANCE_LIMIT_MS)))


def draw_watch_ms(rng: np.random.Generator, log_median: F64, duration_ms: I64) -> I64:
    """Whole milliseconds watched after a click (rounded down)."""
    span = np.exp(log_median + SPREAD * rng.standard_normal(len(log_median)))
    return np.minimum(span, duration_ms).astype(np.int64)


def draw_glance_ms(rng: np.random.Generator, count: int) -> I64:
    """Whole milliseconds of ``count`` videos that were seen and not clicked (rounded down)."""
    span = np.exp(GLANCE_LOG_MEDIAN_MS + GLANCE_SPREAD * rng.standard_normal(count))
    return np.minimum(span, GLANCE_LIMIT_MS).astype(np.int64)


def _expected_minimum(log_median: F64, spread: float, limit: F64) -> F64:
    z = (np.log(limit) - log_median) / spread
    return np.asarray(np.exp(log_median + spread**2 / 2) * ndtr(z - spread) + limit * ndtr(-z))
