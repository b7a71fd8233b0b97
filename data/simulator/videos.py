"""What is shown: videos with a place in taste space, a creator, a home and tagged products.

Axes: ``N`` videos, ``R`` regions, ``D`` latent dimensions, ``J`` products tagged in one video,
``T`` tags, ``E`` width of the content embedding.
"""

from dataclasses import dataclass

import numpy as np

from data.simulator.creators import Creators
from data.simulator.products import Products
from data.simulator.region import REGION_LANGUAGE
from data.simulator.settings import DAY_MS, MarketSettings
from data.simulator.taste import F32, I64, Bool, Clusters, draw_weighted, jitter, unit

ID_BASE, ID_STEP = 7_000_000_000, 13
PRODUCTS_PER_VIDEO = 3
TAGS_PER_VIDEO = 4
SHOPPING_SHARE = 0.45
WORLDWIDE_SHARE = 0.45
#: Videos that were there before the log are up to this old.
BACKLOG_DAYS = 60.0
#: How strongly the content embedding shows the traits beside taste, per standard deviation.
VISIBLE_TRAIT = 0.3


@dataclass(frozen=True, slots=True)
class Videos:
    """Row r is video r.

    ``quality``, ``watchability``, ``social`` are traits of mean 0 (logit or log units after weights);
    ``live_day`` is the first day of the log on which it may be shown (its publication lies before that
    day begins); ``product_NJ`` holds product rows or -1; ``tag_NT`` holds cluster * 8 + tag or -1.
    """

    id: I64
    creator: I64
    cluster: I64
    vector_ND: F32
    quality: F32
    watchability: F32
    social: F32
    duration_ms: I64
    publish_ms: I64
    live_day: I64
    language: I64
    market_NR: Bool
    product_NJ: I64
    tag_NT: I64
    style: I64
    embedding_NE: F32

    def __len__(self) -> int:
        return len(self.id)


def build_videos(
    rng: np.random.Generator,
    settings: MarketSettings,
    clusters: Clusters,
    creators: Creators,
    products: Products,
) -> Videos:
    """Draw the catalogue of the whole log, the videos of its last day included."""
    count = settings.videos
    creator = draw_weighted(rng, creators.output, count)
    at_home = rng.random(count) < 0.75
    cluster = np.where(at_home, creators.cluster[creator], draw_weighted(rng, clusters.weight_C, count))
    centre = clusters.centroid_CD[cluster]
    style = creators.style_CD[creator] * np.where(at_home, 0.45, 0.15)[:, None]
    vector = unit(0.65 * centre + style + 0.40 * jitter(rng, *centre.shape))
    # Most videos are ordinary and few are outstanding, hence the exponential part.
    quality = 0.5 * creators.quality[creator] + 0.7 * (rng.exponential(1.0, count) - 1.0)
    watchability = rng.standard_normal(count)
    social = rng.standard_normal(count)
    duration_ms = rng.lognormal(np.log(22_000), 0.65, count)
    traits = np.stack([quality, watchability, social], axis=1)
    publish_ms, live_day = _publication(rng, settings)
    region = creators.region[creator]
    market = rng.random((count, 1)) < WORLDWIDE_SHARE
    market = np.repeat(market, settings.markets, axis=1)
    market[np.arange(count), region] = True
    product = _tagged_products(rng, cluster, products)
    shopping = np.flatnonzero(product[:, 0] >= 0)
    market[shopping, products.region[product[shopping, 0]]] = True
    return Videos(
        id=ID_BASE + ID_STEP * np.arange(count, dtype=np.int64),
        creator=creator,
        cluster=cluster,
        vector_ND=vector,
        quality=quality.astype(np.float32),
        watchability=watchability.astype(np.float32),
        social=social.astype(np.float32),
        duration_ms=np.rint(np.clip(duration_ms, 5_000, 180_000)).astype(np.int64),
        publish_ms=publish_ms,
        live_day=live_day,
        language=REGION_LANGUAGE[region].astype(np.int64),
        market_NR=market,
        product_NJ=product,
        tag_NT=_tags(rng, cluster, len(clusters.weight_C)),
        style=rng.integers(1 << 30, size=count),
        embedding_NE=_embedding(rng, vector, traits, settings.content_noise),
    )


def _publication(rng: np.random.Generator, settings: MarketSettings) -> tuple[I64, I64]:
    count, first = settings.videos, settings.new_videos_from_day
    new = rng.random(count) < settings.new_video_share
    fresh_day = first - 1 + rng.random(count) * (settings.days - first)
    old_day = -1 - rng.random(count) ** 2 * BACKLOG_DAYS
    day = np.where(new, fresh_day, old_day)
    publish_ms = settings.start_ms + np.floor(day * DAY_MS).astype(np.int64)
    return publish_ms, np.maximum(0, (publish_ms - settings.start_ms) // DAY_MS + 1)


def _tagged_products(rng: np.random.Generator, cluster: I64, products: Products) -> I64:
    """Up to three products per video, mostly of the video's own cluster and rather the first of it."""
    count = len(cluster)
    order = np.argsort(products.cluster, kind="stable")
    size = np.bincount(products.cluster, minlength=int(cluster.max()) + 1)
    first = np.concatenate([[0], np.cumsum(size)])[:-1]
    own = (rng.random((count, PRODUCTS_PER_VIDEO)) < 0.85) & (size[cluster] > 0)[:, None]
    near = first[cluster][:, None] + (rng.random(own.shape) ** 1.6 * size[cluster][:, None]).astype(np.int64)
    near = order[np.minimum(near, len(order) - 1)]
    product = np.where(own, near, rng.integers(len(products), size=own.shape))
    tagged = np.where(rng.random(count) < SHOPPING_SHARE, 1 + rng.binomial(2, 0.35, count), 0)
    product[np.arange(PRODUCTS_PER_VIDEO) >= tagged[:, None]] = -1
    product[product[:, 1] == product[:, 0], 1] = -1
    product[(product[:, 2] == product[:, 0]) | (product[:, 2] == product[:, 1]), 2] = -1
    return -np.sort(-product, axis=1)


def _tags(rng: np.random.Generator, cluster: I64, clusters: int) -> I64:
    count = len(cluster)
    own = rng.random((count, TAGS_PER_VIDEO)) < np.array([1.0, 0.85, 0.5, 0.25])
    other = rng.integers(clusters, size=own.shape)
    tag = np.where(own, cluster[:, None], other) * 8 + rng.integers(6, size=own.shape)
    tag[rng.random(own.shape) < np.array([0.0, 0.2, 0.4, 0.6])] = -1
    for later in range(1, TAGS_PER_VIDEO):
        tag[(tag[:, :later] == tag[:, later : later + 1]).any(axis=1), later] = -1
    return tag


def _embedding(rng: np.random.Generator, vector: F32, traits: np.ndarray, noise: float) -> F32:
    """What an image and text model would see: a rotation of taste and traits under noise."""
    seen = np.concatenate([vector, VISIBLE_TRAIT * traits], axis=1)
    width = 2 * vector.shape[1]
    width = max(width, seen.shape[1])
    rotation = np.linalg.qr(rng.standard_normal((width, seen.shape[1])))[0]
    blur = noise / np.sqrt(vector.shape[1]) * rng.standard_normal((len(vector), width), dtype=np.float32)
    return np.asarray(seen @ rotation.T + blur, dtype=np.float32)
