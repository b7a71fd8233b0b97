"""Part of benchmarks/gpu.py: exact top 100 of a million videos, in batches of 4,096 users."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.gpu_bench import Bench
from serving.exact import ExactSearch
from serving.exact_device import DeviceExactSearch


def search(bench: Bench) -> None:
    """On the device and, some of the users, on the processor: which must find the same."""
    g = np.random.default_rng(0)
    vectors = g.standard_normal((bench.rows(1e6, 1000) + 1, 64), np.float32)
    users = g.standard_normal((bench.rows(4096, 64), 64), np.float32)
    on_device = DeviceExactSearch(vectors, bench.device)
    found = on_device.search(users, 100)
    seconds = bench.seconds_of(lambda: on_device.search(users, 100))
    bench.tell(
        f"exact search, {len(vectors) - 1:,} videos, on the device", [len(users) / s for s in seconds],
        "users/s", vectors_GiB=vectors.nbytes / 2**30,
    )  # fmt: skip
    on_cpu = ExactSearch(vectors)
    some = users[:64]
    wanted = on_cpu.search(some, 100)
    seconds = [took(partial(on_cpu.search, some, 100)) for _ in range(3)]
    same = all(
        np.array_equal(a.video_row, b.video_row) and np.array_equal(a.score, b.score)
        for a, b in zip(found, wanted, strict=False)
    )
    bench.tell(
        "exact search, same videos, on the CPU", [len(some) / s for s in seconds], "users/s",
        same_answers=same,
    )  # fmt: skip


def took(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
