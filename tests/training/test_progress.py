"""metrics.jsonl: appended, and cut on resume to what the checkpoint had seen."""

import json

import pytest

from training.progress import NoLog, RunLog


def write(folder, steps, **resumed) -> RunLog:
    with RunLog(folder, 10, quiet=True, **resumed) as log:
        for step in steps:
            log.record(step, {"train/loss": float(step)})
    return log


def steps_of(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_counted_and_kept(tmp_path):
    assert write(tmp_path, [1, 2, 3]).lines == 3
    assert steps_of(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("half", ["", '{"step": 4, "tr'])
def test_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path, half):
    write(tmp_path, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    assert write(tmp_path, [3, 4], from_step=2, lines=2).lines == 4
    assert steps_of(tmp_path) == [1, 2, 3, 4]


def test_a_new_run_starts_an_empty_file(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [7])
    assert steps_of(tmp_path) == [7]


def test_without_a_terminal_there_is_no_bar_but_what_is_said(tmp_path, capsys):
    with RunLog(tmp_path, 10) as log:
        log.begin_epoch(0)
        log.step(0, 5, 1.0, 2.0)
        log.say("x" * 200)
    assert capsys.readouterr().err == "x" * 200 + "\n"


def test_other_ranks_write_nothing(tmp_path, capsys):
    with NoLog() as log:
        log.begin_epoch(0)
        log.step(0, 5, 1.0, 2.0)
        log.record(1, {"a": 1.0})
        log.say("hello")
    assert log.lines == 0
    assert capsys.readouterr() == ("", "")
