"""The dataset contract as Arrow types: which columns a dataset may have and what they mean.

Tables: ``events`` (one row per impression), ``actions`` (later outcomes), ``videos``, ``products``,
``users``. A null label is unknown; false was observed.
"""

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 1

#: Label columns of ``events`` in the order of their bits in an action mask (see ``data.history``).
LABELS = (
    "click", "long_view", "like", "comment", "share", "follow", "save", "profile_view", "hide",
    "product_click", "add_to_cart", "purchase",
)  # fmt: skip
LABEL_BIT = {label: 1 << bit for bit, label in enumerate(LABELS)}
#: The shopping funnel: each step happens only after the one before it.
FUNNEL = ("click", "product_click", "add_to_cart", "purchase")
SPLITS = ("train", "validation", "test")

TIME = pa.timestamp("us", tz="UTC")
ID = "id"  # int64 or string


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the contract. ``type`` is an Arrow type, or ``ID`` for int64 or string."""

    name: str
    type: pa.DataType | str
    required: bool = False


def _columns(required: str, **types: pa.DataType | str) -> dict[str, Column]:
    return {name: Column(name, kind, name in required.split()) for name, kind in types.items()}


EVENTS = _columns(
    "user_id video_id event_time",
    user_id=ID, video_id=ID, event_time=TIME, request_id=pa.string(), position=pa.int32(),
    surface=pa.string(), market=pa.string(), watch_ms=pa.int64(), **{label: pa.bool_() for label in LABELS},
    product_id=ID, order_value_minor=pa.int64(), currency=pa.string(), propensity=pa.float64(),
    policy=pa.string(), split=pa.string(),
)  # fmt: skip
ACTIONS = _columns(
    "user_id video_id action action_time",
    user_id=ID, video_id=ID, action=pa.string(), action_time=TIME, product_id=ID,
    order_value_minor=pa.int64(), currency=pa.string(), request_id=pa.string(),
)  # fmt: skip
VIDEOS = _columns(
    "video_id",
    video_id=ID, creator_id=ID, duration_ms=pa.int64(), publish_time=TIME, language=pa.string(),
    markets=pa.list_(pa.string()), category=pa.string(), tags=pa.list_(pa.string()), title=pa.string(),
    product_ids="list<id>", content_embedding="embedding",
)  # fmt: skip
PRODUCTS = _columns(
    "product_id",
    product_id=ID, merchant_id=ID, brand=pa.string(), category=pa.string(), title=pa.string(),
    price_minor=pa.int64(), currency=pa.string(), in_stock=pa.bool_(), markets=pa.list_(pa.string()),
)  # fmt: skip
USERS = _columns("user_id", user_id=ID, market=pa.string(), language=pa.string())

TABLES = {"events": EVENTS, "actions": ACTIONS, "videos": VIDEOS, "products": PRODUCTS, "users": USERS}
#: Tables whose first column identifies a row and may not repeat.
KEYS = {"videos": "video_id", "products": "product_id", "users": "user_id"}


def is_id(kind: pa.DataType) -> bool:
    """Whether ``kind`` is a legal id type: int64 or string."""
    return bool(pa.types.is_int64(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))
