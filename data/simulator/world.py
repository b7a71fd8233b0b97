"""Everything in the market that chance decided before the first impression."""

from dataclasses import dataclass

import numpy as np

from data.simulator.campaigns import Campaign, build_campaigns
from data.simulator.creators import Creators, build_creators
from data.simulator.merchants import Merchants, build_merchants
from data.simulator.products import Products, build_products
from data.simulator.settings import MarketSettings
from data.simulator.streams import generator
from data.simulator.taste import Clusters, build_clusters
from data.simulator.users import Users, build_users
from data.simulator.videos import Videos, build_videos


@dataclass(frozen=True, slots=True)
class World:
    """The nouns of a market; a pure function of the settings and the seed."""

    settings: MarketSettings
    seed: int
    clusters: Clusters
    creators: Creators
    merchants: Merchants
    products: Products
    videos: Videos
    users: Users
    campaigns: list[Campaign]


def build_world(settings: MarketSettings, seed: int) -> World:
    """Draw every noun from its own random stream."""

    def stream(noun: str) -> np.random.Generator:
        return generator(seed, noun)

    clusters = build_clusters(stream("clusters"), settings.clusters, settings.dimensions)
    creators = build_creators(stream("creators"), settings.videos, settings.markets, clusters)
    merchants = build_merchants(stream("merchants"), settings.products, settings.markets)
    products = build_products(stream("products"), settings, clusters, merchants)
    videos = build_videos(stream("videos"), settings, clusters, creators, products)
    users = build_users(stream("users"), settings, clusters)
    share = np.bincount(users.region, minlength=settings.markets) / len(users)
    campaigns = build_campaigns(stream("campaigns"), settings, videos, products, share)
    return World(settings, seed, clusters, creators, merchants, products, videos, users, campaigns)
