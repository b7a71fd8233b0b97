"""Straight training = killed with SIGKILL at any step and resumed; what resuming refuses, and how."""

import json
import random
import signal

import pytest
import torch

from tests.training.running import finish, records, spawn, train, wait_for
from tests.training.worlds import checkerboard

WORDS = ("model.max_epochs=12", "model.patience=12", "checkpoint_steps=3")
REFIT = "model.refit_epochs=4"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    checkerboard(folder / "prepared")
    return folder


def words_for(world, name: str, *more: str) -> tuple[str, ...]:
    return (f"prepared={world}/prepared", f"out={world}/{name}", *WORDS, *more)


@pytest.mark.slow
def test_killed_at_random_steps_and_resumed_equals_straight(world):
    """Dropout and id dropout are on: the random state is part of what a checkpoint keeps.

    Kills may fall into refitting as well.
    """
    assert train(*words_for(world, "straight", REFIT)) == 0
    expected = records(world / "straight")
    draw = random.Random(7)
    out = world / "killed"
    for attempt in range(2):
        process = spawn(*words_for(world, "killed", REFIT, "resume=true"))
        steps = len(expected) * (attempt + draw.random()) / 3
        wait_for(lambda: (out / "metrics.jsonl").exists() and lines(out) > steps, process)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        assert finish([process])[0][0] == -signal.SIGKILL
        assert max(records(out), default=0) < max(expected)
    assert train(*words_for(world, "killed", REFIT, "resume=true")) == 0
    assert records(out) == expected
    for metric in ("train/gradient_norm", "validation/ndcg@20"):
        assert records(out, metric) == records(world / "straight", metric)
    for name in ("model.safetensors", "model.json"):
        assert (out / "model" / name).read_bytes() == (world / "straight" / "model" / name).read_bytes()
    assert not [path for path in out.rglob(".*") if path.is_dir()], "half-written directories stay behind"


def lines(out) -> int:
    return (out / "metrics.jsonl").read_bytes().count(b"\n")


@pytest.fixture(scope="module")
def finished(world):
    assert train(*words_for(world, "finished", "model.max_epochs=2")) == 0
    return world / "finished"


def test_resuming_a_finished_run_changes_nothing_and_says_so(world, finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert train(*words_for(world, "finished", "model.max_epochs=2", "resume=true")) == 0
    assert "finished already, nothing to do (epochs)" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_nothing_to_resume_starts_afresh_and_says_so(world, capsys):
    assert train(*words_for(world, "fresh", "model.max_epochs=1", "resume=true")) == 0
    assert "nothing to resume yet, starting afresh" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["model.dim=32", "seed=2", "model.dropout=0.4", "model.tokens=300"])
def test_another_config_is_refused(world, finished, capsys, change):
    assert train(*words_for(world, "finished", "model.max_epochs=2", "resume=true", change)) == 2
    assert_one_line(capsys, "started with another config", "overwrite=true resume=false")


def test_a_checkpoint_of_another_config_is_refused(world, finished, capsys):
    (run,) = finished.glob("run.json")
    kept = run.read_text()
    run.unlink()
    try:
        assert train(*words_for(world, "finished", "model.max_epochs=2", "resume=true", "seed=3")) == 2
    finally:
        run.write_text(kept)
    assert_one_line(capsys, "step-", "another config", "overwrite=true resume=false")


def test_an_existing_run_is_refused(world, finished, capsys):
    assert train(*words_for(world, "finished", "model.max_epochs=2")) == 2
    assert_one_line(capsys, "exists", "overwrite=true")


def test_what_is_no_run_is_never_deleted(world, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("x")
    assert train(f"prepared={world}/prepared", f"out={tmp_path}", "overwrite=true") == 2
    assert_one_line(capsys, "not a run directory")
    assert (tmp_path / "thesis.txt").exists()


def test_a_truncated_checkpoint_is_refused_and_the_one_before_it_goes_on(world, capsys):
    words = words_for(world, "truncated", "model.max_epochs=2")
    assert train(*words) == 0
    newest = max((world / "truncated" / "checkpoints").glob("step-*"))
    tensors = newest / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    capsys.readouterr()
    assert train(*words, "resume=true") == 2
    assert_one_line(capsys, newest.name, "broken checkpoint", "delete that directory")
    for part in newest.iterdir():
        part.unlink()
    newest.rmdir()
    assert train(*words, "resume=true") == 0
    assert records(world / "truncated") == records_of_two_epochs(world)


def records_of_two_epochs(world):
    assert train(*words_for(world, "again", "model.max_epochs=2", "overwrite=true")) == 0
    return records(world / "again")


def test_a_run_out_of_time_goes_on_with_more(world):
    words = words_for(world, "hurried", "model.max_epochs=2", "model.dropout=0", "model.id_dropout=0")
    assert train(*words, "max_minutes=1e-9") == 0
    assert list(records(world / "hurried")) == [1]
    assert json.loads((world / "hurried" / "run.json").read_text())["best"]["step"] == 1
    assert train(*words, "resume=true") == 0
    straight = words_for(world, "unhurried", "model.max_epochs=2", "model.dropout=0", "model.id_dropout=0")
    assert train(*straight) == 0
    assert records(world / "hurried") == records(world / "unhurried")


def test_a_loss_that_is_not_finite_ends_with_one_line(world, capsys):
    words = words_for(
        world, "diverged", "model.optimizer.learning_rate=1e30", "model.optimizer.warmup_steps=0"
    )
    assert train(*words) == 2
    assert_one_line(capsys, "loss is nan", "learning_rate")


def test_plain_tables_are_for_one_process(world, capsys, monkeypatch):
    monkeypatch.setattr("training.distributed._connect", lambda *_: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train(*words_for(world, "plain", "tables=plain")) == 2
    assert_one_line(capsys, "tables=plain is for one process", "tables=auto")


def test_training_leaves_torch_as_it_was_told(world):
    """Tests share this process: the trainer must not switch gradients off or leave a process group."""
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.distributed.is_initialized()


def assert_one_line(capsys, *parts: str) -> None:
    """The last line is the refusal, without a traceback; what came before it are the run's own words."""
    err = capsys.readouterr().err
    last = err.strip().splitlines()[-1]
    assert last.startswith("shopreel train: ")
    for part in parts:
        assert part in last
    assert "Traceback" not in err
