"""Training on a CUDA device against training on the CPU: steps, precision, checkpoints, late losses."""

import numpy as np
import pytest
import torch

from data.errors import ConfigError
from data.history import UserHistory, UserRequest
from data.loader import LoaderPosition, SequenceLoader
from data.targets import TargetWeights
from models.embeddings import PlainTables, dense_widths, table_rows
from models.inference import UserEncoder, embed_catalogue
from models.layers import BlockKind
from models.losses import Targets, softmax_loss
from models.similarity import Similarity
from models.two_tower import TwoTower, TwoTowerShape
from tests.training.worlds import checkerboard
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.distributed import ALONE
from training.late_loss import LateLoss
from training.placement import OneProcess, Task, UpdateRule
from training.precision import Precision, stepping
from training.prefetch import prefetch
from training.retrieval import RetrievalObjective

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return checkerboard(tmp_path_factory.mktemp("world") / "prepared", users=200)


def placement_of(prepared, device, precision, *, block=BlockKind.sasrec, large_tables=False):
    shape = TwoTowerShape(
        video_rows=table_rows(prepared.spec, "video"), video_dense=dense_widths(prepared.spec, "video"),
        user_rows=table_rows(prepared.spec, "user"), user_dense=dense_widths(prepared.spec, "user"),
        surfaces=2, dim=16, layers=2, heads=2, dropout=0.0, block=block, max_steps=16, use_time=True,
        use_position=True, similarity=Similarity.cosine,
    )  # fmt: skip
    torch.manual_seed(3)
    rows = 8 if large_tables else 10**9
    model = TwoTower(shape, tables=lambda of, dim: PlainTables(of, dim, dense_rows=rows))
    objective = RetrievalObjective(prepared, device, 0.0, None)
    task = Task(
        model, lambda batch: objective.loss(model, batch), around=lambda: stepping(precision, device)
    ).to(device)
    rule = UpdateRule(learning_rate=0.003, weight_decay=0.01, dense_table_rows=rows, table_learning_rate=0.02)
    return model, OneProcess(task, rule)


def losses(prepared, placement, *, n_uniform, steps=40):
    loader = SequenceLoader(
        prepared, TargetWeights({"click": 1.0}, 0.0), tokens=400, max_steps=16, n_uniform=n_uniform, seed=1
    )
    found = []
    pin = next(placement.task.parameters()).is_cuda
    while len(found) < steps:
        for batch, _ in prefetch(loader, pin=pin):
            placement.optimizers.begin_step(1.0)
            loss = placement.loss(batch)
            loss.backward()
            placement.optimizers.clip(1.0)
            placement.optimizers.step()
            found.append(loss.detach())
    return torch.stack(found[:steps]).cpu().numpy()


@pytest.mark.parametrize("n_uniform", [None, 16])
@pytest.mark.parametrize("large_tables", [False, True])
def test_float32_training_on_cuda_is_training_on_the_cpu(prepared, n_uniform, large_tables):
    on_cpu, on_cuda = (
        losses(
            prepared,
            placement_of(prepared, device, Precision.float32, large_tables=large_tables)[1],
            n_uniform=n_uniform,
        )
        for device in (CPU, CUDA)
    )
    np.testing.assert_allclose(on_cuda, on_cpu, rtol=2e-3)
    np.testing.assert_allclose(on_cuda[:5], on_cpu[:5], rtol=2e-5)
    assert on_cpu[-5:].mean() < on_cpu[:5].mean()


@pytest.mark.parametrize("block", list(BlockKind))
@pytest.mark.parametrize("n_uniform", [None, 16])
def test_bfloat16_learns_as_float32_does(prepared, block, n_uniform):
    full, low = (
        losses(
            prepared, placement_of(prepared, CUDA, precision, block=block)[1], n_uniform=n_uniform, steps=120
        )
        for precision in (Precision.float32, Precision.bfloat16)
    )
    np.testing.assert_allclose(low[0], full[0], rtol=0.003)
    np.testing.assert_allclose(low[:5], full[:5], rtol=0.04)
    assert low[-20:].mean() == pytest.approx(full[-20:].mean(), rel=0.05)


@pytest.mark.parametrize("sampled", [False, True])
def test_the_loss_rounds_products_alone(sampled):
    g = torch.Generator().manual_seed(0)
    user, video = torch.randn(300, 64, generator=g), torch.randn(5000, 64, generator=g)
    user, video = (torch.nn.functional.normalize(t) for t in (user, video))
    target = torch.randint(0, 5000, (300,), generator=g)
    hidden = torch.randint(0, 5000, (300, 7), generator=g)
    correction = torch.randn(5000, generator=g)
    correction[::3] = -torch.inf

    def loss_and_gradient(device, autocast):
        parts = [t.to(device, copy=True).requires_grad_() for t in (user, video)]
        targets = Targets.single(target.to(device), torch.ones(300, device=device), hidden.to(device))
        temperature = torch.tensor(0.08, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = softmax_loss(*parts, targets, temperature, correction.to(device) if sampled else None)
        loss.backward()
        return loss.detach().cpu(), *(part.grad.cpu() for part in parts)

    wanted = loss_and_gradient("cpu", False)
    for autocast, tolerance in ((False, 1e-5), (True, 0.01)):
        for got, want in zip(loss_and_gradient("cuda", autocast), wanted, strict=True):
            assert (got - want).norm() <= tolerance * want.norm()


def test_a_checkpoint_from_cuda_is_restored_on_the_cpu(prepared, tmp_path):
    _, trained = placement_of(prepared, CUDA, Precision.float32, large_tables=True)
    losses(prepared, trained, n_uniform=None, steps=10)
    save_checkpoint(tmp_path, trained.state(), Progress(step=10), "f", ALONE)
    _, restored = placement_of(prepared, CPU, Precision.float32, large_tables=True)
    assert load_checkpoint(tmp_path, restored.state(), "f").step == 10
    for name, tensor in trained.state().items():
        torch.testing.assert_close(restored.state()[name], tensor.cpu(), rtol=0, atol=0)
    after = [losses(prepared, placement, n_uniform=None, steps=5) for placement in (trained, restored)]
    np.testing.assert_allclose(*after, rtol=1e-4)


def test_vectors_of_users_and_videos_agree(prepared):
    vectors = []
    for device in (CPU, CUDA):
        model, _ = placement_of(prepared, device, Precision.float32)
        video_ND = embed_catalogue(model.eval(), prepared.video_table)
        encoder = UserEncoder(model, prepared.user_table, video_ND, str(device))
        vectors.append((video_ND, encoder.encode([UserRequest(1, UserHistory.empty(), 10**12)])))
    for on_cpu, on_cuda in zip(*vectors, strict=True):
        np.testing.assert_allclose(on_cuda, on_cpu, atol=1e-5)


def test_pinned_batches_are_what_the_loader_made(prepared):
    def batches(pin):
        loader = SequenceLoader(
            prepared, TargetWeights({"click": 1.0}, 0.0), tokens=400, max_steps=16, n_uniform=8, seed=1
        )
        return list(prefetch(loader, pin=pin))

    for (plain, at), (pinned, there) in zip(batches(False), batches(True), strict=True):
        assert at == there != LoaderPosition()
        for name in plain.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(plain, name), getattr(pinned, name))
        assert torch.from_numpy(pinned.video_BS).is_pinned()


def test_the_late_loss_is_that_of_the_step_before():
    late = LateLoss()
    assert late.last() == 0.0
    values = [late.after(torch.tensor(float(n), device="cuda")) for n in range(1, 5)]
    assert values == [1.0, 1.0, 2.0, 3.0]
    assert late.last() == 4.0
    late.after(torch.tensor(float("nan"), device="cuda"))
    assert np.isnan(late.last())


def test_auto_is_bfloat16_on_cuda_and_float32_on_cpu():
    assert Precision.auto.on(CUDA) is Precision.bfloat16
    assert Precision.auto.on(CPU) is Precision.float32
    with pytest.raises(ConfigError, match="precision=bfloat16"):
        Precision.bfloat16.on(CPU)
