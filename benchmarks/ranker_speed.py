"""Microseconds per candidate of the ranker, eager on CPU: features, network, calibration and value.

    python benchmarks/ranker_speed.py PREPARED RUN [candidates] [repeats]

Run it on an idle machine; ``OMP_NUM_THREADS`` sets the threads. Prints the machine's own float32 GEMM rate of
the same minute, so that numbers of different machines can be compared.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from data.history import UserHistory, UserRequest
from data.prepared import Prepared
from data.sequences import Sequences
from models.ranker_inference import RankerScorer
from models.ranker_portable import load_ranker


def main(prepared_path: str, run: str, candidates: int = 500, repeats: int = 50) -> None:
    """Measure the user with the longest history and random candidates."""
    prepared = Prepared.open(prepared_path)
    parts = load_ranker(
        Path(run) / "model", prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        users=len(prepared.users),
    )  # fmt: skip
    scorer = RankerScorer(parts, prepared.video_table, prepared.user_table)
    request = _longest(prepared, parts.features.spec.max_steps)
    rows = np.random.default_rng(0).integers(1, len(prepared.catalogue), candidates)
    user = scorer.prepare_user(request)
    per_user = _seconds(lambda: scorer.prepare_user(request), repeats)
    statistics = _seconds(
        lambda: scorer.features.candidates(user.requests, user.outcome_BSC, rows[None]), repeats
    )
    scoring = _seconds(lambda: scorer.score(user, rows), repeats)
    a = torch.randn(1024, 1024)
    gemm = 2 * 1024**3 / _seconds(lambda: a @ a, repeats) / 1e9
    print(
        f"{torch.get_num_threads()} threads, {candidates} candidates, history {len(request.history)}: "
        f"per user {per_user * 1e3:.2f} ms, per candidate {scoring / candidates * 1e6:.1f} µs "
        f"(of which statistics {statistics / candidates * 1e6:.1f} µs); GEMM {gemm:.0f} GFLOP/s"
    )


def _longest(prepared: Prepared, steps: int) -> UserRequest:
    sequences = Sequences.read(prepared.shards[0])
    row = int(np.argmax(np.diff(sequences.step_offsets)))
    begin, end = sequences.step_offsets[row : row + 2]
    part = {
        name.removeprefix("step_"): column[max(begin, end - steps) : end]
        for name, column in sequences.steps.items()
    }
    history = UserHistory(
        part["video"], part["time_ms"], part["actions"], part["known"], part["watch_ms"], part["surface"]
    )
    return UserRequest(int(sequences.user_row[row]), history, int(part["time_ms"][-1]) + 1000, 1)


def _seconds(call: object, repeats: int) -> float:
    """Median over ``repeats`` calls after three to warm up."""
    assert callable(call)
    times = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return float(np.median(times[3:]))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
