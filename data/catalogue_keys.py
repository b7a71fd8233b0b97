"""Values per catalogue row and user row by which the ranker compares candidates with steps and users.

Axes: N catalogue rows, U user rows, M markets.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.features import EncodedTable
from data.ranking_spec import OFFERED, PRICED, SPOKEN, RankingSpec
from data.taste_regression import content_directions

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class CatalogueKeys:
    """``key`` int64[N]: one value of every matched and counted feature, of several the first; 0 = unknown.

    Times in ms, −1 unknown. ``price_N``: mean place of the products' prices among those of their currency, in
    (0, 1), −1 without a price. ``products_N`` counts products; ``offered_NM`` is the share of them that is
    sold in each market. ``video_language_N`` and ``user_language_U`` are rows in ``video_language``, 0
    unknown. ``content_NE`` are unit vectors (``data.taste_regression``).
    """

    key: dict[str, I64]
    duration_ms: I64
    publish_time_ms: I64
    price_N: F32
    products_N: I64
    offered_NM: F32
    video_language_N: I64
    user_language_U: I64
    content_NE: F32

    @classmethod
    def of(
        cls, spec: RankingSpec, videos: EncodedTable, users: EncodedTable, raw: dict[str, I64]
    ) -> "CatalogueKeys":
        """From the encoded catalogue and users and ``Prepared.video_raw``."""
        key = {
            # the catalogue row itself: hashed ids would mix videos
            name: np.arange(videos.num_rows) if name == "video_id" else _first(videos, name)
            for name in {*spec.matched, *spec.counted}
        }
        user_language = np.zeros(users.num_rows, np.int64)
        video_language = np.zeros(videos.num_rows, np.int64)
        if spec.language_rows:
            user_language = np.array(spec.language_rows, np.int64)[_first(users, SPOKEN[0])]
            video_language = _first(videos, SPOKEN[1])
        return cls(
            key, raw["duration_ms"], raw["publish_time_ms"], _prices(videos, spec.price_rows),
            *_offers(videos, spec.market_rows), video_language, user_language, content_directions(videos),
        )  # fmt: skip


def _first(table: EncodedTable, name: str) -> I64:
    values, offsets = table.bags[name]
    filled = np.diff(offsets) > 0
    first = np.zeros(table.num_rows, np.int64)
    first[filled] = values[offsets[:-1][filled]]
    return first


def _owners(offsets: I64) -> I64:
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _prices(videos: EncodedTable, price_rows: int) -> F32:
    if not price_rows:
        return np.full(videos.num_rows, -1.0, np.float32)
    values, offsets = videos.bags[PRICED]
    owner, known = _owners(offsets), values > 0  # row 0: no price
    number = np.bincount(owner[known], minlength=videos.num_rows)
    total = np.bincount(owner[known], (values[known] - 0.5) / (price_rows - 1), videos.num_rows)
    return np.where(number > 0, total / np.maximum(number, 1), -1.0).astype(np.float32)


def _offers(videos: EncodedTable, market_rows: tuple[int, ...]) -> tuple[I64, F32]:
    if not market_rows:
        return np.zeros(videos.num_rows, np.int64), np.zeros((videos.num_rows, 0), np.float32)
    products = np.diff(videos.bags["video_product_ids"][1]).astype(np.int64)
    values, offsets = videos.bags[OFFERED]
    owner = _owners(offsets)
    sold = [np.bincount(owner[values == row], minlength=videos.num_rows) * (row > 0) for row in market_rows]
    return products, (np.stack(sold, 1) / np.maximum(products, 1)[:, None]).astype(np.float32)
