"""Checkpoints: what is restored, which are kept, what is refused."""

import json

import pytest
import torch

from data.errors import ConfigError, ContractError
from training.checkpoint import KEPT_BEFORE, Progress, load_checkpoint, remove_leftovers, save_checkpoint
from training.distributed import ALONE

PROGRESS = Progress(
    step=5, epoch=1, shard=2, batch=3, seconds=4.5, best_metric=0.25, best_epoch=0, best_step=4
)


def state(fill: float) -> dict[str, torch.Tensor]:
    return {
        "model.weight": torch.full((2, 3), fill), "model.scale": torch.tensor(fill),
        "optimizer.weight.step": torch.tensor(fill),
    }  # fmt: skip


def test_tensors_scalars_progress_and_random_state_come_back(tmp_path):
    torch.manual_seed(3)
    save_checkpoint(tmp_path, state(1.5), PROGRESS, "f", ALONE)
    expected = torch.rand(4)
    torch.manual_seed(99)
    restored = state(0.0)
    alias = restored["model.weight"]
    assert load_checkpoint(tmp_path, restored, "f") == PROGRESS
    assert torch.equal(torch.rand(4), expected)
    assert alias is restored["model.weight"]  # restored in place
    for name, tensor in state(1.5).items():
        assert torch.equal(restored[name], tensor)


def test_a_run_without_a_best_yet(tmp_path):
    save_checkpoint(tmp_path, state(1.0), Progress(step=1), "f", ALONE)
    assert load_checkpoint(tmp_path, state(0.0), "f") == Progress(step=1)
    record = json.loads((tmp_path / "step-000000001" / "progress.json").read_text())
    assert record["best_metric"] is None


def test_the_newest_is_read_and_old_ones_go(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, state(float(step)), Progress(step=step), "f", ALONE)
    assert len(list(tmp_path.glob("step-*"))) == 1 + KEPT_BEFORE
    restored = state(0.0)
    assert load_checkpoint(tmp_path, restored, "f").step == 5
    assert restored["model.scale"] == 5.0


def test_nothing_there(tmp_path):
    assert load_checkpoint(tmp_path, state(0.0), "f") is None


def test_another_config_is_refused(tmp_path):
    save_checkpoint(tmp_path, state(1.0), PROGRESS, "one", ALONE)
    with pytest.raises(ConfigError, match=r"another config.*overwrite=true resume=false"):
        load_checkpoint(tmp_path, state(0.0), "other")


def damaged_tensors(folder):
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def damaged_header(folder):
    (folder / "state.safetensors").write_bytes(b"\xff" * 64)


def missing_tensors(folder):
    (folder / "state.safetensors").unlink()


def other_progress(folder):
    record = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(record | {"unheard": 1}))


@pytest.mark.parametrize("damage", [damaged_tensors, damaged_header, missing_tensors, other_progress])
def test_a_broken_checkpoint_is_refused_in_one_line(tmp_path, damage):
    save_checkpoint(tmp_path, state(1.0), PROGRESS, "f", ALONE)
    damage(tmp_path / "step-000000005")
    with pytest.raises(ContractError, match=r"step-000000005: broken checkpoint \(.*\); delete") as error:
        load_checkpoint(tmp_path, state(0.0), "f")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wanted", [{"model.other": torch.zeros(1)}, {"model.weight": torch.zeros(3, 3)}])
def test_another_shape_is_refused(tmp_path, wanted):
    save_checkpoint(tmp_path, state(1.0), PROGRESS, "f", ALONE)
    with pytest.raises(ContractError, match="broken checkpoint"):
        load_checkpoint(tmp_path, state(0.0) | wanted, "f")


def test_leftovers_of_a_killed_process_go(tmp_path):
    save_checkpoint(tmp_path, state(1.0), PROGRESS, "f", ALONE)
    for name in (".step-000000009.abc", ".model.xyz", ".prepared.q"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
