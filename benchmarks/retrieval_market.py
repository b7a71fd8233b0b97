"""Rankings of a simulated market of 100,000 videos against its truth, on warm and on cold videos.

    python benchmarks/retrieval_market.py FOLDER [users=5000] [minutes=6] [asked=600] [gain=long_view]

Simulates a market into ``FOLDER`` in which 20 % of the videos come out on the test day, trains towers with
their defaults on one thread, publishes, and asks for ``asked`` users of the test split (what is in ``FOLDER``
already is kept). Printed is the true expected ndcg@20 of ``gain`` (1: the best possible order) among all
videos that are out and allowed in the user's market, seen ones left out, and apart among warm ones (shown to
anybody before the test day) and cold ones. EASE is the exact one, solved by users instead of videos; the
counting models have read the histories up to the test day, and counted all but the validation day.
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import scipy.sparse as sp
import torch

from data.history import UserRequest
from data.prepared import Prepared
from data.sequences import Sequences
from data.simulator.market import Market
from data.simulator.oracle import Question, candidate_scores
from models.baselines import Baseline, Engagement
from models.bundle import Bundle
from serving.held_out import open_log, user_requests
from shopreel import run_command
from training.baselines import engagements

K, BATCH, BLOCK, RIDGE = 20, 64, 256, 500.0
VALIDATION, TEST, END, FIRST_DAY = "2026-03-14", "2026-03-15", "2026-03-16", 13
Scorer = Callable[[list[UserRequest]], np.ndarray]


def build(folder: Path, options: dict[str, Any]) -> None:
    """Every command up to the bundle, as far as its result is not there yet."""
    market, prepared, tower = folder / "market", folder / "prepared", folder / "two_tower"
    size = [f"{name}={options[name]}" for name in ("users", "videos", "seed")]
    new = ["products=10000", "days=14", "new_video_share=0.2", f"new_videos_from_day={FIRST_DAY}"]
    split = [f"split.validation={VALIDATION}", f"split.test={TEST}", f"split.end={END}"]
    given = f"prepared={prepared}"
    training = ["threads=1", "device=cpu", f"max_minutes={options['minutes']}", f"seed={options['seed']}"]
    for out, name, words in (
        (market, "simulate", [*size, *new]),
        (prepared, "prepare", [f"dataset={market}", *split, "threads=1"]),
        (folder / "popularity", "train", ["model=popularity", given]),
        (folder / "item_knn", "train", ["model=item_knn", given]),
        (tower, "train", ["model=two_tower", given, *training]),
        (folder / "bundles", "publish", [f"two_tower={tower}", f"dataset={market}"]),
    ):
        if not out.exists():
            run_command(name, [*words, f"out={out}"])


def exact_ease(counted: Baseline, prepared: Prepared) -> Callable[[list[Engagement]], np.ndarray]:
    """EASE's scores without a matrix of videos × videos: its inverse follows from that of users × users.

    With P = (XᵀX + λI)⁻¹ = (I − Xᵀ(XXᵀ + λI)⁻¹X) / λ the score of video j is x_j − (xP)_j / P_jj.
    """
    size = len(prepared.catalogue)
    users = [u for shard in prepared.shards for u in engagements(Sequences.read(shard), counted.targets)]
    matrix_UN = _sparse(users, size)
    inverse_UU = np.linalg.inv((matrix_UN @ matrix_UN.T).toarray() + RIDGE * np.eye(len(users)))
    diagonal_N = np.ones(size)
    for begin in range(0, len(users), BLOCK):
        part_BN = matrix_UN[begin : begin + BLOCK]
        diagonal_N -= np.asarray(
            part_BN.multiply(inverse_UU[begin : begin + BLOCK] @ matrix_UN).sum(axis=0)
        ).ravel()

    def scores(asked: list[Engagement]) -> np.ndarray:
        own_BN = _sparse(asked, size)
        through_BN = ((own_BN @ matrix_UN.T).toarray() @ inverse_UU) @ matrix_UN
        own_BN = own_BN.toarray()
        return np.asarray(own_BN - (own_BN - through_BN) / diagonal_N)

    return scores


def _sparse(users: list[Engagement], size: int) -> sp.csr_matrix:
    row = np.repeat(np.arange(len(users)), [len(user.rows) for user in users])
    video, weight = (np.concatenate([getattr(user, name) for user in users]) for name in ("rows", "weights"))
    return sp.csr_matrix((weight.astype(np.float64), (row, video)), shape=(len(users), size))


def scaled(user_BD: np.ndarray, columns: slice, factor: float) -> np.ndarray:
    """The same vectors with ``columns`` times ``factor``."""
    user_BD[:, columns] *= np.float32(factor)
    return user_BD


def scorers(folder: Path, bundle: Bundle) -> dict[str, Scorer]:
    """Scores ``[B, N + 1]`` of every catalogue row by ranker."""
    vectors, shape = np.asarray(bundle.video_vectors), bundle.encoder.model.shape
    outcome, beside = slice(shape.dim, shape.learnt), slice(shape.learnt + shape.trend, None)
    knn, popular = (Baseline.load(folder / name / "model") for name in ("item_knn", "popularity"))
    ease = exact_ease(knn, Prepared.open(folder / "prepared"))

    def towers(columns: slice, factor: float) -> Scorer:
        return lambda asked: scaled(bundle.encoder.encode(asked), columns, factor) @ vectors.T

    return {
        "popularity": lambda asked: popular.scores([popular.engaged(r.history) for r in asked]),
        "item_knn": lambda asked: knn.scores([knn.engaged(r.history) for r in asked]),
        "EASE": lambda asked: ease([knn.engaged(r.history) for r in asked]),
        "towers as served": towers(outcome, 1.0),
        "no trend": towers(shape.trend_columns, 0.0),
        "no co-engagement": towers(beside, 0.0),
        "no outcomes": towers(outcome, 0.0),
        "outcomes twofold": towers(outcome, 2.0),
        "outcomes fourfold": towers(outcome, 4.0),
        "outcomes eightfold": towers(outcome, 8.0),
        "any order": lambda asked: np.random.default_rng(0).random((len(asked), len(vectors))),
    }


def main(path: str, *words: str) -> None:
    """Build what is missing, ask, print a table."""
    options: dict[str, Any] = {"users": 5000, "videos": 100_000, "minutes": 6, "asked": 600, "seed": 1}
    options["gain"] = "long_view"
    options |= {n: type(options[n])(value) for n, _, value in (word.partition("=") for word in words)}
    gain_label = options["gain"]
    torch.set_num_threads(1)
    folder = Path(path)
    build(folder, options)
    bundle, log = Bundle.open(folder / "bundles"), open_log(str(folder / "market"))
    market = Market.load(folder / "market")
    rows_N = bundle.catalogue.rows(market.video_ids)
    begin_ms = bundle.prepared["split"]["test_ms"]
    events = log.scan("events").to_table(["video_id", "event_time"])
    before = pc.less(events["event_time"], datetime.fromisoformat(TEST).replace(tzinfo=UTC))
    shown = pc.unique(events["video_id"].filter(before))
    warm_N = np.isin(market.video_ids, shown.to_numpy())
    cold_N = market.world.videos.live_day >= FIRST_DAY
    batches = user_requests(
        bundle, log, "test", gain=gain_label, k=K, rules=False, memory_limit_gb=2.0, history_steps=1_000_000
    )
    asked = [request for batch in batches for request in batch.requests]
    asked = [asked[p] for p in np.random.default_rng(0).permutation(len(asked))[: options["asked"]]]
    among: dict[str, np.ndarray] = {"all": np.ones_like(warm_N), "warm": warm_N, "cold": cold_N}
    print(
        f"{warm_N.sum():,} warm videos, {cold_N.sum():,} cold, the rest never shown; {len(asked)} users",
        flush=True,
    )
    rankers = scorers(folder, bundle)
    found: dict[str, Any] = {
        name: {kind: [] for kind in (*among, "cold share")} for name in ("best", *rankers)
    }
    discount_K = 1 / np.log2(np.arange(2, K + 2))
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        users = [request.user for request in part]
        said = {name: score(users)[:, rows_N] for name, score in rankers.items()}
        ids = bundle.users.ids(np.array([user.user_row for user in users])).to_pylist()
        for place, (request, user_id) in enumerate(zip(part, ids, strict=True)):
            truth_N = candidate_scores(market, user_id, Question(time=begin_ms, quantity=gain_label))
            truth_N[np.isin(rows_N, request.exclude_rows)] = -np.inf
            for kind, mask_N in among.items():
                candidates = np.flatnonzero(mask_N & np.isfinite(truth_N))
                gain = truth_N[candidates]
                best = _top(gain)
                for name in found:
                    top = best if name == "best" else _top(said[name][place, candidates])
                    found[name][kind].append(gain[top] @ discount_K / (gain[best] @ discount_K))
                    if kind == "all":
                        found[name]["cold share"].append(cold_N[candidates[top]].mean())
    print("expected ndcg@20       all     warm    cold    cold videos among the 20 of all")
    for name, values in found.items():
        means = [np.mean(values[kind]) for kind in (*among, "cold share")]
        print(f"{name:20} {means[0]:.4f}  {means[1]:.4f}  {means[2]:.4f}  {means[3]:.1%}")


def _top(score: np.ndarray) -> np.ndarray:
    """The places of the K best scores, best first, equal scores by place."""
    places = np.flatnonzero(score >= np.partition(score, -K)[-K])
    return places[np.argsort(-score[places], kind="stable")][:K]


if __name__ == "__main__":
    main(*sys.argv[1:])
