"""Exact search, scan, inverted lists and HNSW by size: build time, memory, recall, queries a second.

    python benchmarks/index_scale.py sizes=100000,1000000 [kinds=exact,scan,ivf_scan,ivf,hnsw] [threads=1]

Vectors of 64 dimensions around as many centres as fit a thousand to each, of lengths that vary by a fifth,
and users around the same centres. Every index is built by ``serving.index`` as ``publish`` builds it, its
width tuned on 100 users for recall@100 of ``recall=`` (0.99) against exact search and measured on 100 others.
Then single queries of ``serving.retriever`` (with exact scores of what the index found): median of five
rounds of up to 100, with the range. The seconds of building include the tuning, which asks exact search for
the truth of all users (``clock=cpu``: the process's own seconds). Every index lives in a process of its own:
its peak of resident memory includes the vectors.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM, K, USERS = 64, 100, 200


def write_vectors(folder: Path, videos: int) -> None:
    """``vectors.npy`` [videos + 1, DIM] and ``users.npy`` [USERS, DIM]."""
    g = np.random.default_rng(0)
    centres = g.standard_normal((max(videos // 1000, 20), DIM)).astype(np.float32)
    out = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (videos + 1, DIM))
    for start in range(0, videos + 1, 1 << 18):
        size = min(1 << 18, videos + 1 - start)
        part = centres[g.integers(len(centres), size=size)] + 0.7 * g.standard_normal((size, DIM), np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        out[start : start + size] = part * g.normal(1.0, 0.2, (size, 1)).clip(0.3)
    out[0] = 0
    out.flush()
    users = centres[g.integers(len(centres), size=USERS)] + 0.7 * g.standard_normal((USERS, DIM))
    np.save(folder / "users.npy", users.astype(np.float32))


def measure(folder: Path, kind: str, arguments: dict[str, str]) -> dict[str, float]:
    """Build, tune and query one index in this process."""
    import faiss

    from data.compose import compose
    from serving.index import INDEX_FILE, ApproximateIndex
    from serving.index_choice import build_index, choices
    from serving.publish import CONFIG
    from serving.retriever import Retriever

    faiss.omp_set_num_threads(int(arguments.get("threads", "1")))
    vectors_ND = np.load(folder / "vectors.npy", mmap_mode="r")
    user_UD = np.load(folder / "users.npy")
    words = ["two_tower=RUN", "dataset=DATASET", "out=BUNDLES", f"index.kind={kind}"]
    (wanted,) = choices(len(vectors_ND) - 1, K, compose("publish", words, CONFIG).index)
    target = float(arguments.get("recall", "0.99"))
    clock = time.process_time if arguments.get("clock") == "cpu" else time.perf_counter
    began = clock()
    _, found = build_index(folder, vectors_ND, user_UD, [wanted], recall_target=target, seed=0)
    built = clock() - began
    index, size = None, 0.0
    if kind != "exact":
        from dataclasses import replace

        tuned = replace(wanted, **found["tuned"])
        index = ApproximateIndex.load(folder / INDEX_FILE, tuned, vectors_ND.shape)
        size = (folder / INDEX_FILE).stat().st_size / 2**30
    retriever = Retriever(np.asarray(vectors_ND), index)
    rates = []
    retriever.search(user_UD[:1], K)
    for _ in range(5):
        began, number = clock(), 0
        while number < 100 and (number < 20 or clock() - began < 1.5):
            retriever.search(user_UD[number : number + 1], K)
            number += 1
        rates.append(number / (clock() - began))
    return {
        "build_s": built, "recall": found["recall"], "width": found["tuned"]["width"],
        "file_GiB": size, "peak_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "rate": statistics.median(rates), "low": min(rates), "high": max(rates),
    }  # fmt: skip


def main(arguments: dict[str, str]) -> None:
    if "kind" in arguments:
        print(json.dumps(measure(Path(arguments["folder"]), arguments["kind"], arguments)))
        return
    root, rows = Path(__file__).resolve().parent.parent, []
    head = " ".join(f"{name:>8}" for name in ("build s", "file GiB", "peak GiB", "recall", "width"))
    print(f"{'videos':>10} {'kind':<8} {head} queries/s")
    for videos in map(int, arguments.get("sizes", "100000,1000000").split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.get("scratch")) as folder:
            write_vectors(Path(folder), videos)
            for kind in arguments.get("kinds", "exact,scan,ivf_scan,ivf,hnsw").split(","):
                words = [f"{name}={value}" for name, value in arguments.items()]
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, *words, f"kind={kind}", f"folder={folder}"],
                    capture_output=True, text=True, check=False, cwd=root,
                    env={**os.environ, "PYTHONPATH": str(root)},
                )  # fmt: skip
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or ["failed"])[-1]
                    print(f"{videos:>10,} {kind:<8} not measured: {reason}", flush=True)
                    continue
                found = json.loads(done.stdout.strip().splitlines()[-1])
                rows.append({"videos": videos, "kind": kind, **found})
                print(
                    f"{videos:>10,} {kind:<8} {found['build_s']:>8.1f} {found['file_GiB']:>8.3f} "
                    f"{found['peak_GiB']:>8.2f} {found['recall']:>8.4f} {found['width']:>8} "
                    f"{found['rate']:,.0f} ({found['low']:,.0f} – {found['high']:,.0f})", flush=True,
                )  # fmt: skip
    if "out" in arguments:
        Path(arguments["out"]).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
