"""Row-wise Adagrad against its formula; what AdamW decays; clipping, learning rates, restored state."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from models.embeddings import FeatureBatch, PlainTables, bag_means, initial_rows
from training.optimizers import (
    ADAGRAD_EPSILON,
    AVERAGE_EVERY,
    AVERAGE_EVERY_FROM,
    Optimizers,
    RowWiseAdagrad,
    build_adamw,
    dense_state,
    gradient_by_row,
    warmup,
)


def bags(values: list[list[int]]) -> FeatureBatch:
    flat = torch.tensor([row for bag in values for row in bag], dtype=torch.int64)
    offsets = torch.tensor(np.r_[0, np.cumsum([len(bag) for bag in values])], dtype=torch.int64)
    return FeatureBatch({"tags": (flat, offsets)}, {}, len(values))


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6), st.integers(1, 4))
def test_row_wise_adagrad_is_its_formula_on_touched_rows(values, steps):
    """The expected gradient comes from dense lookups of a copy; repeated ids add up before squaring."""
    torch.manual_seed(0)
    tables = PlainTables({"tags": 10}, 4, dense_rows=5)
    table = tables.weights["tags"]
    expected, total = table.detach().double().clone(), torch.zeros(10, dtype=torch.float64)
    optimizer = RowWiseAdagrad([table], 0.1)
    goal = torch.randn(len(values), 4)
    for _ in range(steps):
        dense = PlainTables({"tags": 10}, 4)
        dense.weights["tags"].data.copy_(expected)
        loss = ((dense(bags(values)) - goal) ** 2).sum()
        if loss.requires_grad:  # not where every bag is empty
            loss.backward()
        optimizer.zero_grad()
        loss = ((tables(bags(values)) - goal) ** 2).sum()
        if loss.requires_grad:
            loss.backward()
            assert table.grad.is_sparse
        optimizer.step()
        if dense.weights["tags"].grad is not None:
            gradient = dense.weights["tags"].grad.double()
            total += gradient.square().mean(1)
            expected -= 0.1 * gradient / (total.sqrt() + ADAGRAD_EPSILON)[:, None]
    np.testing.assert_allclose(table.detach(), expected, atol=1e-4)
    np.testing.assert_allclose(optimizer.total_of(table), total, rtol=1e-3, atol=1e-6)


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6))
def test_bag_means_are_those_of_torch(values):
    """Forward and backward, with bags of several values, of one and of none."""
    batch = bags(values).bags["tags"]
    weights = [
        torch.randn(10, 4, generator=torch.Generator().manual_seed(1), requires_grad=True) for _ in "ab"
    ]
    goal = torch.randn(len(values), 4)
    if not batch[0].numel():
        return
    ours = bag_means(weights[0], *batch)
    theirs = F.embedding_bag(batch[0], weights[1], batch[1], mode="mean", include_last_offset=True)
    for found in (ours, theirs):
        (found * goal).sum().backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(weights[0].grad, weights[1].grad)


@pytest.mark.parametrize("lookups", [0, 1, 50])
def test_gradient_by_row_is_coalesce(lookups):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(7, (1, lookups), generator=generator)
    gradient = torch.sparse_coo_tensor(
        rows, torch.randn(lookups, 3, generator=generator), (7, 3), check_invariants=True
    )
    found, expected = gradient_by_row(gradient), gradient.coalesce()
    assert found[0].equal(expected.indices()[0])
    torch.testing.assert_close(found[1], expected.values())


def test_small_tables_stay_dense():
    tables = PlainTables({"tags": 10}, 4, dense_rows=10)
    tables(bags([[1, 2]])).sum().backward()
    assert not tables.weights["tags"].grad.is_sparse


class Model(nn.Module):
    """A table, a matrix, a bias and a table that another optimizer trains."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = PlainTables({"small": 3, "large": 9}, 2, dense_rows=5)
        self.linear = nn.Linear(2, 2)
        self.side = nn.ModuleDict({"tables": PlainTables({"x": 3}, 2)})


def test_only_matrices_of_the_dense_part_decay():
    model = Model()
    optimizer = build_adamw(model, 0.1, 0.5, leave_out={"tables.weights.large"})
    decay, keep = (group["params"] for group in optimizer.param_groups)
    assert decay == [model.linear.weight]
    kept = [model.tables.weights["small"], model.linear.bias, model.side["tables"].weights["x"]]
    assert {id(p) for p in keep} == {id(p) for p in kept}


def test_tables_of_one_part_of_the_model_can_decay_at_a_rate_of_their_own():
    model = Model()
    groups = build_adamw(model, 0.1, 0.5, table_decay=("side.", 3.0)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 3.0]
    assert groups[2]["params"] == [model.side["tables"].weights["x"]]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_rates_follow_the_factor_and_gradients_are_forgotten():
    model = Model()
    both = Optimizers(
        build_adamw(model, 0.1, 0.0, leave_out={"tables.weights.large"}),
        RowWiseAdagrad([model.tables.weights["large"]], 0.5),
    )
    model.linear.weight.grad = torch.ones(2, 2)
    both.begin_step(0.5)
    assert model.linear.weight.grad is None
    assert [group["lr"] for part in both.all for group in part.param_groups] == [0.05, 0.05, 0.25]
    both.begin_step(1.0)
    assert [group["lr"] for part in both.all for group in part.param_groups] == [0.1, 0.1, 0.5]


def test_clipping_leaves_large_tables_alone():
    model = Model()
    both = Optimizers(
        build_adamw(model, 0.1, 0.0, leave_out={"tables.weights.large"}),
        RowWiseAdagrad([model.tables.weights["large"]], 0.5),
    )
    features = FeatureBatch(
        {name: (torch.tensor([1]), torch.tensor([0, 1])) for name in ("small", "large")}, {}, 1
    )
    (100 * model.linear(model.tables(features))).sum().backward()
    before = model.tables.weights["large"].grad.to_dense().clone()
    norm = both.clip(1.0)
    dense = [p.grad for p in (*model.linear.parameters(), model.tables.weights["small"])]
    assert norm > 10
    assert torch.stack([g.norm() for g in dense]).norm() == pytest.approx(1.0, abs=1e-4)
    assert torch.equal(model.tables.weights["large"].grad.to_dense(), before)


def test_restored_state_continues_exactly():
    def step(model: nn.Linear, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        model(torch.full((1, 3), float(seed))).square().sum().backward()
        optimizer.step()

    def made() -> tuple[nn.Linear, torch.optim.AdamW, dict]:
        torch.manual_seed(1)
        model = nn.Linear(3, 2)
        return model, build_adamw(model, 0.1, 0.01), {p: n for n, p in model.named_parameters()}

    straight, optimizer, names = made()
    for seed in range(3):
        step(straight, optimizer, seed)
    kept = {name: value.clone() for name, value in dense_state(optimizer, names).items()}
    weights = {name: value.clone() for name, value in straight.state_dict().items()}
    step(straight, optimizer, 9)

    resumed, optimizer, names = made()
    resumed.load_state_dict(weights)
    for name, value in dense_state(optimizer, names).items():
        value.copy_(kept[name])
    step(resumed, optimizer, 9)
    assert set(kept) == {f"{n}.{s}" for n in weights for s in ("step", "exp_avg", "exp_avg_sq")}
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_within_the_model_has_its_averaged_weights():
    model = nn.Linear(2, 1, bias=False)
    both = Optimizers(build_adamw(model, 0.1, 0.0), average=0.9)
    expected = model.weight.detach().clone()
    for step in range(1, AVERAGE_EVERY_FROM + 2 * AVERAGE_EVERY):
        both.begin_step(1.0)
        model(torch.ones(1, 2)).sum().backward()
        both.step()
        both.follow(step)
        if step < AVERAGE_EVERY_FROM or step % AVERAGE_EVERY == 0:
            every = 1 if step < AVERAGE_EVERY_FROM else AVERAGE_EVERY
            share = min(0.9, (1 + step) / (10 + step)) ** every
            expected = share * expected + (1 - share) * model.weight.detach()
    last = model.weight.detach().clone()
    with both.averaged():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, last)
    assert not torch.allclose(last, expected)
    torch.testing.assert_close(both.averages[model.weight], expected)


def test_without_an_average_the_weights_stay_as_they_are():
    model = nn.Linear(2, 1)
    plain = Optimizers(build_adamw(model, 0.1, 0.0))
    before = model.weight.detach().clone()
    plain.follow(AVERAGE_EVERY)
    with plain.averaged():
        assert torch.equal(model.weight, before)
    assert not plain.averages


def test_warmup():
    assert [warmup(4)(step) for step in (0, 1, 3, 100)] == [0.25, 0.5, 1.0, 1.0]
    assert warmup(0)(0) == 1.0
    falling = warmup(2, 8)
    assert [round(falling(step), 6) for step in (0, 4, 8, 100)] == [0.5, 0.5, 0.0, 0.0]


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 5))
def test_a_table_starts_equal_however_it_is_cut(begin, length, seed):
    whole = initial_rows(seed, 0, 6000, 3)
    np.testing.assert_array_equal(initial_rows(seed, begin, begin + length, 3), whole[begin : begin + length])


def test_a_new_table_is_normal():
    rows = initial_rows(5, 0, 5000, 8)
    assert float(rows.std()) == pytest.approx(0.02, rel=0.02)
    assert float(rows.mean()) == pytest.approx(0.0, abs=1e-3)
    assert len(torch.unique(rows, dim=0)) == 5000
