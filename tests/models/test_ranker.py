"""The ranker's parts against what they mean: funnels, calibration, watch quantiles, value, independence."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.counters import DecayedCounts
from data.errors import ConfigError
from models.calibration import Calibration, calibration_error, normalised_entropy
from models.heads import (
    counterfactual_losses,
    expected_order_value,
    log_probabilities,
    order_value_loss,
    task_losses,
)
from models.ranker import Ranker, RankerShape, UserState
from models.ranker_export import ExportedScorer, can_export, export_scorer
from models.value import ValueFormula
from models.watch import WatchBins, expected_watch_ms, median_watch_ms, ordinal_targets


def test_a_funnel_step_is_its_parents_probability_times_its_own():
    logit = torch.tensor([[0.3, -1.0, 2.0], [-40.0, 40.0, 0.0]], dtype=torch.float64)
    yes, no = log_probabilities(logit, (-1, 0, 1))
    chain = torch.sigmoid(logit).cumprod(-1)
    torch.testing.assert_close(yes.exp(), chain)
    torch.testing.assert_close(no.exp(), 1 - chain)
    assert torch.isfinite(yes).all()
    assert torch.isfinite(no).all()


def test_unknown_labels_take_part_in_no_loss():
    logit = torch.randn(6, 2, requires_grad=True)
    known = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 0.0]] * 3)
    true = torch.ones(6, 2)
    losses = task_losses(logit, true, known, (-1, -1))
    assert losses[1] == 0.0
    losses.sum().backward()
    assert (logit.grad[:3, 0] != 0).all()
    assert (logit.grad[3:] == 0).all()
    assert (logit.grad[:, 1] == 0).all()


def test_counterfactual_loss_is_that_of_all_impressions_not_of_those_that_got_there():
    g = torch.Generator().manual_seed(5)
    size = 200_000
    reach = torch.where(torch.rand(size, generator=g) < 0.5, 0.2, 0.8)
    would = (torch.rand(size, generator=g) < torch.where(reach > 0.5, 0.7, 0.1)).float()
    reached = (torch.rand(size, generator=g) < reach).float()
    logit = torch.stack([torch.logit(reach), torch.full((size,), -0.4)], 1).requires_grad_()
    true, known = torch.stack([reached, would * reached], 1), torch.ones(size, 2)
    loss = counterfactual_losses(logit, true, known, (-1, 0))
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    wanted = cross_entropy(logit[:, 1], would)
    got_there = cross_entropy(logit[reached > 0, 1], would[reached > 0])
    assert loss[0] == 0.0
    assert loss[1].item() == pytest.approx(wanted.item(), rel=0.02)
    assert abs(loss[1].item() - got_there.item()) > 0.05
    loss.sum().backward()
    assert (logit.grad[:, 0] == 0).all(), "the chance of getting there is not bent to lower the loss"
    nobody = counterfactual_losses(logit, torch.zeros(size, 2), known, (-1, 0))
    assert nobody.tolist() == [0.0, 0.0]


@pytest.mark.slow
@pytest.mark.skipif(not can_export(), reason="no C++ compiler to export the ranker with")
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of itself
def test_the_exported_scorer_says_what_the_eager_model_says(tmp_path):
    shape = RankerShape(
        video_rows={"video_id": 20}, video_dense={}, user_rows={"user_age": 5}, user_dense={}, surfaces=3,
        markets=2, tasks=("click", "product_click", "purchase"), parents=(-1, 0, 1), watch_bins=4,
        watch_groups=2, order_value=True, positions=3, user_statistics=6, candidate_statistics=5, field_dim=4,
        dim=8, width=16, heads=2, tastes=3, cross_layers=2, cross_rank=4, experts=2, hidden=8, dropout=0.3,
        attention_steps=64, use_time=True, order_columns=(1, 3),
    )  # fmt: skip
    torch.manual_seed(2)
    model = Ranker(shape).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    export_scorer(model, tmp_path / "scorer.pt2")
    exported = ExportedScorer(model, tmp_path / "scorer.pt2")
    with torch.inference_mode():
        for candidates, steps in ((500, 100), (2, 2), (1, 9), (7, 0), (64, 1)):
            valid = torch.rand(1, steps) < 0.8
            user = UserState(torch.randn(1, 8), torch.randn(1, 16), torch.randn(1, 3),
                             torch.randn(1, steps + 1, 16), valid, torch.randn(1, 3, 8),
                             torch.randn(1))  # fmt: skip
            video = torch.randn(1, candidates, model.videos.width + 8)
            statistics = torch.randn(1, candidates, 5)
            eager, other = (part.score(user, video, statistics) for part in (model, exported))
            torch.testing.assert_close(other.task_BKT, eager.task_BKT, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(other.watch_BKE, eager.watch_BKE, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(other.order_BK2, eager.order_BK2, atol=1e-4, rtol=1e-4)


def test_order_value_recovers_a_lognormal_and_ignores_what_was_not_bought():
    generator = torch.Generator().manual_seed(3)
    value = torch.exp(7.0 + 0.5 * torch.randn(4000, generator=generator))
    value[::2] = -1
    parameter = torch.tensor([5.0, 0.0], requires_grad=True)
    optimizer = torch.optim.Adam([parameter], 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        order_value_loss(parameter.expand(len(value), 2), value).backward()
        optimizer.step()
    bought = value[value > 0]
    assert float(expected_order_value(parameter.detach())) == pytest.approx(float(bought.mean()), rel=0.03)
    assert float(order_value_loss(torch.ones(3, 2), torch.tensor([-1.0, 0.0, -1.0]))) == 0.0


def test_a_few_watches_without_end_are_not_most_of_the_mean():
    generator = np.random.default_rng(0)
    watch = generator.exponential(20_000, 5000).astype(np.int64)
    broken = watch.copy()
    broken[::1000] = 2**31 - 1
    unknown = np.full(5000, -1)
    clean, spoilt = (WatchBins.fit(unknown, each, groups=4, bins=20).mean_ms[0] for each in (watch, broken))
    assert clean[-1] == pytest.approx(watch[watch > np.quantile(watch, 0.95)].mean())
    np.testing.assert_allclose(spoilt[:-1], clean[:-1], rtol=0.05)
    assert spoilt[-1] < 1.25 * clean[-1]


def test_watch_quantiles_are_of_videos_of_like_duration():
    generator = np.random.default_rng(0)
    duration = generator.choice([10_000, 100_000], 8000)
    watch = (duration * generator.random(8000)).astype(np.int64)
    bins = WatchBins.fit(duration, watch, groups=2, bins=10)
    short, long = (bins.group(np.array([d]))[0] for d in (10_000, 100_000))
    assert bins.edge_ms[short, 4] == pytest.approx(5_000, rel=0.06)
    assert bins.edge_ms[long, 4] == pytest.approx(50_000, rel=0.06)
    assert bins.group(np.array([-1]))[0] == 0
    # a head that knows the bin exactly says the bin's mean; one that knows nothing, the group's
    target = ordinal_targets(torch.tensor([52_000.0]), torch.from_numpy(bins.edge_ms[[long]]))
    mean = torch.from_numpy(bins.mean_ms[[long]]).float()
    assert float(expected_watch_ms((target - 0.5) * 100, mean)) == pytest.approx(
        bins.mean_ms[long, 5], rel=0.01
    )
    edge = torch.from_numpy(bins.edge_ms[[long]]).float()
    assert float(median_watch_ms((target - 0.5) * 100, edge, mean)) == pytest.approx(
        bins.edge_ms[long, 4:6].mean(), rel=0.01
    )
    even = torch.logit(torch.arange(9, 0, -1) / 10.0)[None]
    assert float(median_watch_ms(even, edge, mean)) == pytest.approx(50_000, rel=0.06)
    sure = torch.full((2, 9), 50.0) * torch.tensor([[1.0], [-1.0]])
    top, bottom = median_watch_ms(sure, edge.expand(2, -1), mean.expand(2, -1)).tolist()
    assert bins.edge_ms[long, -1] < top < 100_000
    assert 0 < bottom < bins.edge_ms[long, 0]
    assert float(expected_watch_ms(even, mean)) == pytest.approx(watch[duration == 100_000].mean(), rel=0.01)


def test_calibration_mends_a_distorted_probability_per_market_and_keeps_the_order():
    generator = np.random.default_rng(1)
    logit = generator.normal(-1.0, 1.0, 20_000)
    market = generator.integers(0, 3, 20_000)
    true = generator.random(20_000) < 1 / (1 + np.exp(-(logit + np.array([0.0, 1.0, -1.0])[market])))
    distorted = 1 / (1 + np.exp(-(2.0 * logit + 0.7)))[:, None]
    known = np.ones((20_000, 1), bool)
    calibration = Calibration.fit(distorted, true[:, None], known, market, 3)
    after = calibration.apply(distorted, market, (-1,))[:, 0]
    for place in range(3):
        here = market == place
        before, mended = (calibration_error(p[here], true[here]) for p in (distorted[:, 0], after))
        assert mended < 0.03
        assert before > 0.05
        assert (np.diff(after[here][np.argsort(distorted[here, 0])]) >= 0).all()
    assert normalised_entropy(after, true) < normalised_entropy(distorted[:, 0], true)
    assert Calibration.from_json(calibration.to_json()) == calibration


def test_calibration_never_lets_a_funnel_step_exceed_its_parent_and_needs_outcomes():
    few = Calibration.fit(
        np.full((10, 2), 0.5), np.zeros((10, 2), bool), np.ones((10, 2), bool), np.zeros(10, np.int64), 1
    )
    assert few == Calibration.identity(2, 1)
    wild = replace(Calibration.identity(2, 1), bias=((0.0,), (5.0,)))
    p = wild.apply(np.array([[0.3, 0.2]]), np.zeros(1, np.int64), (-1, 0))
    assert p[0, 1] <= p[0, 0]


def test_normalised_entropy_of_the_base_rate_is_one():
    true = np.arange(100) < 20
    assert normalised_entropy(np.full(100, 0.2), true) == pytest.approx(1.0)
    assert np.isnan(normalised_entropy(np.full(3, 0.2), np.zeros(3, bool)))


def test_value_is_its_formula_and_refuses_strangers():
    formula = ValueFormula(version="7", watch_s=0.5, gmv=2.0, tasks={"like": 3.0, "share": 9.0})
    like = np.array([0.1, 0.2], np.float32)
    value = formula.of(
        {"like": like}, np.array([2000.0, 0.0], np.float32), np.array([150.0, 0.0], np.float32), 2
    )
    np.testing.assert_allclose(value, [0.3 + 1.0 + 3.0, 0.6], rtol=1e-6)
    assert ValueFormula.from_json(formula.to_json()) == formula
    assert formula.of({}, None, None, 0).shape == (0,)
    with pytest.raises(ConfigError, match="applause"):
        ValueFormula(version="1", tasks={"applause": 1.0})
    with pytest.raises(ConfigError, match="finite"):
        ValueFormula(version="1", gmv=float("nan"))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 3.0, 30.0]))
def test_decayed_counts_are_the_sum_over_earlier_days(seed, half_life):
    generator = np.random.default_rng(seed)
    entity, day = generator.integers(0, 4, 60), generator.integers(-9, 6, 60)
    amount = generator.random((60, 2)).astype(np.float32)
    table = DecayedCounts.build(entity, day, amount, half_life)
    wanted, at = generator.integers(0, 6, 30), generator.integers(-10, 12, 30)
    slow = np.zeros((30, 2))
    for place in range(30):
        earlier = (entity == wanted[place]) & (day < at[place]) & (wanted[place] > 0)
        weight = 0.5 ** ((at[place] - 1 - day[earlier]) / half_life)
        slow[place] = (amount[earlier] * weight[:, None]).sum(0)
    np.testing.assert_allclose(table.before(wanted, at), slow, atol=1e-5)
    later = at >= 0
    cut = table.since(0)
    np.testing.assert_array_equal(cut.before(wanted[later], at[later]), table.before(wanted, at)[later])
