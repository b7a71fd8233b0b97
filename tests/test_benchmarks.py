"""The set of benchmarks and systems side by side: what fails or takes too long leaves the others be."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from benchmarks import side_by_side, suite

SCRIPTS = {
    "good": "import sys; print('a ratio', *sys.argv[1:])",
    "bad": "print('half'); raise ValueError('no such thing')",
    "slow": "import os, time; print(os.getpid(), flush=True); time.sleep(60)",
}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of three scripts, in a folder of its own."""
    (tmp_path / "benchmarks").mkdir()
    for name, text in SCRIPTS.items():
        (tmp_path / "benchmarks" / f"{name}.py").write_text(text)
    docs = tmp_path / "docs" / "benchmarks.md"
    docs.parent.mkdir()
    docs.write_text(f"before\n{suite.BEGIN}\nold\n{suite.END}\nafter\n")
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(suite, "STANDARD", {name: suite.Benchmark(1, ()) for name in SCRIPTS})
    kept = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for sign, handler in kept.items():
        signal.signal(sign, handler)


def states(bench: Path) -> dict[str, str]:
    record = json.loads((bench / "bench.json").read_text())
    return {one["name"]: one["state"] for one in record["benchmarks"]}


def test_a_failing_benchmark_leaves_the_others_be(bench: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = suite.main({"only": "bad,good", "threads": "1", "peers_python": "/somewhere/python"})
    assert code == 1
    assert states(bench) == {"bad": "failed: ValueError: no such thing", "good": "done"}
    docs = (bench / "docs" / "benchmarks.md").read_text()
    assert docs.startswith("before\n")
    assert docs.endswith("after\n")
    assert "old" not in docs
    assert "**failed: ValueError: no such thing**" in docs
    assert "a ratio threads=1" in docs
    assert "about 2 minutes, 180 at most" in capfd.readouterr().out


def test_places_of_this_machine_are_told_and_not_recorded(bench: Path) -> None:
    suite.main({"only": "good", "peers_python": "/somewhere/python"})
    (one,) = json.loads((bench / "bench.json").read_text())["benchmarks"]
    assert one["arguments"] == []
    assert one["output"] == ["a ratio peers_python=/somewhere/python"]


def test_a_dry_run_has_words_of_its_own_and_records_nothing(
    bench: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(suite.STANDARD, "good", suite.Benchmark(1, ("rows=9",), ("rows=1",)))
    assert suite.main({"only": "good", "tiny": "1"}) == 0
    assert "a ratio rows=1\n" in capfd.readouterr().out
    assert not (bench / "bench.json").exists()
    assert "old" in (bench / "docs" / "benchmarks.md").read_text()


def test_results_of_earlier_sets_stay_until_renewed(bench: Path) -> None:
    suite.main({"only": "bad"})
    assert suite.main({"only": "good"}) == 0
    assert list(states(bench)) == ["bad", "good"]
    (bench / "benchmarks" / "bad.py").write_text(SCRIPTS["good"])
    suite.main({"only": "bad"})
    assert states(bench)["bad"] == "done"


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_what_takes_too_long_is_stopped(bench: Path) -> None:
    assert suite.main({"only": "slow,good", "minutes": "0.02"}) == 1
    (one,) = json.loads((bench / "bench.json").read_text())["benchmarks"]
    assert one["state"].startswith("stopped after")
    assert gone(int(one["output"][0]))


def test_ctrl_c_ends_the_set_and_keeps_what_was_measured(bench: Path) -> None:
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    # Spark's, which an earlier test may have left, outlives its context and fails
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        assert suite.main({"only": "good,slow,bad"}) == 130
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert states(bench) == {"good": "done"}
    assert "a ratio" in (bench / "docs" / "benchmarks.md").read_text()


@pytest.mark.parametrize("words", [["only=fast"], ["rounds=3"], ["list"]])
def test_what_the_set_does_not_know_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        suite.main(suite.parsed(words))
    assert words[0].partition("=")[2] in capsys.readouterr().err


def test_systems_take_turns_and_the_missing_say_why(tmp_path: Path) -> None:
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(
        "import json, sys\n"
        "told = dict(word.split('=', 1) for word in sys.argv[1:])\n"
        f"print(told['worker'], file=open({str(log)!r}, 'a'))\n"
        "assert told['worker'] != 'broken', 'out of order'\n"
        "print('noise')\n"
        "print(json.dumps({'rate': 2.0, 'seen': told.get('seen')}))\n"
    )
    found, missing = side_by_side.in_turns(
        str(script), {"runs": "2", "peers_python": str(tmp_path / "none")}, ("a", "broken", "b", "peer"),
        ("peer",), lambda found: {"seen": len(found["a"])},
    )  # fmt: skip
    assert log.read_text().split() == ["a", "broken", "b", "a", "b"]
    assert [run["seen"] for run in found["a"]] == ["0", "1"]
    assert len(found["b"]) == 2
    assert missing == {
        "broken": "AssertionError: out of order",
        "peer": "its Python is not there: make peers installs it",
    }


def test_the_ratio_is_that_of_each_run() -> None:
    assert side_by_side.times([10.0, 30.0, 20.0], [10.0, 10.0, 10.0]) == "× 2.0 (1.0 – 3.0)"
