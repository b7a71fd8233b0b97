"""Arrow tables of the market's videos, products and users, as the dataset contract wants them."""

import numpy as np
import pyarrow as pa

from data.schema import TIME
from data.simulator import words
from data.simulator.creators import creator_ids
from data.simulator.ledger import Ledger
from data.simulator.merchants import merchant_ids
from data.simulator.products import Products
from data.simulator.region import LANGUAGES, REGIONS
from data.simulator.taste import I64
from data.simulator.users import AGE_BANDS, DEVICES
from data.simulator.world import World


def videos_table(world: World) -> pa.Table:
    """All videos. Traits and tastes are not in it, only what a platform would know before the first view."""
    videos = world.videos
    shopping = videos.product_NJ >= 0
    titles = [
        words.video_title(LANGUAGES[language], cluster, style, words.product_noun(c, s) if has else None)
        for language, cluster, style, has, c, s in zip(
            videos.language.tolist(),
            videos.cluster.tolist(),
            videos.style.tolist(),
            shopping[:, 0].tolist(),
            world.products.cluster[videos.product_NJ[:, 0]].tolist(),
            world.products.style[videos.product_NJ[:, 0]].tolist(),
            strict=True,
        )
    ]
    embedding = pa.array(videos.embedding_NE.ravel())
    width = videos.embedding_NE.shape[1]
    return pa.table(
        {
            "video_id": videos.id,
            "creator_id": creator_ids(videos.creator),
            "duration_ms": videos.duration_ms,
            "publish_time": pa.array(videos.publish_ms * 1000).cast(TIME),
            "language": _named(videos.language, LANGUAGES),
            "markets": _lists(videos.market_NR, _market_names(world)),
            "category": pa.array([words.category(row) for row in videos.cluster.tolist()]),
            "tags": pa.array([[words.tag(t) for t in row if t >= 0] for row in videos.tag_NT.tolist()]),
            "title": pa.array(titles),
            "product_ids": _id_lists(videos.product_NJ, world.products.id),
            "content_embedding": pa.FixedSizeListArray.from_arrays(embedding, width),
        }
    )


def products_table(world: World, ledger: Ledger) -> pa.Table:
    """All products; ``in_stock`` is the state when the log ends."""
    products = world.products
    home_price = products.price_minor_PR[np.arange(len(products)), products.region]
    pairs = zip(products.cluster.tolist(), products.style.tolist(), products.brand.tolist(), strict=True)
    return pa.table(
        {
            "product_id": products.id,
            "merchant_id": merchant_ids(products.merchant),
            "brand": pa.array([words.brand(row) for row in products.brand.tolist()]),
            "category": pa.array([words.cluster_name(row) for row in products.cluster.tolist()]),
            "title": pa.array([words.product_title(*pair) for pair in pairs]),
            "price_minor": home_price,
            "currency": _named(products.region, [region.currency for region in REGIONS]),
            "in_stock": pa.array(ledger.stock_out_day >= world.settings.days),
            "markets": _lists(products.sold_in(), _market_names(world)),
        }
    )


def users_table(world: World) -> pa.Table:
    """All users with the features that they show."""
    users = world.users
    return pa.table(
        {
            "user_id": users.id,
            "market": _named(users.region, [region.market for region in REGIONS]),
            "language": _named(users.language, LANGUAGES),
            "age_band": _named(users.age_band, AGE_BANDS),
            "device": _named(users.device, DEVICES),
            "interests": pa.array(
                [[words.cluster_name(c) for c in row if c >= 0] for row in users.interest.tolist()],
                type=pa.list_(pa.string()),
            ),
            "account_age_days": pa.array(users.account_age_days.astype(np.float32)),
        }
    )


def product_ids(products: Products, rows: I64) -> pa.Array:
    """Ids of product rows; null where the row is -1."""
    return pa.array(products.id[rows], mask=rows < 0)


def _named(rows: I64, names: tuple[str, ...] | list[str]) -> pa.Array:
    return pa.array(list(names)).take(pa.array(rows))


def _market_names(world: World) -> list[str]:
    return [region.market for region in REGIONS[: world.settings.markets]]


def _lists(member: np.ndarray, names: list[str]) -> pa.Array:
    """For each row of the bool matrix the list of names whose column is true."""
    offsets = np.concatenate([[0], np.cumsum(member.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), _named(np.nonzero(member)[1], names))


def _id_lists(rows: I64, ids: I64) -> pa.Array:
    """For each row of ``rows`` [n, J] the ids of its entries that are not -1."""
    offsets = np.concatenate([[0], np.cumsum((rows >= 0).sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids[rows[rows >= 0]]))
