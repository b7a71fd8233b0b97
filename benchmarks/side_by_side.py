"""Systems side by side: each in processes of its own, in turns, so that what else a machine does hits all.

One run of every system, then the next of every system. A worker is the benchmark's own script with
``worker=NAME`` among its words; the last line it prints is JSON. A system that cannot run is *not measured*,
with the reason, and the others go on.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
#: What the runs of each system gave, in order; why a system has none.
Found = dict[str, list[dict[str, Any]]]
Missing = dict[str, str]


def in_turns(
    script: str,
    arguments: dict[str, str],
    systems: Sequence[str],
    peers: Sequence[str],
    more: Callable[[Found], dict[str, object]] = lambda found: {},
) -> tuple[Found, Missing]:
    """``runs=`` (5) runs of every system; ``peers`` run under ``peers_python=`` (what make peers installs).

    ``more`` adds words for a worker, given what was found so far. A later run that fails leaves the earlier
    ones; Ctrl-C, too, leaves what was measured.
    """
    found: Found = {system: [] for system in systems}
    missing: Missing = {}
    runs = int(arguments.get("runs", "5"))
    try:
        for turn, system in product(range(runs), systems):
            if system in missing:
                continue
            python = arguments.get("peers_python", str(PEERS_PYTHON)) if system in peers else sys.executable
            words = [f"{name}={value}" for name, value in {**arguments, **more(found)}.items()]
            said = _last_line([python, "-W", "ignore", script, *words, f"worker={system}"])
            if isinstance(said, str):
                missing[system] = said if turn == 0 else f"run {turn + 1}: {said}"
            else:
                found[system].append(said)
            print(f"  run {turn + 1} of {runs}: {system} {missing.get(system, 'done')}", file=sys.stderr)
    except KeyboardInterrupt:  # also how a set stops what takes too long
        print(f"stopped in run {turn + 1} of {runs}: what follows are the runs before", flush=True)
        missing.update({system: "stopped before its first run" for system in systems if not found[system]})
    return {system: runs for system, runs in found.items() if runs}, missing


def _last_line(command: list[str]) -> dict[str, Any] | str:
    if not Path(command[0]).exists():
        return "its Python is not there: make peers installs it"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    value: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return value


def say_missing(missing: Missing) -> None:
    for system, reason in missing.items():
        print(f"{system:<26} not measured: {reason}", flush=True)


def spread(values: Sequence[float], form: str) -> str:
    """Median (least – most)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} – {max(values):{form}})"


def times(ours: Sequence[float], theirs: Sequence[float], form: str = ".1f") -> str:
    """How many times theirs ours is: the ratio in each run, its median (least – most)."""
    return "× " + spread([a / b for a, b in zip(ours, theirs, strict=False)], form)
