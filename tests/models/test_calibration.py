"""Calibration beyond Platt: bent curves, few outcomes, markets that differ by chance alone, order values."""

import numpy as np
import pytest

from models.calibration import Calibration, calibration_error

SIZE = 40_000


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


def fitted(p, true, market=None, *, markets=1, isotonic=False):
    market = np.zeros(len(p), np.int64) if market is None else market
    return Calibration.fit(
        p[:, None], true[:, None], np.ones((len(p), 1), bool), market, markets, isotonic=isotonic
    )


def test_isotonic_mends_what_a_line_cannot_and_keeps_the_order():
    g = np.random.default_rng(0)
    logit = g.normal(-1, 1.2, SIZE)
    true = g.random(SIZE) < sigmoid(logit)
    bent = sigmoid(np.where(logit < -1, logit - 1, 0.2 * (logit + 1) - 1))  # flat above, steep below
    nowhere = np.zeros(SIZE, np.int64)
    platt, isotonic = (fitted(bent, true, isotonic=kind) for kind in (False, True))
    errors = [
        calibration_error(c.apply(bent[:, None], nowhere, (-1,))[:, 0], true) for c in (platt, isotonic)
    ]
    assert errors[1] < 0.01 < errors[0]
    grid = np.linspace(1e-6, 1 - 1e-6, 999)[:, None]
    assert (np.diff(isotonic.apply(grid, np.zeros(999, np.int64), (-1,))[:, 0]) >= -1e-12).all()
    assert Calibration.from_json(isotonic.to_json()) == isotonic


@pytest.mark.parametrize("spread", [0.0, 2.5])
def test_few_outcomes_of_a_calibrated_head_hardly_bend_it(spread):
    moved, plain = [], []
    for seed in range(20):
        g = np.random.default_rng(seed)
        p = sigmoid(-4.8 - spread**2 / 2 + g.normal(0, spread, 10_000))
        true = g.random(10_000) < p
        said = fitted(p, true).apply(p[:, None], np.zeros(len(p), np.int64), (-1,))[:, 0]
        moved.append(said.sum() / p.sum() - 1)
        plain.append(true.sum() / p.sum() - 1)
    assert np.std(moved) < 0.4 * np.std(plain)


def test_markets_that_differ_by_chance_get_nearly_one_bias_and_those_that_do_differ_their_own():
    g = np.random.default_rng(4)
    market = g.integers(0, 4, SIZE)
    p = sigmoid(g.normal(-2, 1, SIZE))
    alike = fitted(p, g.random(SIZE) < p, market, markets=4).bias[0]
    assert np.ptp(alike) < 0.1
    shift = np.array([0.0, 0.8, -0.8, 0.0])
    apart = fitted(p, g.random(SIZE) < sigmoid(np.log(p / (1 - p)) + shift[market]), market, markets=4).bias[
        0
    ]
    np.testing.assert_allclose(apart, shift, atol=0.12)


def test_order_values_are_scaled_to_what_was_paid_and_a_currency_is_no_weight():
    g = np.random.default_rng(5)
    market = np.repeat([1, 2, 3], [3000, 3000, 4])
    unit = np.array([1.0, 1.0, 150.0, 1.0])[market]
    said = g.lognormal(3, 0.5, len(market)) * unit
    paid = said * np.where(market == 2, 1.5, 1.1) * g.lognormal(0, 0.3, len(market)) / np.exp(0.045)
    factor = Calibration.identity(1, 4).with_order_values(said, paid, market).order_factor
    assert factor[1] == pytest.approx(1.1, rel=0.03)
    assert factor[2] == pytest.approx(1.5, rel=0.03)
    assert factor[3] == pytest.approx(1.3, rel=0.05), "four purchases say little; the others' mean does"
    assert factor[0] == pytest.approx(1.3, rel=0.05)
