"""Microseconds per candidate of the ranker: numbers, network, calibration, value; eager, int8 and exported.

    python benchmarks/ranker_speed.py PREPARED RUN [candidates] [steps] [repeats] [wall|cpu]

``OMP_NUM_THREADS`` sets the threads. ``cpu`` counts the calling thread's CPU time, which other processes
disturb less than the clock on the wall; it is right for one thread alone. The machine's own float32 GEMM
rate is measured in between, and the share of the time that the model's matrix products would take at it.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.history import UserHistory, UserRequest
from data.prepared import Prepared
from data.ranking_loader import RankingLoader
from data.sequences import Sequences
from models.ranker import Ranker, RankerShape
from models.ranker_export import ExportedScorer, can_export, export_scorer
from models.ranker_inference import RankerScorer
from models.ranker_portable import load_ranker
from training.ranking_objective import labels_of
from training.ranking_validation import auc

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}


def main(
    prepared_path: str,
    run: str,
    candidates: int = 500,
    steps: int = 100,
    repeats: int = 50,
    clock: str = "wall",
) -> None:
    """Measure a user with ``steps`` steps and random candidates."""
    now = CLOCKS[clock]
    prepared = Prepared.open(prepared_path)
    parts = load_ranker(
        Path(run) / "model", prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        user_table=prepared.user_table,
    )  # fmt: skip
    # no parameter depends on the length of the history
    parts.features.spec = replace(parts.features.spec, max_steps=steps)
    parts.model.shape = replace(parts.model.shape, attention_steps=steps)
    scorer = RankerScorer(parts, prepared.video_table, prepared.user_table)
    request = _longest(prepared, steps)
    rows = np.random.default_rng(0).integers(1, len(prepared.catalogue), candidates)
    user = scorer.prepare_user(request)
    statistics = scorer.features.candidates(user.requests, user.outcome_BSC, rows[None])
    video = scorer.video_ND[torch.from_numpy(rows[None])]
    a = torch.randn(1024, 1024)
    statistics_1KG = torch.from_numpy(statistics)
    with torch.inference_mode():
        measured = {
            "user": _seconds(lambda: scorer.prepare_user(request), repeats, now),
            "all": _seconds(lambda: scorer.score(user, rows), repeats, now),
            "statistics": _seconds(
                lambda: scorer.features.candidates(user.requests, user.outcome_BSC, rows[None]), repeats, now
            ),
            "network": _seconds(
                lambda: scorer.model.score(user.state, video, statistics_1KG), repeats, now
            ),
            "gemm": _seconds(lambda: a @ a, repeats, now),
        }  # fmt: skip
    rate = 2 * 1024**3 / measured["gemm"]
    per = {name: seconds / candidates * 1e6 for name, seconds in measured.items()}
    work = operations(scorer.model.shape, len(request.history), scorer.model.videos.width)
    print(
        f"{torch.get_num_threads()} threads, {clock} clock, {candidates} candidates, history "
        f"{len(request.history)}: {measured['user'] * 1e3:.2f} ms per user, {per['all']:.1f} µs per "
        f"candidate (statistics {per['statistics']:.1f}, network {per['network']:.1f}); "
        f"GEMM {rate / 1e9:.0f} GFLOP/s, {work / 1e3:.0f} kFLOP per candidate = "
        f"{work / rate * 1e6 / per['all']:.0%} of the time",
        flush=True,
    )
    with torch.inference_mode():
        small = quantised(scorer.model)
        fast = _seconds(lambda: small.score(user.state, video, statistics_1KG), repeats, now)
    said = moved(prepared, scorer, small)
    print(f"int8: network {fast / candidates * 1e6:.1f} µs per candidate; validation AUC {said}", flush=True)
    if not can_export():
        print("exported: no C++ compiler here")
        return
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file, started = Path(folder) / "scorer.pt2", time.perf_counter()
        export_scorer(scorer.model, file)
        took = time.perf_counter() - started
        exported = ExportedScorer(scorer.model, file)
        fast = _seconds(lambda: exported.score(user.state, video, statistics_1KG), repeats, now)
        eager, other = (part.score(user.state, video, statistics_1KG) for part in (scorer.model, exported))
        apart = float((eager.task_BKT - other.task_BKT).abs().max())
        print(
            f"exported: network {fast / candidates * 1e6:.1f} µs per candidate, logits within {apart:.1e}, "
            f"compiled in {took:.0f} s"
        )


def quantised(model: Ranker) -> Ranker:
    """The model with int8 weights in its linear layers, whose inputs are scaled as they come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor
        small: Ranker = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return small


def moved(prepared: Prepared, scorer: RankerScorer, small: Ranker) -> str:
    """By how much each head's validation AUC differs with ``small`` for the per-candidate part."""
    loader = RankingLoader(
        prepared, scorer.features, split=1, batch_size=4096, seed=0, shuffle=False
    )  # fmt: skip
    large, said = scorer.model, []
    for model in (large, small):
        parts = []
        for batch in loader.epoch():
            user = scorer._prepare(batch.requests)
            video = scorer.video_ND[torch.from_numpy(batch.video_B[:, None])]
            statistics = torch.from_numpy(batch.candidate_statistics_BG[:, None])
            with torch.inference_mode():
                scores = model.score(user.state, video, statistics)
                parts.append((scorer._read(scores, batch.video_B)[0], *labels_of(batch, scorer.tasks)))
        said.append([np.concatenate(column) for column in zip(*parts, strict=True)])
    found = []
    for place, task in enumerate(scorer.tasks):
        true, known = said[0][1][:, place], said[0][2][:, place]
        if 0 < true[known].sum() < known.sum():
            one, other = (auc(p[known, place], true[known]) for p, _, _ in said)
            found.append(f"{task} {other - one:+.4f}")
    return ", ".join(found)


def operations(shape: RankerShape, steps: int, video_width: int) -> int:
    """Multiplications and additions in the matrix products of one candidate."""
    candidate = video_width + 2 * shape.dim + shape.tastes + shape.candidate_statistics
    tasks = len(shape.tasks)
    heads = tasks + (shape.watch_bins > 0) + shape.order_value
    return 2 * (
        candidate * (shape.width + tasks)
        + 2 * shape.width * shape.cross_rank * shape.cross_layers
        + shape.width * shape.experts * (shape.hidden + heads)
        + heads * shape.experts * shape.hidden
        + shape.hidden * (tasks + max(shape.watch_bins - 1, 0) + 2 * shape.order_value)
        + 2 * shape.dim * (shape.dim + steps + 1)
        + shape.dim * shape.tastes
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


def _seconds(call: Callable[[], object], repeats: int, now: Callable[[], float]) -> float:
    """Median over ``repeats`` calls after three to warm up."""
    times = []
    for _ in range(repeats + 3):
        started = now()
        call()
        times.append(now() - started)
    return float(np.median(times[3:]))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:6]), *sys.argv[6:])
