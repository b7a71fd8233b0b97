"""Who watches: users with a drifting taste, habits, a budget and a few visible features.

Axes: ``U`` users, ``D`` latent dimensions, ``C`` clusters.
"""

from dataclasses import dataclass

import numpy as np

from data.simulator.region import REGION_LANGUAGE, region_weights
from data.simulator.settings import MarketSettings
from data.simulator.taste import F32, I64, Clusters, draw_weighted, jitter, unit

ID_BASE, ID_STEP = 9_100_000_000, 7
AGE_BANDS = ("under_18", "18_24", "25_34", "35_44", "45_54", "55_plus")
AGE_WEIGHTS = np.array([0.08, 0.27, 0.28, 0.18, 0.11, 0.08])
DEVICES = ("android_budget", "android_flagship", "iphone", "tablet")
#: Mean logarithm of the price in US dollars that a user likes to pay, by age band.
AGE_LOG_BUDGET = np.log([12.0, 20.0, 30.0, 38.0, 40.0, 36.0])
INTERESTS_PER_USER = 3
#: Days from a user's first taste to the second; afterwards it swings back.
DRIFT_DAYS = 30.0


@dataclass(frozen=True, slots=True)
class Users:
    """Row r is user r.

    ``taste_UD`` at the start drifts to ``later_taste_UD``; ``policy_taste_UD`` is the imperfect picture
    that the logging policy has, and ``segment`` = region * clusters + the cluster nearest to it.
    ``slate_rate`` is the expected number of slates a day. The biases are in logits, ``log_budget`` is the
    logarithm of US dollars. ``interest`` holds declared clusters or -1.
    """

    id: I64
    region: I64
    language: I64
    taste_UD: F32
    later_taste_UD: F32
    policy_taste_UD: F32
    segment: I64
    slate_rate: F32
    click_bias: F32
    social_bias: F32
    shop_bias: F32
    log_budget: F32
    age_band: I64
    device: I64
    interest: I64
    account_age_days: I64

    def __len__(self) -> int:
        return len(self.id)


def drift_weight(day: I64) -> F32:
    """Weight in [0, 1] of the later taste on each day of the log (days before the log count as negative)."""
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * day / DRIFT_DAYS), dtype=np.float32)


def build_users(rng: np.random.Generator, settings: MarketSettings, clusters: Clusters) -> Users:
    """Draw the users; age and market shape their tastes, age and device their budgets."""
    count, D = settings.users, settings.dimensions
    C = len(clusters.weight_C)
    region = draw_weighted(rng, region_weights(settings.markets), count)
    abroad = rng.random(count) < 0.08
    language_region = np.where(abroad, rng.integers(settings.markets, size=count), region)
    age_band = draw_weighted(rng, AGE_WEIGHTS, count)
    leaning = rng.normal(0.0, 0.9, (len(AGE_BANDS), C))
    local = rng.normal(0.0, 0.4, (settings.markets, C))
    log_weight_UC = np.log(clusters.weight_C) + leaning[age_band] + local[region]
    favourite = _favourites(rng, log_weight_UC)
    taste = unit(_mixture(rng, clusters, favourite) + 0.45 * jitter(rng, count, D))
    change = (settings.taste_drift * rng.random(count))[:, None]
    later = _mixture(rng, clusters, _favourites(rng, log_weight_UC)) + 0.45 * jitter(rng, count, D)
    later_taste = unit((1 - change) * taste + change * unit(later))
    policy_taste = unit(taste + 0.6 * jitter(rng, count, D))
    nearest = np.argmax(policy_taste @ clusters.centroid_CD.T, axis=1)
    wealth = rng.normal(0.0, 0.4, count)
    device = np.digitize(wealth + rng.normal(0.0, 0.3, count), [-0.25, 0.15, 0.75])
    activity = rng.lognormal(-0.32, 0.8, count)
    return Users(
        id=ID_BASE + ID_STEP * np.arange(count, dtype=np.int64),
        region=region,
        language=REGION_LANGUAGE[language_region].astype(np.int64),
        taste_UD=taste,
        later_taste_UD=later_taste,
        policy_taste_UD=policy_taste,
        segment=region * C + nearest,
        slate_rate=(activity * settings.impressions_per_user_day / settings.slate_size).astype(np.float32),
        click_bias=rng.normal(0.0, 0.45, count).astype(np.float32),
        social_bias=rng.normal(0.0, 0.8, count).astype(np.float32),
        shop_bias=rng.normal(0.0, 0.7, count).astype(np.float32),
        log_budget=(AGE_LOG_BUDGET[age_band] + wealth).astype(np.float32),
        age_band=age_band,
        device=device,
        interest=_declared(rng, favourite, C),
        account_age_days=np.floor(rng.exponential(300.0, count)).astype(np.int64),
    )


def _favourites(rng: np.random.Generator, log_weight_UC: np.ndarray) -> I64:
    """Three clusters per user, drawn without replacement (Gumbel top-k), the strongest first."""
    keys = log_weight_UC + rng.gumbel(size=log_weight_UC.shape)
    order = np.argsort(-keys, axis=1)[:, :INTERESTS_PER_USER]
    missing = INTERESTS_PER_USER - order.shape[1]
    return np.pad(order, ((0, 0), (0, missing)), mode="edge")


def _mixture(rng: np.random.Generator, clusters: Clusters, favourite: I64) -> F32:
    share = rng.dirichlet([4.0, 1.6, 0.8], len(favourite)).astype(np.float32)
    return np.asarray(np.einsum("uf,ufd->ud", share, clusters.centroid_CD[favourite]))


def _declared(rng: np.random.Generator, favourite: I64, clusters: int) -> I64:
    """What users tick at sign-up: often what they like, sometimes anything, often nothing."""
    ticked = rng.random(favourite.shape) < np.array([0.55, 0.35, 0.15])
    honest = rng.random(favourite.shape) < 0.85
    interest = np.where(honest, favourite, rng.integers(clusters, size=favourite.shape))
    interest[~ticked] = -1
    for later in range(1, INTERESTS_PER_USER):
        interest[(interest[:, :later] == interest[:, later : later + 1]).any(axis=1), later] = -1
    return interest
