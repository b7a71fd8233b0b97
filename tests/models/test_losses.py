"""The retrieval losses against plain definitions, and the sampled loss against the full one."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.negatives import MixedSampler
from models import losses
from models.losses import Moving, Targets, ignored_loss, outcome_loss, softmax_loss


def world(positives: int = 40, catalogue: int = 30, dim: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "user": torch.randn(positives, dim, generator=g, dtype=torch.float64, requires_grad=True),
        "video": torch.randn(catalogue, dim, generator=g, dtype=torch.float64, requires_grad=True),
        "target": torch.randint(0, catalogue, (positives,), generator=g),
        "weight": torch.rand(positives, generator=g, dtype=torch.float64),
        "temperature": torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
        "hidden": torch.zeros(positives, 0, dtype=torch.int64),
    }


def sampled_softmax(user, video, target, weight, temperature, hidden, correction):
    return softmax_loss(user, video, Targets.single(target, weight, hidden), temperature, correction)


def full(w: dict[str, torch.Tensor]) -> torch.Tensor:
    targets = Targets.single(w["target"], w["weight"], w["hidden"])
    return softmax_loss(w["user"], w["video"], targets, w["temperature"])


def gradients(loss: torch.Tensor, w: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [w["user"], w["video"], w["temperature"]]))


@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
def test_full_softmax_is_weighted_cross_entropy(at_once, monkeypatch):
    monkeypatch.setattr(losses, "SCORES_AT_ONCE", at_once)
    w = world()
    ours = full(w)
    logit = w["user"] @ w["video"].T / w["temperature"]
    plain = (F.cross_entropy(logit, w["target"], reduction="none") * w["weight"]).sum() / w["weight"].sum()
    torch.testing.assert_close(ours, plain)
    for got, expected in zip(gradients(ours, w), gradients(plain, w), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_float32_says_what_double_says(temperature):
    """Kernels of their own, in place, on rows of no round number of videos; scores up to some hundreds."""
    double = world(positives=70, catalogue=3_001)
    double["temperature"] = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    double["hidden"] = torch.randint(0, 3_001, (70, 30), generator=torch.Generator().manual_seed(1))
    single = {
        name: part.detach().float().requires_grad_(part.requires_grad) if part.is_floating_point() else part
        for name, part in double.items()
    }
    ours, expected = full(single), full(double)
    torch.testing.assert_close(ours.double(), expected, rtol=2e-6, atol=0)
    for got, want in zip(gradients(ours, single), gradients(expected, double), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-5 * want.abs().max().item())


def test_hidden_videos_leave_the_denominator_but_not_as_targets():
    w = world()
    w["hidden"] = torch.stack([w["target"], (w["target"] + 1) % 30, torch.full((40,), 4)], dim=1)
    logit = w["user"] @ w["video"].T / w["temperature"]
    mask = torch.zeros_like(logit, dtype=torch.bool).scatter(1, w["hidden"], True)
    mask.scatter_(1, w["target"][:, None], False)
    plain = F.cross_entropy(logit.masked_fill(mask, float("-inf")), w["target"], reduction="none")
    expected = (plain * w["weight"]).sum() / w["weight"].sum()
    torch.testing.assert_close(full(w), expected)
    for got, want in zip(gradients(full(w), w), gradients(expected, w), strict=True):
        torch.testing.assert_close(got, want)
    everything = torch.zeros(30, dtype=torch.float64)
    sampled = sampled_softmax(
        w["user"], w["video"], w["target"], w["weight"], w["temperature"], w["hidden"], everything
    )
    torch.testing.assert_close(sampled, expected)


def test_several_targets_of_a_query_are_a_multinomial_among_candidates_that_move():
    """Against the definition, with a mask: hidden videos, several targets, two days of a trend."""
    g = torch.Generator().manual_seed(3)
    queries, catalogue, dim, columns = 7, 12, 5, 2
    user = torch.randn(queries, dim + columns, generator=g, dtype=torch.float64, requires_grad=True)
    video = torch.randn(catalogue, dim, generator=g, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    count = torch.tensor([1, 3, 2, 1, 4, 1, 2])
    query = torch.repeat_interleave(torch.arange(queries), count)
    target = torch.cat([torch.randperm(catalogue, generator=g)[:n] for n in count.tolist()])
    weight = torch.rand(len(target), generator=g, dtype=torch.float64)
    hidden = torch.randint(0, catalogue, (queries, 4), generator=g)
    days = [torch.randn(catalogue, columns, generator=g, dtype=torch.float64) for _ in range(2)]
    targets = Targets(np.r_[0, count.cumsum(0).numpy()], query, target, weight, hidden)
    ours = softmax_loss(user, video, targets, temperature, None, Moving([0, 3, queries], days))

    moved = torch.cat([user[:3, dim:] @ days[0].T, user[3:, dim:] @ days[1].T])
    score = (user[:, :dim] @ video.T + moved) / temperature
    away = torch.zeros(queries, catalogue, dtype=torch.bool).scatter(1, hidden, True)
    away[query, target] = False
    log_share = torch.log_softmax(score.masked_fill(away, float("-inf")), dim=1)
    plain = -(log_share[query, target] * weight).sum() / weight.sum()
    torch.testing.assert_close(ours, plain)
    parts = [user, video, temperature]
    expected = torch.autograd.grad(plain, parts)
    for got, want in zip(torch.autograd.grad(ours, parts), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_zero_weights_give_zero_loss_and_gradient():
    w = world()
    loss = full(w | {"weight": torch.zeros(40, dtype=torch.float64)})
    assert loss.item() == 0.0
    assert all(torch.count_nonzero(g) == 0 for g in gradients(loss, w))


def test_weights_are_relative():
    w = world()
    one = full(w)
    two = full(w | {"weight": w["weight"] * 5})
    torch.testing.assert_close(one, two)


def sampled_gradient(w, frequency, n_uniform, seed) -> list[torch.Tensor]:
    """Gradient of the sampled loss for one draw; rows are 1‥N in the sampler, 0‥N−1 in the world."""
    g = np.random.default_rng(seed)
    sampler = MixedSampler(np.concatenate([[0.0], frequency]), np.arange(1, len(frequency) + 1), n_uniform)
    # the batch's positives are themselves a draw from the positives' distribution
    in_batch = g.choice(len(frequency), size=n_uniform, p=frequency / frequency.sum()) + 1
    drawn = sampler.draw(in_batch, w["target"].numpy() + 1, g)
    rows = torch.from_numpy(drawn.rows - 1)
    target = torch.from_numpy(np.searchsorted(drawn.rows, w["target"].numpy() + 1))
    correction = torch.from_numpy(drawn.log_correction).double()
    loss = sampled_softmax(
        w["user"], w["video"][rows], target, w["weight"], w["temperature"], w["hidden"], correction
    )
    return gradients(loss, w)


def relative_error(w, frequency, n_uniform, draws) -> float:
    exact = gradients(full(w), w)[1]
    samples = [sampled_gradient(w, frequency, n_uniform, seed)[1] for seed in range(draws)]
    errors = [((s - exact).norm() / exact.norm()).item() for s in samples]
    return float(np.mean(errors))


def test_sampled_gradient_converges_to_the_full_softmax():
    w = world(catalogue=200)
    frequency = np.random.default_rng(3).pareto(1.2, 200) + 0.05
    errors = [relative_error(w, frequency, n, draws=12) for n in (50, 800, 12800)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.05
    # Monte Carlo: sixteen times the samples, about a quarter of the error
    assert errors[2] < errors[1] / 2.5


def test_without_the_correction_popular_videos_are_pushed_down_too_far():
    """In-batch negatives alone over-sample popular videos; logQ takes exactly that out."""
    w = world(positives=400, catalogue=60)
    frequency = np.r_[np.full(5, 50.0), np.full(55, 1.0)]
    g = np.random.default_rng(0)
    target = torch.from_numpy(g.choice(60, 400, p=frequency / frequency.sum()))
    sampler = MixedSampler(np.concatenate([[0.0], frequency]), np.arange(1, 61), 0)
    drawn = sampler.draw(target.numpy() + 1, np.zeros(0, np.int64), g)
    rows = torch.from_numpy(drawn.rows - 1)
    local = torch.from_numpy(np.searchsorted(drawn.rows, target.numpy() + 1))
    weight = torch.ones(400, dtype=torch.float64)

    def popular_pull(correction: torch.Tensor) -> float:
        video = w["video"].detach()[rows].requires_grad_()
        user = torch.ones(400, 8, dtype=torch.float64)
        bias = torch.zeros(len(rows), dtype=torch.float64, requires_grad=True)
        with_bias = torch.cat([video, bias[:, None]], 1)
        users = torch.cat([user, torch.ones(400, 1, dtype=torch.float64)], 1)
        loss = sampled_softmax(users, with_bias, local, weight, torch.tensor(1.0), w["hidden"], correction)
        (gradient,) = torch.autograd.grad(loss, bias)
        return gradient[rows < 5].sum().item()  # positive = pushed down

    counts = np.bincount(np.searchsorted(drawn.rows, target.numpy() + 1), minlength=len(rows))
    uncorrected = torch.from_numpy(np.log(counts)).double()
    corrected = torch.from_numpy(drawn.log_correction).double()
    assert popular_pull(uncorrected) > popular_pull(corrected) + 0.1


def test_an_accidental_hit_is_masked():
    """The target drawn as a negative as well changes nothing: it stands once, uncorrected."""
    user, video = torch.randn(1, 4), torch.randn(3, 4)
    args = (torch.tensor([0]), torch.ones(1), torch.tensor(1.0), torch.zeros(1, 0, dtype=torch.int64))
    once = sampled_softmax(user, video, *args, torch.tensor([float("-inf"), 0.0, 0.0]))
    hit = sampled_softmax(user, video, *args, torch.tensor([2.0, 0.0, 0.0]))
    torch.testing.assert_close(once, hit)


def test_mixture_expectation_is_exact():
    """Over many draws the mean of exp(correction) of every video is 1: Q is the mixture's own."""
    frequency = np.array([5.0, 3.0, 1.0, 0.0])
    sampler = MixedSampler(np.concatenate([[0.0], frequency]), np.arange(1, 5), 6)
    g = np.random.default_rng(0)
    total = np.zeros(5)
    draws = 4000
    for _ in range(draws):
        positives = g.choice(4, size=5, p=frequency / frequency.sum()) + 1
        drawn = sampler.draw(positives, np.zeros(0, np.int64), g)
        total[drawn.rows] += np.exp(drawn.log_correction)
    np.testing.assert_allclose(total[1:] / draws, 1.0, atol=0.05)


def test_history_videos_and_the_unknown_row_are_no_negatives():
    sampler = MixedSampler(np.array([0.0, 1.0, 1.0, 1.0]), np.arange(1, 4), 0)
    drawn = sampler.draw(np.array([1]), np.array([0, 3]), np.random.default_rng(0))
    assert drawn.rows.tolist() == [0, 1, 3]
    assert np.isneginf(drawn.log_correction[[0, 2]]).all()
    assert np.isfinite(drawn.log_correction[1])


def test_ignored_loss_is_weighted_log_loss_of_what_is_known():
    w = world(positives=6)
    contrast = torch.tensor([0.7, -0.4, 0.0, 0.2, -0.4, 0.0], dtype=torch.float64)
    targets = Targets.single(w["target"], w["weight"], w["hidden"])
    bias = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ours = ignored_loss(w["user"], w["video"], targets, contrast, w["temperature"], bias)
    score = (w["user"] * w["video"][w["target"]]).sum(1) / w["temperature"] + bias
    engaged, ignored = -F.logsigmoid(score), -F.logsigmoid(-score)
    expected = 0.7 * engaged[0] + 0.2 * engaged[3] + 0.4 * (ignored[1] + ignored[4])
    torch.testing.assert_close(ours, expected / w["weight"].sum())
    # an engaged video is drawn near, an ignored one pushed off, of the others nothing is learnt
    gradient_ND = torch.autograd.grad(ours, w["user"])[0]
    along = (gradient_ND * w["video"][w["target"]]).sum(1)
    assert (along[[0, 3]] < 0).all()
    assert (along[[1, 4]] > 0).all()
    assert not gradient_ND[[2, 5]].any()


def test_ignored_loss_adds_what_moves_from_day_to_day():
    w, extra = world(), torch.randn(40, 2, dtype=torch.float64)
    targets = Targets.single(w["target"], w["weight"], w["hidden"])
    days = [torch.randn(30, 2, dtype=torch.float64) for _ in range(2)]
    contrast = torch.randn(40, dtype=torch.float64)
    bias = torch.zeros((), dtype=torch.float64)
    user = torch.cat([w["user"], extra], dim=1)
    ours = ignored_loss(
        user, w["video"], targets, contrast, w["temperature"], bias, Moving([0, 15, 40], days)
    )
    whole = 0.0
    for day, own in zip(days, (slice(0, 15), slice(15, 40)), strict=True):
        part = Targets.single(w["target"][own], w["weight"][own], w["hidden"][own])
        video = torch.cat([w["video"], day], dim=1)
        loss = ignored_loss(user[own], video, part, contrast[own], w["temperature"], bias)
        whole = whole + loss * w["weight"][own].sum()
    torch.testing.assert_close(ours, whole / w["weight"].sum())


@pytest.mark.parametrize(("contrast", "weight"), [(0.0, 1.0), (-1.0, 0.0)])
def test_ignored_loss_is_nothing_without_outcomes_or_without_positives(contrast, weight):
    w = world()
    w["weight"][:] = weight
    targets = Targets.single(w["target"], w["weight"], w["hidden"])
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = ignored_loss(w["user"], w["video"], targets, torch.full((40,), contrast), w["temperature"], bias)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, bias)[0].item() == 0.0


def test_outcome_loss_is_log_loss_of_what_is_known_to_have_come():
    w = world(positives=5)
    targets = Targets.single(w["target"], w["weight"], w["hidden"])
    outcome = torch.tensor([1, -1, 0, 1, 0], dtype=torch.int8)
    ours = outcome_loss(w["user"].float(), w["video"].float(), targets, outcome)
    log_odds = (w["user"] * w["video"][w["target"]]).sum(1)
    known = [0, 1, 3]
    expected = F.binary_cross_entropy_with_logits(
        log_odds[known], torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), reduction="sum"
    )
    torch.testing.assert_close(ours.double(), expected / w["weight"].sum(), rtol=1e-5, atol=1e-6)
    assert not torch.autograd.grad(ours, w["user"])[0][[2, 4]].any()
    nothing = outcome_loss(w["user"].float(), w["video"].float(), targets, torch.zeros(5, dtype=torch.int8))
    assert nothing.item() == 0.0
