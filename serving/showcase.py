"""What the feed page draws beside the feed itself: who may be looked at, and what videos are called."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow.compute as pc

from serving.live import LiveBundle
from serving.state import Store

_VIDEO = ("title", "creator_id", "category", "tags", "language", "duration_ms", "publish_time")
_PRODUCT = ("product_id", "title", "brand", "category", "merchant_id")
USERS = 24


def users(live: LiveBundle, store: Store, now_ms: int) -> bytes:
    """Up to 24 users spread over all that the bundle knows, those with the longest histories first."""
    count = len(live.users) - 1
    rows = np.unique(np.linspace(1, count, min(USERS, count), dtype=np.int64))
    found = [
        {
            "user_id": user_id,
            "market": live.market_of(row),
            "steps": len(store.user(user_id, now_ms).steps),
        }
        for row, user_id in zip(rows.tolist(), live.users.ids(rows).to_pylist(), strict=True)
    ]
    found.sort(key=lambda user: -user["steps"])
    return msgspec.json.encode({"users": found, "videos": len(live.catalogue) - 1, "bundle": live.name})


def videos(live: LiveBundle, video_ids: Sequence[str]) -> bytes:
    """What is known about videos, in the order asked; an unknown one has its id alone."""
    ids = [live.video_id(video_id) for video_id in video_ids]
    rows = live.catalogue.rows(ids).tolist()
    columns = [name for name in _VIDEO if name in live.videos.column_names]
    known = live.videos.select(columns).take(rows).to_pylist() if columns else [{} for _ in rows]
    tags = live.facts.product_rows
    products = _products(live, [code for row in rows for code in tags.of(row).tolist() if code])
    answer = [
        {
            "video_id": video_id,
            **_plain(fields),
            "products": [products[code] for code in tags.of(row).tolist() if code in products],
        }
        for video_id, row, fields in zip(ids, rows, known, strict=True)
    ]
    return msgspec.json.encode({"videos": answer})


def _products(live: LiveBundle, codes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What is known about products, by their rows in the facts."""
    if live.products is None or not codes:
        return {}
    wanted = sorted(set(codes))
    ids = live.facts.products.ids.ids(wanted)
    column = live.products["product_id"].combine_chunks()
    places = pc.index_in(ids.cast(column.type), value_set=column)
    names = [name for name in _PRODUCT if name in live.products.column_names]
    return dict(zip(wanted, map(_plain, live.products.select(names).take(places).to_pylist()), strict=True))


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
        if value is not None
    }
