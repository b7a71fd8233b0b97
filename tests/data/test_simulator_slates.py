"""The slate world's exact values: against its own log, against brute force and against independence."""

import numpy as np
import pyarrow as pa
import pytest

from data.errors import ConfigError
from data.simulate import market_settings
from data.simulator.market import Market
from data.simulator.slates import (
    SlatePolicy,
    SlateWorld,
    build_slate_world,
    conditional_probabilities,
    slate_probabilities,
)


@pytest.fixture(scope="module")
def market() -> Market:
    return Market.build(market_settings("users=100", "videos=200", "products=50", "days=2"), 1)


def _world(market: Market, satiation: float = 0.0) -> tuple[SlateWorld, SlatePolicy, SlatePolicy]:
    world = build_slate_world(
        market, np.random.default_rng(3), contexts=20, candidates=6, satiation=satiation
    )
    logging = SlatePolicy(np.random.default_rng(4).normal(0, 1, world.video_XM.shape), explore=0.3)
    return world, logging, SlatePolicy(4 * world.baseline_XLM[:, 0], explore=0.1)


def _weights(log: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Importance weight of each position and reward, both [requests, positions]."""
    ratio = log["target_propensity"].to_numpy() / log["propensity"].to_numpy()
    return ratio.reshape(-1, 3), log["reward"].to_numpy().reshape(-1, 3)


@pytest.mark.parametrize("satiation", [0.0, 0.6])
def test_the_value_of_a_policy_is_the_mean_reward_of_its_own_log(market: Market, satiation: float) -> None:
    world, logging, target = _world(market, satiation)
    for policy in (logging, target):
        reward = world.log(np.random.default_rng(5), 60_000, policy, target)["reward"].to_numpy()
        slate = reward.reshape(-1, 3).sum(axis=1)
        assert abs(slate.mean() - world.value(policy)) < 4.5 * slate.std() / np.sqrt(len(slate))


@pytest.mark.parametrize("satiation", [0.0, 0.6])
def test_cascade_weights_recover_the_targets_value(market: Market, satiation: float) -> None:
    world, logging, target = _world(market, satiation)
    log = world.log(np.random.default_rng(6), 120_000, logging, target)
    ratio, reward = _weights(log)
    cascade = (np.cumprod(ratio, axis=1) * reward).sum(axis=1)
    assert abs(cascade.mean() - world.value(target)) < 4.5 * cascade.std() / np.sqrt(len(cascade))
    assert abs(world.value(target) - world.value(logging)) > 0.1


def test_the_model_columns_make_the_cascade_doubly_robust_estimate_unbiased_and_tighter(
    market: Market,
) -> None:
    world, logging, target = _world(market, 0.4)
    log = world.log(np.random.default_rng(7), 120_000, logging, target)
    ratio, reward = _weights(log)
    weight = np.cumprod(ratio, axis=1)
    before = np.concatenate([np.ones((len(weight), 1)), weight[:, :-1]], axis=1)
    to_go = log["baseline_to_go"].to_numpy().reshape(-1, 3)
    to_go_target = log["baseline_to_go_target"].to_numpy().reshape(-1, 3)
    robust = (weight * (reward - to_go) + before * to_go_target).sum(axis=1)
    plain = (weight * reward).sum(axis=1)
    assert abs(robust.mean() - world.value(target)) < 4.5 * robust.std() / np.sqrt(len(robust))
    assert robust.std() < 0.9 * plain.std()


def test_model_columns_by_brute_force(market: Market) -> None:
    world, logging, target = _world(market)
    log = world.log(np.random.default_rng(8), 40, logging, target)
    chance = conditional_probabilities(target, world.order_OL)
    for request in range(40):
        rows = log.slice(3 * request, 3).to_pylist()
        x = int(
            np.flatnonzero(
                (world.user_id == rows[0]["user_id"]) & (world.video_XM == rows[0]["video_id"]).any(1)
            )[0]
        )
        chosen = [int(np.flatnonzero(world.video_XM[x] == row["video_id"])[0]) for row in rows]
        for position, row in enumerate(rows):
            alike = (world.order_OL[:, :position] == chosen[:position]).all(axis=1)
            choice = {}
            for order, p in zip(world.order_OL[alike], chance[x, alike, position], strict=True):
                choice[int(order[position])] = float(p)
            assert sum(choice.values()) == pytest.approx(1.0)
            model = world.baseline_XLM[x, position]
            assert row["baseline"] == pytest.approx(model[chosen[position]])
            assert row["baseline_target"] == pytest.approx(sum(p * model[m] for m, p in choice.items()))
            assert row["target_propensity"] == pytest.approx(choice[chosen[position]])
        assert rows[2]["baseline_to_go"] == pytest.approx(rows[2]["baseline"])
        assert rows[1]["baseline_to_go"] == pytest.approx(
            rows[1]["baseline"] + rows[2]["baseline_to_go_target"]
        )


def test_probabilities_sum_to_one_also_for_a_very_sharp_policy() -> None:
    policy = SlatePolicy(np.array([[0.0, 800.0, -900.0, 5.0]]), explore=0.0)
    order = np.array([[a, b] for a in range(4) for b in range(4) if a != b])
    chance = slate_probabilities(policy, order)
    assert chance.sum() == pytest.approx(1.0)
    assert np.isfinite(chance).all()
    assert (chance > 0).all()


def test_impossible_slates_are_refused(market: Market) -> None:
    with pytest.raises(ConfigError, match="length=9 of candidates=6"):
        build_slate_world(market, np.random.default_rng(0), candidates=6, length=9)
