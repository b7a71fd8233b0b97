"""Services that one would write around the same models: what benchmarks/serving_load.py compares with.

    python benchmarks/serving_peers.py fastapi|litserve|ray BUNDLE STORE PORT CANDIDATES THREADS

``fastapi`` is the service of an afternoon: FastAPI with pydantic, FAISS's flat index, the models called
eagerly, a request at a time on FastAPI's threads. ``litserve`` and ``ray`` batch by their own means, up to 16
within 5 ms. All keep histories in memory, and none remembers pages, applies rules or writes anything: they do
less.
"""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import torch

from serving.live import load_bundle
from serving.pipeline import Pipeline
from serving.service import wall_clock_ms
from serving.state import Limits, open_store
from serving.state.protocol import DAY_MS

PAGE, BATCH, WAIT_S = 20, 16, 0.005


class Model:
    """The bundle's towers and ranker around a flat FAISS index."""

    def __init__(self, bundle: str, store: str, candidates: int, threads: int) -> None:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        self.live = load_bundle(bundle)
        assert isinstance(self.live.pipeline, Pipeline)
        self.bundle = self.live.pipeline.bundle
        self.candidates = candidates
        self.index = faiss.IndexFlatIP(self.bundle.video_vectors.shape[1])
        self.index.add(np.ascontiguousarray(self.bundle.video_vectors[1:]))
        limits = Limits(512, 90 * DAY_MS, DAY_MS, DAY_MS, 365 * DAY_MS, 30 * DAY_MS)
        self._store = open_store(store, limits)
        self._users: dict[int, Any] = {}
        self._lock = threading.Lock()

    def user(self, user_id: int) -> Any:
        """The user as the models read one; from memory after the first time."""
        found = self._users.get(user_id)
        if found is None:
            with self._lock:
                state = self._store.user(user_id, wall_clock_ms())
            found = self._users[user_id] = self.live.user_request(user_id, state.steps, None, wall_clock_ms())
        return found

    def pages(self, user_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Encode and search together, rank one by one."""
        users = [self.user(user_id) for user_id in user_ids]
        _, found = self.index.search(self.bundle.encoder.encode(users), self.candidates)
        pages = []
        for user_id, user, ids in zip(user_ids, users, found, strict=True):
            rows = ids.astype(np.int64) + 1
            ranker = self.bundle.ranker
            assert ranker is not None
            said = ranker.score(ranker.prepare_user(user), rows)
            best = np.argsort(-said.value)[:PAGE]
            videos = [
                {
                    "video_id": video_id, "score": float(said.value[place]),
                    "probabilities": {task: float(p[place]) for task, p in said.probabilities.items()},
                }
                for video_id, place in zip(
                    self.bundle.catalogue.ids(rows[best]).to_pylist(), best.tolist(), strict=True
                )
            ]  # fmt: skip
            pages.append({"user_id": user_id, "videos": videos})
        return pages


def serve_fastapi(model: Model, port: int) -> None:
    """The service of an afternoon."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Question(BaseModel):
        user_id: int

    class Video(BaseModel):
        video_id: int
        score: float
        probabilities: dict[str, float]

    class Page(BaseModel):
        user_id: int
        videos: list[Video]

    app = FastAPI()

    @app.post("/v1/feed", response_model=Page)
    def feed(question: Question) -> Any:
        return model.pages([question.user_id])[0]

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def serve_litserve(words: tuple[str, str, int, int], port: int) -> None:
    """LitServe with its batching."""
    from benchmarks.serving_peer_litserve import serve

    serve(words, port, batch=BATCH, wait_s=WAIT_S)


def serve_ray(words: tuple[str, str, int, int], port: int) -> None:
    """Ray Serve with ``serve.batch``."""
    import os
    import signal

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300"}
    import ray
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})

    @serve.deployment(num_replicas=1, max_ongoing_requests=64)  # type: ignore[misc]
    class Feed:
        def __init__(self) -> None:
            self.model = Model(*words)

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)  # type: ignore[misc]
        async def pages(self, user_ids: list[int]) -> list[dict[str, Any]]:
            return self.model.pages(user_ids)

        async def __call__(self, request: Any) -> Any:
            return await self.pages(int((await request.json())["user_id"]))

    serve.run(Feed.bind(), route_prefix="/v1/feed")
    signal.pause()


if __name__ == "__main__":
    kind, bundle, store = sys.argv[1:4]
    port, candidates, threads = map(int, sys.argv[4:])
    given = (bundle, store, candidates, threads)
    match kind:
        case "fastapi":
            serve_fastapi(Model(*given), port)
        case "litserve":
            serve_litserve(given, port)
        case _:
            serve_ray(given, port)
