"""The standard set of benchmarks, one after another, into a file of results and a section of the docs.

    python benchmarks/suite.py [only=table_step,index_scale] [peers_python=.venv-peers/bin/python] [list=1]

Every benchmark also runs alone, with sizes of its own: its first lines say how. Here each has a size that
ends within a few minutes on two cores. What they print goes to the screen, to ``results=`` (JSON with the
machine, the commit, the command and the seconds of each) and between the two marks of ``docs=``
(docs/benchmarks.md). Times depend on the machine and on what else runs there; the ratios of one run are what
to compare.
"""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
#: Script and arguments.
STANDARD: dict[str, list[str]] = {
    "table_step": ["rows=1000000", "rounds=5"],
    "two_tower_training": ["loss=full", "rounds=5", "steps=5", "peer_steps=18"],
    "youtube_dnn": ["rounds=5"],
    "ranker_training": ["rounds=5"],
    "prepare_scale": ["rows=2000000", "runs=5"],
    "scaling": ["curves=rows,batch", "seconds=1", "clock=wall"],
    "index_scale": ["sizes=100000,300000"],
    "resume_drill": ["kills=5", "epochs=1"],
}
#: Those that are told where the peers' Python is.
PEERS = ("two_tower_training", "youtube_dnn", "ranker_training")


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
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, Python {platform.python_version()}"
    )


def commit() -> str:
    """The commit that ran, with a + where the tree had changes."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def measured(name: str, words: list[str]) -> dict[str, object]:
    """Run one benchmark; what it printed, line by line as it comes."""
    print(f"\n== {name} {' '.join(words)}", flush=True)
    began, lines = time.perf_counter(), []
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / f"{name}.py"), *words]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        print(line, end="", flush=True)
    return {
        "name": name, "arguments": words, "exit_code": process.wait(),
        "seconds": round(time.perf_counter() - began, 1), "output": lines,
    }  # fmt: skip


def section(record: dict[str, object]) -> str:
    """The results as Markdown."""
    of = f"{record['machine']}; commit {record['commit']}, {record['when']}"
    parts = [BEGIN, "", f"{of}. Standard sizes: not those of the sections above."]
    for one in record["benchmarks"]:  # type: ignore[attr-defined]
        state = "" if one["exit_code"] == 0 else f", exit code {one['exit_code']}"
        head = f"`{one['name']} {' '.join(one['arguments'])}`, {one['seconds']} s{state}"
        parts += ["", head, "", "```", *one["output"][-40:], "```"]
    return "\n".join([*parts, "", END])


def main(arguments: dict[str, str]) -> int:
    if "list" in arguments:
        for script in sorted((ROOT / "benchmarks").glob("*.py")):
            first = script.read_text(encoding="utf-8").splitlines()[0].strip('"')
            print(f"{'*' if script.stem in STANDARD else ' '} {script.stem:<24} {first}")
        print('\n* runs in make bench. One alone: make bench BENCH=NAME ARGS="…"; its first lines say how.')
        return 0
    peers = arguments.get("peers_python", str(ROOT / ".venv-peers" / "bin" / "python"))
    results = []
    for name in arguments.get("only", ",".join(STANDARD)).split(","):
        words = list(STANDARD[name])
        if name in PEERS and Path(peers).exists():
            words.append(f"peers_python={peers}")
        results.append(measured(name, words))
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    record = {"machine": machine(), "commit": commit(), "when": when, "benchmarks": results}
    target = Path(arguments.get("results", ROOT / "bench.json"))
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    docs = Path(arguments.get("docs", ROOT / "docs" / "benchmarks.md"))
    text = docs.read_text(encoding="utf-8")
    if BEGIN in text and END in text:
        before, _, rest = text.partition(BEGIN)
        docs.write_text(before + section(record) + rest.partition(END)[2], encoding="utf-8")
    print(f"\nresults: {target}, and between the marks of {docs}")
    return int(any(one["exit_code"] for one in results))


if __name__ == "__main__":
    raise SystemExit(main(dict(word.split("=", 1) for word in sys.argv[1:])))
