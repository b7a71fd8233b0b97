"""Refitting: what follows selecting learns from validation too, starts from the best epoch, and is told."""

import json

import pytest
import torch
from safetensors.torch import load_file

from data.prepared import Prepared
from data.trend import training_end_ms
from tests.training.running import records, train
from tests.training.worlds import checkerboard


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refit")
    checkerboard(folder / "prepared")
    return folder


def run(world, name: str, *more: str):
    assert train(f"prepared={world}/prepared", f"out={world}/{name}", "model.max_epochs=3", *more) == 0
    return world / name


def test_it_goes_on_from_the_best_epoch_on_training_and_validation(world):
    alone = run(world, "alone")
    refit = run(world, "refit", "model.refit_epochs=2")
    first, both = records(alone), records(refit)
    assert {step: both[step] for step in first} == first  # selecting is the same
    assert len(both) > len(first)
    assert records(refit, "validation/ndcg@20") == records(alone, "validation/ndcg@20")
    assert json.loads((alone / "run.json").read_text())["splits"] == 1
    record = json.loads((refit / "run.json").read_text())
    assert record["splits"] == 2
    assert record["best"]["epoch"] == json.loads((alone / "run.json").read_text())["best"]["epoch"]
    before, after = (load_file(path / "model" / "model.safetensors") for path in (alone, refit))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_time_that_is_used_up_leaves_the_model_that_there_is(world):
    out = run(world, "hurried", "model.refit_epochs=2", "max_minutes=1e-9")
    assert list(records(out)) == [1, 2]  # one step selects, one refits
    assert (out / "model" / "model.safetensors").exists()
    # with more time selecting goes on, and what had followed it is void
    run(world, "hurried", "model.refit_epochs=2", "resume=true")
    straight = run(world, "unhurried", "model.refit_epochs=2")
    assert set(records(out)) == set(records(straight))


def test_a_finished_run_is_left_alone(world, capsys):
    out = run(world, "finished", "model.refit_epochs=1")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    run(world, "finished", "model.refit_epochs=1", "resume=true")
    assert "finished already, nothing to do (epochs)" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_its_days_end_where_the_test_split_begins(world):
    prepared = Prepared.open(world / "prepared")
    prepared.manifest["split"] |= {"validation_ms": 5, "test_ms": 9}
    assert (training_end_ms(prepared), training_end_ms(prepared, 2)) == (5, 9)
