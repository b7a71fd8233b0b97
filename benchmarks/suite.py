"""The standard set of benchmarks, one after another, into a file of results and a section of the docs.

    python benchmarks/suite.py [only=table_step,youtube_dnn] [threads=1] [clock=wall] [minutes=180] [list=1]

Every benchmark also runs alone, with sizes of its own: its first lines say how. Here each has a size that
ends within some minutes on two cores: how many, is printed before it begins; after five times as many it is
stopped, and all together after ``minutes=``. One that fails, or is stopped, leaves the others be. Ctrl-C ends
the set; what was measured by then is kept. ``tiny=1`` is a dry run: every script from end to end, in minutes,
with sizes that say nothing, so that nothing is recorded.

What they print goes to the screen, to ``results=`` (JSON with the machine, the commit, the command and the
seconds of each) and between the two marks of ``docs=`` (docs/benchmarks.md). Results of earlier sets on the
same machine stay there until that benchmark runs again: ``only=`` renews some. ``threads=`` bounds all of
them; ``peers_python=`` is the Python that has the peers (what ``make peers`` installs). Times depend on the
machine and on what else runs there; the ratios of one run are what to compare.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TextIO

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
WORDS = ("only", "threads", "clock", "minutes", "list", "tiny", "peers_python", "results", "docs")
#: A benchmark is stopped after so many times its minutes; shown is the end of what it printed.
PATIENCE, LINES = 5, 40


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Words for a script, the minutes that they take on two cores, and the words of a dry run."""

    minutes: float
    words: tuple[str, ...]
    tiny: tuple[str, ...] = ()


STANDARD = {
    "table_step": Benchmark(5, ("rows=1000000,5000000", "rounds=5"), ("rows=20000", "rounds=1", "steps=1")),
    "two_tower_training": Benchmark(20, ("runs=5",), ("runs=1", "seconds=0.1")),
    "youtube_dnn": Benchmark(5, ("runs=5",), ("runs=1", "rows=20000")),
    "ranker_training": Benchmark(5, ("runs=5",), ("runs=1", "batches=2")),
    "prepare_scale": Benchmark(14, ("rows=20000000", "runs=5"), ("rows=100000", "videos=5000", "runs=1")),
    "scaling": Benchmark(
        10, ("seconds=1",), ("curves=batch", "videos=20000", "users=50", "rounds=1", "seconds=0.1")
    ),
    "index_scale": Benchmark(10, ("sizes=100000,1000000",), ("sizes=5000",)),
    "resume_drill": Benchmark(6, ("kills=20",), ("kills=1", "epochs=1")),
    "resharding": Benchmark(4, ("tokens=400", "epochs=2"), ("tokens=400", "ranks=1,2")),
}


def machine() -> str:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def commit() -> str:
    """The commit that ran, with a + where the tree had changes."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def measured(name: str, words: list[str], limit_s: float, hidden: Iterable[str] = ()) -> dict[str, Any]:
    """Run one benchmark, for so many seconds at most; what it printed, line by line as it comes.

    ``hidden`` words are told to it and not recorded: they name places of this machine.
    """
    print(f"\n== {name} {' '.join(words)}", flush=True)
    began, load = time.perf_counter(), os.getloadavg()[0]
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / f"{name}.py"), *words, *hidden]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    said: list[str] = []
    complained: list[str] = []
    readers = [
        threading.Thread(target=_follow, args=arguments, daemon=True)
        for arguments in ((process.stdout, said, sys.stdout), (process.stderr, complained, sys.stderr))
    ]
    for reader in readers:
        reader.start()
    try:
        state = "failed" if process.wait(limit_s) else "done"
    except subprocess.TimeoutExpired:
        state = f"stopped after {limit_s / 60:.0f} minutes"
    except KeyboardInterrupt:
        state = "interrupted"
    _stop(process)
    for reader in readers:
        reader.join(5)
    if state == "failed":
        state = f"failed: {(complained or [f'exit code {process.returncode}'])[-1]}"
    return {
        "name": name, "arguments": words, "state": state, "output": said[-LINES:],
        "seconds": round(time.perf_counter() - began, 1), "load": round(load, 1), "machine": machine(),
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
    }  # fmt: skip


def _follow(stream: TextIO, lines: list[str], screen: TextIO) -> None:
    with stream:
        for line in stream:
            lines.append(line.rstrip())
            print(line, end="", file=screen, flush=True)


def _stop(process: subprocess.Popen[str]) -> None:
    """End it and all that it started: politely, so that temporary files go too, then not."""
    for sign, wait_s in ((signal.SIGINT, 15.0), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, sign)
            process.wait(wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def section(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    parts = [BEGIN, "", f"{results[0]['machine']}. Standard sizes: not always those of the sections above."]
    for one in results:
        state = "" if one["state"] == "done" else f"; **{one['state']}**"
        command = f"`{' '.join([one['name'], *one['arguments']])}`"
        of = f"commit {one['commit']}, {one['when']}, load average before it {one['load']}"
        parts += ["", f"{command}, {one['seconds']:.0f} s; {of}{state}", "", "```", *one["output"], "```"]
    return "\n".join([*parts, "", END])


def listing() -> None:
    for script in sorted((ROOT / "benchmarks").glob("*.py")):
        first = script.read_text(encoding="utf-8").splitlines()[0].strip('"')
        print(f"{'*' if script.stem in STANDARD else ' '} {script.stem:<24} {first}")
    print('\n* runs in make bench. One alone: make bench BENCH=NAME ARGS="…"; its first lines say how.')


def earlier(target: Path) -> list[dict[str, Any]]:
    """Results of earlier sets on this machine."""
    if not target.exists():
        return []
    kept: list[dict[str, Any]] = json.loads(target.read_text(encoding="utf-8"))["benchmarks"]
    return [one for one in kept if one.get("machine") == machine()]


def write(target: Path, text: str) -> None:
    part = target.with_name(f".{target.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)


def wrong(what: str) -> NoReturn:
    print(f"error: {what}", file=sys.stderr)
    raise SystemExit(2)


def parsed(words: list[str]) -> dict[str, str]:
    """``name=value`` words that the set knows."""
    for word in words:
        if word.partition("=")[0] not in WORDS or "=" not in word:
            wrong(f"{word!r} is no setting of the set; it has {', '.join(f'{name}=' for name in WORDS)}")
    return dict(word.split("=", 1) for word in words)


def main(arguments: dict[str, str]) -> int:
    if "list" in arguments:
        listing()
        return 0
    names = arguments.get("only", ",".join(STANDARD)).split(",")
    unknown = [name for name in names if name not in STANDARD]
    if unknown:
        wrong(f"only={','.join(unknown)}: the set has {', '.join(STANDARD)}")
    given = [f"{name}={arguments[name]}" for name in ("threads", "clock") if name in arguments]
    if "threads" in arguments:
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), arguments["threads"]))
    peers = [f"peers_python={arguments['peers_python']}"] if "peers_python" in arguments else []
    total_min = float(arguments.get("minutes", "180"))
    expected = sum(STANDARD[name].minutes for name in names)
    print(f"{len(names)} benchmarks, about {expected:.0f} minutes, {total_min:.0f} at most (minutes=)")
    for sign in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a shell's background jobs ignore the first, and so would ours
        signal.signal(sign, signal.default_int_handler)
    tiny = "tiny" in arguments
    target = Path(arguments.get("results", ROOT / "bench.json"))
    began, version, results = time.perf_counter(), commit(), {one["name"]: one for one in earlier(target)}
    state = "done"
    for name in names:
        left_min = total_min - (time.perf_counter() - began) / 60
        print(f"\n{name}: about {STANDARD[name].minutes:g} minutes", flush=True)
        if left_min <= 0:
            state = "stopped"
            print(f"not measured: the {total_min:.0f} minutes are over", flush=True)
            continue
        limit_min = min(PATIENCE * STANDARD[name].minutes, left_min)
        words = STANDARD[name].tiny if tiny else STANDARD[name].words
        one = measured(name, [*words, *given], 60 * limit_min, peers)
        print(f"{name}: {one['state']}, {one['seconds']:.0f} s", flush=True)
        if one["state"] == "interrupted":
            state = "interrupted"
            break
        state = state if one["state"] == "done" else "failed"
        if tiny:
            continue
        results[name] = one | {"commit": version}
        write(target, json.dumps({"benchmarks": list(results.values())}, indent=1, ensure_ascii=False) + "\n")
    kept = [results[name] for name in STANDARD if name in results and not tiny]
    docs = Path(arguments.get("docs", ROOT / "docs" / "benchmarks.md"))
    text = docs.read_text(encoding="utf-8")
    if kept and BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        write(docs, before + section(kept) + rest.partition(END)[2])
        print(f"\nresults: {target}, and between the marks of {docs}")
    return {"done": 0, "interrupted": 130}.get(state, 1)


if __name__ == "__main__":
    raise SystemExit(main(parsed(sys.argv[1:])))
