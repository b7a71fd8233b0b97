"""A small market behind a four-stage pipeline in which single stages can be broken on purpose."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

MARKETS = ("SE", "BR", "JP", "DE")


@dataclass
class Pipeline:
    """Users, videos and the lists of each stage; faults are set before ``write``."""

    users: int = 1200
    videos: int = 400
    depth: int = 60
    seed: int = 0
    index_recall: float = 1.0
    bad_market: str | None = None
    drop_first: float = 0.0
    campaign: bool = False
    ranker_noise: float = 0.4
    lists: dict[str, list[npt.NDArray[np.int64]]] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        random = np.random.default_rng(self.seed)
        taste = random.normal(size=(self.users, 8))
        video = random.normal(size=(self.videos, 8))
        value = taste @ video.T + random.normal(size=(self.users, self.videos))
        market = np.array(MARKETS)[random.integers(0, len(MARKETS), self.users)]
        right = np.argsort(-(value + random.normal(size=value.shape)), axis=1)[:, :4]
        exact = np.argsort(-(taste @ video.T + 2.0 * random.normal(size=value.shape)), axis=1)[
            :, : self.depth
        ]
        stages: dict[str, list[npt.NDArray[np.int64]]] = {"exact": [], "index": [], "ranker": [], "feed": []}
        sources: list[str] = []
        for user in range(self.users):
            kept = exact[user][random.random(self.depth) < self.index_recall]
            noise = self.ranker_noise * random.normal(size=len(kept))
            score = value[user, kept] + noise
            if market[user] == self.bad_market:
                score = random.normal(size=len(kept))
            ranked = kept[np.argsort(-score)]
            feed = ranked[1:] if random.random() < self.drop_first else ranked
            paid = ["tower"] * len(feed)
            if self.campaign:
                stranger = np.setdiff1d(np.arange(self.videos), feed)[:2]
                feed = np.concatenate([feed[:1], stranger, feed[1:]])
                paid = ["tower"] + ["campaign"] * 2 + ["tower"] * (len(feed) - 3)
            sources += paid
            for stage, found in (("exact", exact[user]), ("index", kept), ("ranker", ranked), ("feed", feed)):
                stages[stage].append(found)
        folder.mkdir(parents=True, exist_ok=True)
        for stage, lists in stages.items():
            table = {
                "request_id": [f"test:{user}" for user, found in enumerate(lists) for _ in found],
                "video_id": pa.array(np.concatenate(lists) + 10**15),
                "rank": pa.array(
                    np.concatenate([np.arange(1, len(found) + 1) for found in lists]), pa.int32()
                ),
                "score": np.concatenate([-np.arange(len(found), dtype=float) for found in lists]),
                "stage": [stage] * sum(map(len, lists)),
            }
            if stage == "feed":
                table["source"] = sources
            pq.write_table(pa.table(table), folder / f"run_{stage}.parquet")
        truth = {
            "request_id": [f"test:{user}" for user in range(self.users) for _ in range(4)],
            "user_id": np.repeat(np.arange(self.users), 4),
            "video_id": right.ravel() + 10**15,
            "gain": np.ones(self.users * 4),
            "market": np.repeat(market, 4),
            "surface": np.repeat(np.where(random.random(self.users) < 0.7, "feed", "shop"), 4),
        }
        pq.write_table(pa.table(truth), folder / "truth.parquet")
        self.lists = stages
        return folder
