"""A sweep: its search space, what it proposes, what it survives, and what it leaves."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import shopreel
import sweep
from data.compose import compose
from data.errors import ConfigError
from tests.training.worlds import checkerboard
from training.config import TrainConfig
from training.study import Sampler, Study
from training.sweep_config import Keep, Sweep, configure
from training.sweep_directory import MODEL_FILES, open_sweep
from training.trial import Outcome

RATE, DROPOUT, DIM = "model.optimizer.learning_rate", "model.dropout", "model.dim"
SPACE = (f"{RATE}=tag(log,interval(1e-4,1))", f"{DROPOUT}=interval(0,0.5)")


def value_of(point):
    """Highest, 1, at a learning rate of .01 and a dropout of .2."""
    return 1 - (math.log10(point[0]) + 2) ** 2 / 4 - (point[1] - 0.2) ** 2


class FakeTraining:
    """Gives :func:`value_of` its settings, and remembers them."""

    def __init__(self, fails_at=(), interrupted_at=()):
        self.points, self.fails_at, self.interrupted_at = [], fails_at, interrupted_at

    def __call__(self, words, out, log):
        given = dict(word.split("=") for word in words)
        point = (float(given[RATE]), float(given[DROPOUT]))
        self.points.append(point)
        for name in MODEL_FILES:
            (out / name).mkdir(parents=True)
        (out / "metrics.jsonl").write_text("{}\n")
        if len(self.points) in self.interrupted_at:
            raise KeyboardInterrupt
        if len(self.points) in self.fails_at:
            return Outcome(error="CUDA out of memory", seconds=1.0)
        return Outcome(value=value_of(point), metric="ndcg@20", best_epoch=3, seconds=2.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prepared")
    checkerboard(path)
    return path


@pytest.fixture(scope="module")
def plan(prepared) -> Sweep:
    return configure([f"prepared={prepared}", "out=S", "model.dim=32", *SPACE])


@pytest.fixture
def go(plan, tmp_path):
    """Sweep with some keys of the plan changed, as the command line would change them."""

    def run(training, *, planned: Sweep = plan, out: str = "sweep", **keys):
        config = dataclasses.replace(planned.config, out=str(tmp_path / out), **keys)
        sweep.run(dataclasses.replace(planned, config=config), training)

    return run


def table_of(tmp_path: Path) -> list[dict]:
    return pq.read_table(tmp_path / "sweep" / "trials.parquet").to_pylist()


@pytest.mark.parametrize(
    ("word", "low", "high", "values"),
    [
        ("model.dropout=interval(0,0.5)", 0.0, 0.5, ()),
        ("model.dim=interval(16,64)", 16, 64, ()),
        ("model.dim=range(16,64,16)", 16, 48, (16, 32, 48)),
        ("model.dropout=range(0,0.4,0.1)", 0.0, 0.3, (0.0, 0.1, 0.2, 0.3)),
        ("model.dropout=range(0.3,0,-0.1)", 0.1, 0.3, (0.1, 0.2, 0.3)),
        ("model.target.weights.click=interval(0,1)", 0.0, 1.0, ()),
    ],
)
def test_numbers_keep_the_type_of_their_key_and_ranges_end_before_their_end(word, low, high, values):
    (found,) = configure(["prepared=P", "out=S", "model.heads=1", word]).space.dimensions
    assert (found.distribution.low, found.distribution.high, found.values) == (low, high, values)
    assert type(found.distribution.low) is type(low)


@pytest.mark.parametrize("word", ["model.block=ligr,hstu", "model.block=choice(ligr,hstu)"])
def test_choices_are_words_of_an_override(word):
    found = configure(["prepared=P", "out=S", word])
    assert found.space.dimensions[0].values == ("ligr", "hstu")
    assert found.defaults == {"model.block": "ligr"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "nothing to search: no key has several values"),
        (["model.dropuot=interval(0,1)"], "unknown key 'model.dropuot'; did you mean model.dropout?"),
        (["trails=3", *SPACE], "unknown key 'trails'; did you mean trials?"),
        (["model.dropout=interval(0.5,0.1)"], "the interval is empty"),
        (["model.dropout=interval(0.1"], "'model.dropout=interval(0.1': "),
        (["model.dim=range(64,16)"], "the range is empty"),
        (["model.dim=range(0,9,0)"], "a range's step is not 0"),
        (["model.dropout=choice()"], "empty choice is not legal"),
        (["model.dropout=tag(log,interval(0,1))"], "a logarithmic interval begins above 0"),
        (["model.dropout=tag(slow,interval(0,1))"], "the only tag is log"),
        (["model.dim=interval(16.5,64)"], "model.dim is a whole number"),
        (["model.block=interval(0,1)"], "model.block is no number"),
        (["model.block=ligr,magic"], "model.block=ligr,magic holds magic: model.block: Invalid value"),
        (["model.dropout=interval(0,1)"], "holds 1.0: model.dropout and model.id_dropout must lie in [0, 1)"),
        (["model.dropout=0.1", *SPACE], "model.dropout is both fixed (model.dropout=0.1) and searched"),
        ([*SPACE, SPACE[1]], "model.dropout is searched twice"),
        (["+model.dropout=interval(0,1)"], "write the searched key alone"),
        (["model=ease,ials"], "model cannot be searched"),
        (["model.validation.k=10,20"], "model.validation.k cannot be searched"),
        (["sampler=grid", *SPACE], "sampler=grid cannot try all of an interval"),
        (["trials=0", *SPACE], "trials=0 must be at least 1"),
        (["resume=true", "overwrite=true", *SPACE], "choose one"),
        (SPACE, "prepared=P: no prepared.json there"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line_before_any_training(
    capsys, monkeypatch, tmp_path, given, expected
):
    monkeypatch.chdir(tmp_path)
    assert shopreel.main(["sweep", "prepared=P", "out=S", *given]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_values_that_fit_only_together_are_no_reason_to_refuse():
    configure(["prepared=P", "out=S", "model.dim=choice(63,64)", "model.heads=choice(4,3)"])


@pytest.mark.parametrize("word", ["-m", "--multirun"])
def test_hydras_multirun_points_to_sweep(capsys, word):
    assert shopreel.main(["train", word, "prepared=P", "out=S", "model.dim=32,64"]) == 2
    assert "shopreel sweep" in capsys.readouterr().err


def test_it_finds_a_known_optimum_and_leaves_settings_that_train_takes(go, tmp_path, capsys):
    fake = FakeTraining()
    go(fake, trials=30)
    assert fake.points[0] == (0.003, 0.3), "the defaults come first"
    rate, dropout = max(fake.points, key=value_of)
    assert 0.005 < rate < 0.02
    best = compose("train", [f"@{tmp_path / 'sweep' / 'best.yaml'}", "out=RUN"], TrainConfig)
    assert (best.model.optimizer.learning_rate, best.model.dropout, best.model.dim) == (rate, dropout, 32)
    assert best.model.refit_epochs > 0, "only the trials leave refitting out"
    rows = table_of(tmp_path)
    assert [row["value"] for row in rows] == sorted((row["value"] for row in rows), reverse=True)
    assert sorted((row[RATE], row[DROPOUT]) for row in rows) == sorted(fake.points)
    assert f"{rate:.6g}" in capsys.readouterr().out
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert page.count("<circle") == 3 * 30


def test_a_sweep_that_was_broken_off_goes_on_as_if_it_had_not_been(go, tmp_path):
    keys = {"trials": 14, "random_trials": 4}
    whole, first, second = FakeTraining(), FakeTraining(interrupted_at=[6]), FakeTraining()
    go(whole, **keys)
    with pytest.raises(KeyboardInterrupt):
        go(first, out="broken", **keys)
    go(second, out="broken", resume=True, **keys)
    assert first.points == whole.points[:6]
    assert second.points == whole.points[5:], "five were finished, the sixth is repeated"
    states = pq.read_table(tmp_path / "broken" / "trials.parquet").column("state").to_pylist()
    assert sorted(states) == ["complete"] * 14 + ["interrupted"]


def test_a_trial_that_was_killed_with_its_sweep_is_repeated(go, plan, tmp_path):
    go(FakeTraining(), trials=2)
    journal = tmp_path / "sweep" / "study.journal"
    killed = Study(journal, plan.space, Sampler.tpe, 1).begin()
    with journal.open("ab") as file:
        file.write(b'{"op_code":5,"worker')  # it died while it wrote
    fake, nothing = FakeTraining(), FakeTraining()
    go(fake, trials=4, resume=True)
    assert fake.points[0] == (killed.point[RATE], killed.point[DROPOUT])
    assert len(fake.points) == 2
    state = {row["trial"]: row["state"] for row in table_of(tmp_path)}
    assert state == {0: "complete", 1: "complete", 2: "interrupted", 3: "complete", 4: "complete"}
    go(nothing, trials=4, resume=True)
    assert not nothing.points


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(go, tmp_path, capsys):
    go(FakeTraining(fails_at=[2]), trials=4)
    rows = {row["trial"]: row for row in table_of(tmp_path)}
    assert [rows[n]["state"] for n in range(4)] == ["complete", "failed", "complete", "complete"]
    assert (rows[1]["value"], rows[1]["error"]) == (None, "CUDA out of memory")
    assert "trial 1 failed: CUDA out of memory" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="none of the 2 trials gave a model"):
        go(FakeTraining(fails_at=[1, 2]), trials=2, overwrite=True)


@pytest.mark.parametrize("keep", Keep)
def test_model_files_that_stay(go, tmp_path, keep):
    go(FakeTraining(), trials=4, keep=keep)
    best, *others = table_of(tmp_path)
    assert len(others) == 3
    for row in [best, *others]:
        folder = tmp_path / "sweep" / row["directory"]
        assert (folder / "metrics.jsonl").exists()
        assert (folder / "overrides.yaml").exists()
        assert (folder / "model").exists() is (keep is Keep.all or row is best)


def test_a_grid_has_every_combination_once(go, prepared, capsys):
    space = [f"{RATE}=choice(0.1,0.01)", f"{DROPOUT}=range(0,0.3,0.1)"]
    fake = FakeTraining()
    go(fake, planned=configure([f"prepared={prepared}", "out=S", "sampler=grid", *space]))
    assert sorted(fake.points) == [(r, d) for r in (0.01, 0.1) for d in (0.0, 0.1, 0.2)]
    assert "all 6 combinations are tried" in capsys.readouterr().out


def test_a_running_sweep_and_other_directories_are_left_alone(go, plan, tmp_path):
    out = tmp_path / "sweep"
    go(FakeTraining(), trials=2)
    before = sorted(out.rglob("*"))
    with open_sweep(out, {}, resume=True, overwrite=False):
        for more in ({"overwrite": True}, {"resume": True}, {}):
            with pytest.raises(ConfigError, match=rf"a sweep is running there \(process {os.getpid()}\)"):
                go(FakeTraining(), **more)
    with pytest.raises(ConfigError, match="resume=true, choose another directory or add overwrite=true"):
        go(FakeTraining())
    other = dataclasses.replace(plan, fixed=(*plan.fixed, "seed=2"))
    with pytest.raises(ConfigError, match=r"its fixed is \['model.dim=32'\], not .*'seed=2'"):
        go(FakeTraining(), planned=other, resume=True)
    assert sorted(out.rglob("*")) == before
    go(FakeTraining(), trials=2, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(ConfigError, match="is not a sweep's directory"):
        go(FakeTraining(), out="mine", overwrite=True)
    assert (tmp_path / "mine" / "letter").exists()


@pytest.mark.slow
def test_trainings_are_those_of_train(prepared, tmp_path):
    """Through the command line, in processes of their own; with the second setting nothing can be learnt."""
    words = [f"prepared={prepared}", f"out={tmp_path / 'sweep'}", "sampler=grid", "model=ease"]
    weights = [f"model.target.{name}=0" for name in ("impression", "weights.long_view")]
    assert shopreel.main(["sweep", *words, *weights, "model.target.weights.click=choice(1,0)"]) == 0
    good, bad = table_of(tmp_path)
    assert (good["model.target.weights.click"], good["metric"], good["state"]) == (1, "ndcg@20", "complete")
    assert good["value"] > 0.3, "the checkerboard is easy"
    assert (bad["model.target.weights.click"], bad["state"]) == (0, "failed")
    assert bad["error"].startswith(
        f"{prepared}: no training impression has a true label that model.target weighs"
    )
    run = json.loads((tmp_path / "sweep" / "trial-0000" / "run.json").read_text())
    assert run["best"]["value"] == good["value"]


def test_a_training_ends_with_the_process_that_started_it():
    """The interpreter must end at once by itself too, with the watch still waiting."""
    watch = "import threading; from training.trial import _leave_with_the_sweep as watch; "
    words = ["watch()", "threading.Thread(target=watch, daemon=True).start()"]
    waiting, done = (
        subprocess.Popen([sys.executable, "-c", watch + word], stdin=subprocess.PIPE) for word in words
    )
    assert done.wait(60) == 0
    assert waiting.poll() is None
    waiting.stdin.close()
    assert waiting.wait(60) == 1
    done.stdin.close()
