"""The demo: its command lines are real ones, in order, and it deletes nothing but an earlier demo."""

import importlib
from pathlib import Path

import pytest

import demo
import shopreel
from data.compose import compose


def config(tmp_path: Path, *overrides: str) -> demo.DemoConfig:
    return compose("demo", [f"out={tmp_path / 'run'}", *overrides], demo.DemoConfig)


def test_every_command_line_is_accepted(tmp_path):
    settings = config(tmp_path)
    lines = [*demo.commands(settings), ("serve", demo.serving(settings))]
    assert [name for name, _ in lines] == [
        "simulate", "prepare", "train", "publish", "replay", "evaluate", "serve",
    ]  # fmt: skip
    for name, words in lines:
        kind = importlib.import_module(shopreel.COMMANDS[name].module).CONFIG
        assert isinstance(compose(name, words, kind), kind)


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """Names of the commands that the demo would have run."""
    names: list[str] = []
    monkeypatch.setattr(demo, "run_command", lambda name, words: names.append(name))
    return names


@pytest.mark.parametrize("serve", [True, False])
def test_it_prints_each_command_as_one_would_type_it(tmp_path, capsys, called, serve):
    settings = config(tmp_path, f"serve={serve}", "seed=7")
    demo.run(settings)
    out = capsys.readouterr().out
    typed = [line.removeprefix("$ shopreel ") for line in out.splitlines() if line.startswith("$ shopreel ")]
    assert [line.partition(" ")[0] for line in typed] == called
    assert called == [name for name, _ in demo.commands(settings)] + ["serve"] * serve
    assert "seed=7" in typed[0]
    assert f"shopreel serve bundles={tmp_path / 'run' / 'bundles'}" in out
    assert (tmp_path / "run" / "demo.json").is_file()


def test_an_earlier_demo_is_replaced(tmp_path, called):
    demo.run(config(tmp_path, "serve=false"))
    (tmp_path / "run" / "left-over").touch()
    demo.run(config(tmp_path, "serve=false"))
    assert not (tmp_path / "run" / "left-over").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["days=3"], "days=3: the last two are validation and test; take at least 4"),
        (["start=monday"], "start=monday is no date; write it as 2026-03-02"),
    ],
)
def test_mistakes(tmp_path, capsys, overrides, expected):
    assert shopreel.main(["demo", f"out={tmp_path / 'run'}", *overrides]) == 2
    assert capsys.readouterr().err == f"shopreel demo: {expected}\n"
    assert not (tmp_path / "run").exists()


def test_a_folder_that_no_demo_has_made_is_left_alone(tmp_path, capsys, called):
    precious = tmp_path / "run" / "thesis.tex"
    precious.parent.mkdir()
    precious.touch()
    assert shopreel.main(["demo", f"out={precious.parent}"]) == 2
    assert "holds something else than an earlier demo" in capsys.readouterr().err
    assert shopreel.main(["demo", f"out={precious}"]) == 2
    assert "is a file; choose a directory" in capsys.readouterr().err
    assert precious.exists()
    assert not called
