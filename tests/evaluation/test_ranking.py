"""Ranking metrics: answers worked out by hand, and parity with trec_eval and ranx on hostile inputs."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.hits import find_hits
from evaluation.ranking import METRICS, parse_metric, score_requests
from evaluation.tables import RUN, open_table
from evaluation.truth import read_truth
from tests.evaluation.worlds import Gains, Ranking, run_table, truth_table, write


def scores(folder: Path, lists: Ranking, gains: Gains, names: list[str]) -> dict[str, dict[str, float]]:
    truth = read_truth(write(truth_table(gains), folder / "truth.parquet"))
    run = open_table("run", write(run_table(lists), folder / "run.parquet"), RUN)
    value_RM = score_requests(find_hits("run", run, truth), truth, names)
    return {
        request: dict(zip(names, value_RM[row].tolist(), strict=True))
        for row, request in enumerate(truth.request_ids.to_pylist())
    }


def test_worked_example(tmp_path: Path) -> None:
    lists = {"r": [11, 12, 13, 14], "silent": [99]}
    gains = {"r": {12: 1.0, 14: 3.0, 77: 2.0}, "silent": {1: 1.0}, "uncovered": {1: 1.0}}
    names = [
        "recall@3",
        "recall@4",
        "precision@4",
        "hit@1",
        "hit@2",
        "mrr@4",
        "mrr@1",
        "map@4",
        "ndcg@4",
        "rbp@4",
    ]
    found = scores(tmp_path, lists, gains, names)
    dcg = 1 / math.log2(3) + 3 / math.log2(5)
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert found["r"] == pytest.approx(
        {
            "recall@3": 1 / 3, "recall@4": 2 / 3, "precision@4": 2 / 4, "hit@1": 0, "hit@2": 1,
            "mrr@4": 1 / 2, "mrr@1": 0, "map@4": (1 / 2 + 2 / 4) / 3,
            "ndcg@4": dcg / ideal, "rbp@4": 0.2 * (0.8 + 0.8**3),
        }
    )  # fmt: skip
    assert set(found["silent"].values()) == {0.0}
    assert set(found["uncovered"].values()) == {0.0}


def test_precision_divides_by_the_cutoff_when_the_list_is_short(tmp_path: Path) -> None:
    assert scores(tmp_path, {"r": [1]}, {"r": {1: 1.0}}, ["precision@10"])["r"]["precision@10"] == 0.1


IDS = st.sampled_from(["a", "ä", "видео", "動画", "z z", "0", "00", "\U0001f6d2", "é", "é"])
RUNS = st.dictionaries(IDS, st.lists(IDS, unique=True, max_size=8), min_size=1, max_size=5)
TRUTHS = st.dictionaries(
    IDS, st.dictionaries(IDS, st.sampled_from([1, 2, 3]), min_size=1), min_size=1, max_size=5
)
IR = {
    "recall": lambda k: ir_measures.R @ k, "precision": lambda k: ir_measures.P @ k,
    "ndcg": lambda k: ir_measures.nDCG @ k, "map": lambda k: ir_measures.AP @ k,
    "mrr": lambda k: ir_measures.RR @ k, "hit": lambda k: ir_measures.Success @ k,
}  # fmt: skip


@given(lists=RUNS, gains=TRUTHS, k=st.integers(1, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_agrees_with_trec_eval(tmp_path: Path, lists: Ranking, gains: Gains, k: int) -> None:
    ours = scores(tmp_path, lists, gains, [f"{kind}@{k}" for kind in IR])
    run = {r: {v: 1.0 / rank for rank, v in enumerate(found, 1)} for r, found in lists.items() if found}
    measures = {kind: make(k) for kind, make in IR.items()}
    theirs = {(m.query_id, m.measure): m.value for m in ir_measures.iter_calc(measures.values(), gains, run)}
    for request, values in ours.items():
        for kind, measure in measures.items():
            expected = theirs.get((request, measure), 0.0)
            assert values[f"{kind}@{k}"] == pytest.approx(expected, abs=1e-6), (kind, request)


RANX = {
    "recall": "recall", "precision": "precision", "ndcg": "ndcg", "map": "map", "mrr": "mrr",
    "hit": "hit_rate",
}  # fmt: skip
RANX_WORKER = """
import json, sys
import ranx
for line in sys.stdin:
    gains, run, metrics = json.loads(line)
    run = ranx.Run(run)
    ranx.evaluate(ranx.Qrels(gains), run, metrics)
    answer = {name: {r: float(v) for r, v in found.items()} for name, found in run.scores.items()}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def ranx_worker() -> Iterator[Callable[[object], Any]]:
    """Ranx in a process of its own without its compiler, which would take minutes for these few rows."""
    worker = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RANX_WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    stdin, stdout = worker.stdin, worker.stdout

    def ask(question: object) -> Any:
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    yield ask
    stdin.close()
    worker.wait(timeout=10)
    stdout.close()


@given(lists=RUNS, gains=TRUTHS, k=st.integers(1, 9))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_agrees_with_ranx(
    tmp_path: Path, ranx_worker: Callable[[object], Any], lists: Ranking, gains: Gains, k: int
) -> None:
    ours = scores(tmp_path, lists, gains, [f"{kind}@{k}" for kind in RANX])
    nothing = {"\0none": 1.0}  # ranx refuses a run that does not cover the truth
    run = {r: {v: 1.0 / rank for rank, v in enumerate(lists.get(r, ()), 1)} or nothing for r in gains}
    theirs = ranx_worker([gains, run, [f"{name}@{k}" for name in RANX.values()]])
    for request, values in ours.items():
        for kind, name in RANX.items():
            assert values[f"{kind}@{k}"] == pytest.approx(theirs[f"{name}@{k}"][request]), (kind, request)


@given(lists=RUNS, gains=TRUTHS, k=st.integers(1, 9))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bounds_and_rank_biased_precision(tmp_path: Path, lists: Ranking, gains: Gains, k: int) -> None:
    names = [f"{kind}@{k}" for kind in METRICS]
    found = scores(tmp_path, lists, gains, names)
    for request, values in found.items():
        right = [v in gains[request] for v in lists.get(request, [])[:k]]
        assert values[f"rbp@{k}"] == pytest.approx(sum(0.2 * 0.8**i for i, good in enumerate(right) if good))
        assert all(0.0 <= value <= 1.0 + 1e-12 for value in values.values())


def test_int64_and_string_ids_give_the_same_numbers(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    lists = {f"r{r}": random.permutation(40)[: random.integers(1, 20)].tolist() for r in range(50)}
    gains = {r: {int(v): 1.0 for v in random.permutation(40)[:3]} for r in lists}
    names = [f"{kind}@10" for kind in METRICS]
    big = 2**53
    numbers = scores(
        tmp_path,
        {r: [big + v for v in found] for r, found in lists.items()},
        {r: {big + v: g for v, g in right.items()} for r, right in gains.items()},
        names,
    )
    words = scores(
        tmp_path,
        {r: [f"v{v}" for v in found] for r, found in lists.items()},
        {r: {f"v{v}": g for v, g in right.items()} for r, right in gains.items()},
        names,
    )
    assert numbers == words


@pytest.mark.parametrize("name", ["recall", "recall@0", "recall@-1", "recal@5", "@5", "recall@x"])
def test_unknown_metric_is_explained(name: str) -> None:
    with pytest.raises(ValueError, match="is not one of recall"):
        parse_metric(name)


def test_shuffled_rows_and_small_batches_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(1)
    lists = {f"r{r}": random.permutation(30)[: random.integers(1, 25)].tolist() for r in range(40)}
    gains = {r: {int(v): 1.0 for v in random.permutation(30)[:4]} for r in lists}
    truth = read_truth(write(truth_table(gains), tmp_path / "truth.parquet"))
    table = run_table(lists)
    sorted_run = open_table("run", write(table, tmp_path / "run.parquet"), RUN)
    mixed = table.take(pa.array(random.permutation(table.num_rows)))
    mixed_run = open_table("run", write(mixed, tmp_path / "mixed.parquet"), RUN)
    names = [f"{kind}@10" for kind in METRICS]
    whole = score_requests(find_hits("run", sorted_run, truth), truth, names)
    monkeypatch.setattr("evaluation.tables.BATCH_ROWS", 7)
    monkeypatch.setattr("evaluation.hits.BATCH_ROWS", 7)
    for run in (sorted_run, mixed_run):
        assert np.array_equal(score_requests(find_hits("run", run, truth), truth, names), whole)
