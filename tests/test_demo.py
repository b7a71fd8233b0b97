"""The demo: its command lines are real ones, in order, and it deletes nothing but an earlier demo."""

import importlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import demo
import shopreel
from data.compose import compose
from data.simulator.market import Market
from data.simulator.oracle import Question, oracle_run


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
    monkeypatch.setattr(demo, "_show_true_quality", lambda config: None)
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


def test_the_oracle_is_best_and_its_reverse_is_worse(tmp_path):
    sizes = ["users=30", "videos=60", "products=20", "days=4", "start=2026-03-02"]
    assert shopreel.main(["simulate", f"out={tmp_path / 'market'}", *sizes]) == 0
    market = Market.load(tmp_path / "market")
    begin = datetime(2026, 3, 5, tzinfo=UTC)
    events = pq.read_table(tmp_path / "market" / "events")
    events = events.filter(pa.compute.field("event_time") < begin)
    shown = zip(events["user_id"].to_numpy(), events["video_id"].to_numpy(), strict=True)
    seen: dict[int, list[int]] = {}
    for user, video in shown:
        seen.setdefault(int(user), []).append(int(video))
    users = sorted(seen)
    question = Question(time=begin, seen={user: np.array(videos) for user, videos in seen.items()})
    replayed = tmp_path / "replay"
    replayed.mkdir()
    best = oracle_run(market, users, question, k=20)
    names = pa.array([f"test:{user}" for user in users])
    pq.write_table(pa.table({"request_id": names, "user_id": pa.array(users)}), replayed / "truth.parquet")
    pq.write_table(best, replayed / "run_oracle.parquet")
    backwards = pa.array(np.flip(best["rank"].to_numpy()))  # the lists of other users, worst first
    flipped = best.set_column(best.column_names.index("rank"), "rank", backwards)
    pq.write_table(flipped, replayed / "run_backwards.parquet")
    quality = demo.true_quality(tmp_path / "market", replayed, begin, "long_view")
    assert quality["oracle"] == pytest.approx(1.0, abs=1e-9)
    assert 0.0 < quality["backwards"] < 0.99
