"""Whether further user vectors of parts of the history find what one vector of all of it misses.

    python benchmarks/serving_interests.py BUNDLE DATASET [gain=click] [users=400] [k=500] [steps=16] [seed=0]

Requests of the test split of users with at least ``steps`` steps. Parts are two clusters of the history, by
the cosine of its videos' vectors, or its last eight steps; each goes through the user tower by itself, and
lists are merged by quota into ``k`` candidates. Prints recall of the videos with ``gain`` and its difference
from one vector, with a 95 % interval over users. The bundle may know the split: only differences mean
anything.
"""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from data.history import UserRequest
from models.bundle import Bundle
from serving.exact import Rows
from serving.held_out import open_log, user_requests
from serving.index import open_index
from serving.pipeline import RankRequest
from serving.retriever import Retriever

BATCH, RECENT = 16, 8
#: Shares of the candidates: of the whole history, each of two clusters, the newest steps.
MIXES = {
    "all": (1.0, 0.0, 0.0),
    "80 % all, 10 % each cluster": (0.8, 0.1, 0.0),
    "60 % all, 20 % each cluster": (0.6, 0.2, 0.0),
    "50 % each cluster": (0.0, 0.5, 0.0),
    "80 % all, 20 % newest": (0.8, 0.0, 0.2),
}


def main(path: str, dataset: str, *words: str) -> None:
    """Measure; a table goes to standard output."""
    options: dict[str, Any] = {"gain": "click", "users": 400, "k": 500, "steps": 16, "seed": 0}
    for word in words:
        name, _, value = word.partition("=")
        options[name] = type(options[name])(value)
    torch.set_num_threads(1)
    bundle, dice, k = Bundle.open(path), np.random.default_rng(options["seed"]), options["k"]
    retriever = Retriever(bundle.video_vectors, open_index(bundle, threads=1))
    asked = _asked(bundle, dataset, options, dice)
    recall: dict[str, list[float]] = {name: [] for name in MIXES}
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        parts = [_parts(bundle, request.user) for request, _ in part]
        found = []
        for which in range(4):
            users_BD = bundle.encoder.encode([users[which] for users in parts])
            hits = retriever.search(users_BD, k, exclude=[request.exclude_rows for request, _ in part])
            found.append([hit.video_row for hit in hits])
        for place, (_, wanted) in enumerate(part):
            whole, one, two, newest = (lists[place] for lists in found)
            for name, (of_all, of_cluster, of_newest) in MIXES.items():
                quotas = [(whole, of_all), (one, of_cluster), (two, of_cluster), (newest, of_newest)]
                recall[name].append(float(np.isin(wanted, _merged(quotas, k)).mean()))
    alone = np.array(recall["all"])
    print(f"{len(alone)} users, recall of {options['gain']} among {k} candidates")
    for name, values in recall.items():
        apart = np.array(values) - alone
        half = 1.96 * apart.std() / len(apart) ** 0.5
        print(f"  {name:28} {np.mean(values):.4f}  {apart.mean():+.4f} ± {half:.4f}")


def _asked(
    bundle: Bundle, dataset: str, options: dict[str, Any], dice: np.random.Generator
) -> list[tuple[RankRequest, Rows]]:
    """Requests with the catalogue rows that would be right."""
    asked = []
    for batch in user_requests(
        bundle,
        open_log(dataset),
        "test",
        gain=options["gain"],
        k=options["k"],
        rules=False,
        memory_limit_gb=1.0,
    ):
        wanted: dict[str, list[Any]] = {}
        for request_id, video_id in zip(
            batch.truth["request_id"].to_pylist(), batch.truth["video_id"].to_pylist(), strict=True
        ):
            wanted.setdefault(request_id, []).append(video_id)
        for request_id, request in zip(batch.request_ids.to_pylist(), batch.requests, strict=True):
            if request_id in wanted and len(request.user.history) >= options["steps"]:
                asked.append((request, bundle.catalogue.rows(wanted[request_id])))
    chosen = dice.permutation(len(asked))[: options["users"]]
    return [asked[place] for place in chosen]


def _parts(bundle: Bundle, user: UserRequest) -> list[UserRequest]:
    """The user with all of the history, with either cluster of it, and with its newest steps."""
    shape = bundle.encoder.model.shape
    history = user.history.last(shape.max_steps)
    cluster_S = _two_clusters(np.asarray(bundle.video_vectors[history.video_row], np.float64)[:, : shape.dim])
    chosen = [history, *(history.take(np.flatnonzero(cluster_S == c)) for c in (0, 1)), history.last(RECENT)]
    return [replace(user, history=part) for part in chosen]


def _two_clusters(vector_SD: np.ndarray) -> np.ndarray:
    """0 or 1 for each step, by k-means over directions from two steps that are far apart."""
    unit_SD = vector_SD / np.maximum(np.linalg.norm(vector_SD, axis=1, keepdims=True), 1e-9)
    centre_2D = unit_SD[[0, int(np.argmin(unit_SD @ unit_SD[0]))]]
    for _ in range(8):
        nearest_S = (unit_SD @ centre_2D.T).argmax(1)
        sums = [unit_SD[nearest_S == c].sum(0) if (nearest_S == c).any() else centre_2D[c] for c in (0, 1)]
        centre_2D = np.stack(sums) / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    nearest: np.ndarray = (unit_SD @ centre_2D.T).argmax(1)
    return nearest


def _merged(quotas: list[tuple[Rows, float]], k: int) -> Rows:
    """The best of each list up to its share of ``k``, then the first list's rest; all distinct."""
    chosen: dict[int, None] = {}
    for rows, share in quotas:
        room = round(share * k)
        for row in rows.tolist():
            if room <= 0:
                break
            if row not in chosen:
                chosen[row] = None
                room -= 1
    for row in quotas[0][0].tolist():
        if len(chosen) >= k:
            break
        chosen.setdefault(row)
    return np.array(list(chosen), np.int64)


if __name__ == "__main__":
    main(*sys.argv[1:])
