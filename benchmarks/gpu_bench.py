"""What the parts of benchmarks/gpu.py share: the device and its limits, clocks, and the figures found."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from training.precision import Precision, set_products
from training.prefetch import pinned, prefetch

ROUNDS = 5
#: Nothing is compiled after so many seconds.
LATEST_S = 90.0


@dataclass(slots=True)
class Bench:
    """One run on ``device``; sizes are multiplied by ``scale``, data lie in ``folder``.

    ``limits``: matrix products by precision in flop/s, and copies in bytes/s. ``figures``: what was told.
    ``kept``: data of one part that others use too.
    """

    device: torch.device
    scale: float
    folder: Path
    limits: dict[str, float] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precisions(self) -> list[Precision]:
        """Those that the device is asked for; a processor's bfloat16 says nothing."""
        return [Precision.float32, Precision.tf32, Precision.bfloat16] if self.cuda else [Precision.float32]

    def rows(self, full: float, least: int) -> int:
        """``full`` at this scale."""
        return max(int(full * self.scale), least)

    def may_compile(self) -> bool:
        return time.perf_counter() - self.began < LATEST_S

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**30 if self.cuda else float("nan")

    def seconds_of(self, call: Callable[[], object], repeats: int = 1) -> list[float]:
        """Seconds of one call, in five rounds of ``repeats``."""
        call()
        call()
        self.wait()
        rounds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for _ in range(repeats):
                call()
            self.wait()
            rounds.append((time.perf_counter() - began) / repeats)
        return rounds

    def at_hand(self, loader: Any, count: int) -> list[Any]:
        """The first batches, from which CUDA reads while the processor goes on."""
        return [pinned(batch) if self.cuda else batch for batch in islice(loader.epoch(), count)]

    def rates_of(self, step: Callable[[Any], None], batches: list[Any]) -> list[float]:
        """Examples a second, batches at hand, in five rounds."""
        rates = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            for batch in batches:
                step(batch)
            self.wait()
            rates.append(sum(batch.examples for batch in batches) / (time.perf_counter() - began))
        return rates

    def streamed(self, step: Callable[[Any], None], loader: Any, name: str) -> None:
        """The same with the loader making each batch in its thread, as training does."""
        batches = prefetch(loader, depth=4, pin=self.cuda)
        for batch, _ in islice(batches, 6):
            step(batch)
        self.wait()
        began, examples = time.perf_counter(), 0
        for batch, _ in islice(batches, 10):
            step(batch)
            examples += batch.examples
        self.wait()
        self.tell(f"{name}, with the loader", [examples / (time.perf_counter() - began)], "examples/s")
        batches.close()  # type: ignore[attr-defined]

    def tell(self, name: str, values: list[float], unit: str, **more: Any) -> None:
        """Keep and print a figure: median (lowest – highest)."""
        figure = {
            "name": name, "median": statistics.median(values), "low": min(values), "high": max(values),
            "unit": unit, **more,
        }  # fmt: skip
        self.figures.append(figure)
        extra = "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in more.items())
        print(
            f"{name:<58} {figure['median']:>14,.4g} ({figure['low']:,.4g} – {figure['high']:,.4g}) {unit}  "
            f"{extra}", flush=True,
        )  # fmt: skip

    def lacks(self, name: str) -> None:
        """Say what only CUDA can show."""
        print(f"{name:<58} not measured: needs CUDA", flush=True)

    def profiled(self, step: Callable[[Any], None], batches: list[Any], label: str) -> None:
        """The operators that took most of the device's time, into a file under $OUT."""
        if not self.cuda:
            return
        with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
            for batch in batches[:3]:
                step(batch)
            self.wait()
        table = profile.key_averages().table(
            sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=60
        )
        (output_folder() / f"profile-{label.split(maxsplit=1)[0]}.txt").write_text(table)


def output_folder() -> Path:
    """$OUT, or where one is."""
    return Path(os.environ.get("OUT", "."))


def limits(bench: Bench) -> None:
    """What nobody can pass: a large matrix product in each precision, and a large copy."""
    side = 8192 if bench.cuda else 512
    for precision in (Precision.float32, Precision.tf32, Precision.bfloat16):
        dtype = torch.bfloat16 if precision is Precision.bfloat16 else torch.float32
        set_products(precision)
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        rates = [2 * side**3 / s for s in bench.seconds_of(partial(torch.mm, a, b), 5)]
        bench.limits[precision.value] = statistics.median(rates)
        bench.tell(f"matrix product {side}³ {precision.value}", [r / 1e12 for r in rates], "TFLOP/s")
    size = bench.rows(2**30, 1)
    source, target = (torch.empty(size, dtype=torch.uint8, device=bench.device) for _ in range(2))
    rates = [2 * size / s for s in bench.seconds_of(partial(target.copy_, source), 5)]
    bench.limits["copy"] = statistics.median(rates)
    bench.tell("copy on the device, bytes read and written", [r / 1e12 for r in rates], "TB/s")
