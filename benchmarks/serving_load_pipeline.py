"""One process of serving_load.py's ``pipeline``: ranking and page building, without HTTP and store.

    python benchmarks/serving_load_pipeline.py BUNDLE STORE SECONDS CANDIDATES IDS COMPILED

STORE is a SQLite file, read once; COMPILED may be empty. Pages a second and CPU time a page, as JSON.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def pipeline(bundle: Path, warmed: Path, seconds: float, candidates: int, ids: str, compiled: str) -> None:
    """Ranking and page building alone, in this process, in batches of sixteen, one thread."""
    import torch

    from serving.exploration import NO_EXPLORATION
    from serving.feed import build_page
    from serving.live import load_bundle
    from serving.paging import _candidates
    from serving.pipeline import RankRequest
    from serving.rules import Audience
    from serving.service import wall_clock_ms
    from serving.slate import SlatePreferences
    from serving.state import Limits, open_store
    from serving.state.protocol import DAY_MS

    torch.set_num_threads(1)
    live = load_bundle(bundle, threads=1, compiled=Path(compiled) if compiled else None)
    store = open_store(
        f"sqlite:///{warmed}", Limits(512, 90 * DAY_MS, DAY_MS, DAY_MS, 365 * DAY_MS, 30 * DAY_MS)
    )
    slate, none = SlatePreferences(2, 3, 4, 1, 0.0, 1.0, 60), np.empty(0, np.int64)
    requests, now_ms = [], wall_clock_ms()
    for user_id in json.loads(Path(ids).read_text())[:64]:
        state = store.user(user_id, now_ms)
        user = live.user_request(user_id, state.steps, None, now_ms)
        shown = live.rows_of([*state.served, *state.seen])
        market = live.market_of(user.user_row)
        requests.append(RankRequest(user, k=candidates, exclude_rows=shown, market=market))
    store.close()
    dice = np.random.default_rng(0)

    def once(batch: list[RankRequest]) -> None:
        for request, ranked in zip(batch, live.pipeline.rank(batch), strict=True):
            audience = Audience(request.market, None, request.exclude_rows, none, none, none)
            build_page(_candidates(ranked), 20, live.facts, audience, slate, NO_EXPLORATION, dice)

    once(requests[:16])
    started, used, pages = time.monotonic(), time.process_time(), 0
    while time.monotonic() - started < seconds:
        at = pages % len(requests)
        once(requests[at : at + 16])
        pages += 16
    wall, cpu = time.monotonic() - started, time.process_time() - used
    print(json.dumps({"rate": pages / wall, "cpu_ms": 1000 * cpu / pages}))


if __name__ == "__main__":
    bundle, warmed, seconds, candidates, ids, compiled = sys.argv[1:]
    pipeline(Path(bundle), Path(warmed), float(seconds), int(candidates), ids, compiled)
