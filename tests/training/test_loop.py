"""The loop: early stop, the best epoch wins, time, checkpoints, what is told; learning in a known world."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from data.errors import ConfigError
from data.loader import LoaderPosition
from data.prepared import Prepared
from data.schema import LABEL_BIT
from models.inference import UserEncoder, embed_catalogue, final_vectors
from models.portable import load_two_tower
from tests.training.running import records, train
from tests.training.worlds import checkerboard, taste
from training.checkpoint import Progress, load_checkpoint
from training.loop import Budget, Parts, fit
from training.placement import OneProcess, Task, UpdateRule
from training.progress import NoLog, RunLog
from training.validation import held_out

BATCHES = 4


class Loader:
    """``BATCHES`` batches an epoch; each is its (epoch, number)."""

    def __init__(self) -> None:
        self.position = LoaderPosition()
        self.seen: list[tuple[int, int]] = []

    def epoch(self):
        epoch = self.position.epoch
        for number in range(self.position.batch, BATCHES):
            self.position = LoaderPosition(epoch, 0, number + 1)
            self.seen.append((epoch, number))
            yield SimpleNamespace(examples=10, value=1.0 + number)
        self.position = LoaderPosition(epoch + 1, 0, 0)


def parts_of(folder, metrics: list[float], kept: list[float], loss_of=None) -> Parts:
    """``metrics`` are the validations to come; ``kept`` collects those for which the model was kept."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    task = Task(model, loss_of or (lambda batch: model(torch.tensor([[batch.value]])).square().sum()))
    rule = UpdateRule(learning_rate=0.01, weight_decay=0.0, dense_table_rows=0, table_learning_rate=0.1)
    values = iter(metrics)
    return Parts(
        model=model, placement=OneProcess(task, rule), loader=Loader(),
        validate=lambda: {"quality": next(values)}, metric="quality",
        keep_best=lambda found: kept.append(found["quality"]), checkpoints=folder, fingerprint="f",
    )  # fmt: skip


def budget_of(**changes) -> Budget:
    base = dict(
        max_epochs=10, max_seconds=1e9, patience=2, checkpoint_steps=100, log_steps=1, warmup_steps=0,
        clip_norm=1.0, epoch_steps=1,
    )  # fmt: skip
    return Budget(**(base | changes))


def test_it_stops_when_validation_stops_improving_and_the_best_epoch_wins(tmp_path):
    kept: list[float] = []
    parts = parts_of(tmp_path, [0.1, 0.3, 0.2, 0.3, 0.9], kept)
    progress = fit(parts, budget_of(), Progress(), NoLog())
    assert kept == [0.1, 0.3]  # an equal value is no improvement
    assert (progress.stopped, progress.best_epoch, progress.best_step) == ("patience", 1, 2 * BATCHES)
    assert progress.best_metric == 0.3
    assert progress.epoch == 4


def test_the_learning_rate_falls_after_each_epoch_without_improvement(tmp_path):
    parts, rates = parts_of(tmp_path, [0.3, 0.1, 0.4, 0.2, 0.2], []), []
    begin = parts.placement.optimizers.begin_step
    parts.placement.optimizers.begin_step = lambda factor: (rates.append(factor), begin(factor))
    fit(parts, budget_of(plateau_factor=0.5), Progress(), NoLog())
    assert rates[::BATCHES] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_epochs_of_a_small_log_say_less_and_those_of_the_warm_up_nothing(tmp_path):
    def rates_of(**changes) -> tuple[list[float], str]:
        parts, rates = parts_of(tmp_path, [0.3, *[0.1] * 9], []), []
        begin = parts.placement.optimizers.begin_step
        parts.placement.optimizers.begin_step = lambda factor: (rates.append(factor), begin(factor))
        budget = budget_of(patience=1, plateau_factor=0.25, max_epochs=6, **changes)
        progress = fit(parts, budget, Progress(), NoLog())
        return rates[BATCHES - 1 :: BATCHES], progress.stopped

    assert rates_of(epoch_steps=BATCHES) == ([1.0, 1.0], "patience")
    assert rates_of(epoch_steps=2 * BATCHES) == ([1.0, 1.0, 0.5], "patience")
    # its first three epochs end before the rate has warmed up
    rates, stopped = rates_of(epoch_steps=BATCHES, warmup_steps=3 * BATCHES + 1)
    assert rates[3:] == [1.0]
    assert stopped == "patience"
    assert rates_of(epoch_steps=BATCHES, warmup_steps=100)[1] == "epochs"


def test_it_stops_at_max_epochs(tmp_path):
    progress = fit(parts_of(tmp_path, [0.1, 0.2, 0.3], []), budget_of(max_epochs=3), Progress(), NoLog())
    assert (progress.stopped, progress.step) == ("epochs", 3 * BATCHES)


def test_it_stops_when_the_time_is_used_up_and_validates_what_there_is(tmp_path):
    kept: list[float] = []
    parts = parts_of(tmp_path, [0.1], kept)
    progress = fit(parts, budget_of(max_seconds=0.0), Progress(), NoLog())
    assert (progress.stopped, progress.step, kept) == ("time", 1, [0.1])
    assert (progress.epoch, progress.batch) == (0, 1)  # from here more time would go on


def test_time_of_earlier_sessions_counts(tmp_path):
    parts = parts_of(tmp_path, [0.1], [])
    assert fit(parts, budget_of(max_seconds=100.0), Progress(seconds=200.0), NoLog()).stopped == "time"


def test_a_finished_run_is_left_alone(tmp_path):
    parts = parts_of(tmp_path, [], [])
    over = Progress(step=7, stopped="patience")
    assert fit(parts, budget_of(), over, NoLog()).step == 7
    assert parts.loader.seen == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path, value):
    parts = parts_of(tmp_path, [], [], lambda _: parts.model.weight.sum() * 0 + value)
    before = parts.model.weight.detach().clone()
    with pytest.raises(ConfigError, match=rf"loss is {value} at step 0; lower model.optimizer.learning_rate"):
        fit(parts, budget_of(), Progress(), NoLog())
    assert torch.equal(parts.model.weight, before)


def test_a_checkpoint_every_so_many_steps_restores_position_and_weights(tmp_path):
    parts = parts_of(tmp_path, [0.1], [])

    def stop_in_epoch_two(batch):
        if len(parts.loader.seen) > 6 and parts.placement.optimizers.dense.state:
            raise KeyboardInterrupt
        return parts.model(torch.tensor([[batch.value]])).square().sum()

    parts.placement.loss = stop_in_epoch_two
    with pytest.raises(KeyboardInterrupt):
        fit(parts, budget_of(checkpoint_steps=1), Progress(), NoLog())
    weights = parts.model.weight.detach().clone()
    again = parts_of(tmp_path, [], [])
    progress = load_checkpoint(tmp_path, again.placement.state(), "f")
    assert torch.equal(again.model.weight, weights)
    assert progress.step == BATCHES + progress.batch
    assert progress.epoch == 1


def test_what_is_recorded(tmp_path):
    with RunLog(tmp_path, BATCHES * 10, quiet=True) as log:
        fit(parts_of(tmp_path, [0.1, 0.2], []), budget_of(max_epochs=2, log_steps=3), Progress(), log)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, BATCHES, 6, 2 * BATCHES]
    assert lines[1] == {"step": BATCHES, "validation/quality": 0.1}
    assert set(lines[0]) == {"step", "train/loss", "train/gradient_norm"}


def test_the_checkerboard_is_learnt(tmp_path):
    """A withheld video of the user's own taste ranks above every unseen video of the other taste."""
    checkerboard(tmp_path / "prepared", users=80)
    rate = ("model.optimizer.learning_rate=0.01", "model.plateau_factor=1")
    words = ("model.max_epochs=30", "model.patience=30", *rate)
    assert train(f"prepared={tmp_path}/prepared", f"out={tmp_path}/run", *words) == 0
    losses = list(records(tmp_path / "run").values())
    # about 26 unseen videos at the end of a history, of which 7 have the taste
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5
    prepared = Prepared.open(tmp_path / "prepared")
    model = load_two_tower(tmp_path / "run" / "model")
    learnt_ND = embed_catalogue(model, prepared.video_table)
    video_ND = final_vectors(model, prepared.video_table, learnt_ND, None)
    held = held_out(prepared, 2, LABEL_BIT["click"], 1000, 16)
    user_UD = UserEncoder(model, prepared.user_table, video_ND).encode(held.requests)
    above = []
    for user_D, one, seen, truth in zip(user_UD, held.requests, held.seen, held.truth, strict=True):
        others = [row for row in range(1, 41) if taste(row) != taste(one.user_row) and row not in seen]
        above += [user_D @ video_ND[truth[0]] > user_D @ video_ND[row] for row in others]
    assert np.mean(above) > 0.99
