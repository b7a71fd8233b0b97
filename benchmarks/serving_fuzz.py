"""Sends the server what no client should: schemathesis on its OpenAPI, then damaged requests.

    python benchmarks/serving_fuzz.py WORK [requests=10000] [examples=100] [seed=1]

Publishes a small market into the folder WORK (kept for the next time) and starts ``shopreel serve`` on it.
Exit code 1 where an answer was not of the contract, a log line holds a traceback, or the server died.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from http.client import HTTPException
from pathlib import Path

from benchmarks.serving_mutations import Sent, complaint, mutated
from benchmarks.serving_world import Client, Server, small_world


def main(work: str, *words: str) -> int:
    """Run both; the numbers go to standard output."""
    options = {"requests": 10_000, "examples": 100, "seed": 1} | {
        name: int(value) for name, _, value in (word.partition("=") for word in words)
    }
    world = small_world(Path(work))
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/state.db"
        server = Server(
            world.bundles, store, Path(folder), [f"warm_from={world.market}", "feed.budget_ms=10000"]
        )
        schema = _schemathesis(server.port, options["examples"], options["seed"])
        wrong = _mutated(server, options["requests"], options["seed"])
        alive = server.client().send("GET", "/readyz").status == 200
        code = server.stop()
        faults = server.faults()
    print(f"log lines with a traceback: {len(faults)}; ready at the end: {alive}; exit {code}")
    for fault in faults[:5]:
        print("  ", fault[:200])
    return int(schema or wrong or bool(faults) or not alive or code != 0)


def _schemathesis(port: int, examples: int, seed: int) -> int:
    """All phases and checks; but a request may be refused for what a schema cannot say, as of a cursor."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/openapi.json",
        "--checks", "all", "--exclude-checks", "positive_data_acceptance",
        "--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout if done.returncode else done.stdout[-1_500:]
    print(text)
    print(f"schemathesis: exit code {done.returncode} after {time.monotonic() - started:.0f} s")
    return done.returncode


def _mutated(server: Server, count: int, seed: int) -> int:
    client, seen, wrong = server.client(), Counter[tuple[str, int]](), 0
    for sent in mutated(count, seed):
        answer = _send(client, sent)
        if answer is None:
            seen[sent.what, 0] += 1  # this client cannot spell it, or the server closed the connection
            continue
        status, complained = answer
        seen[sent.what, status] += 1
        if complained is not None or status == 503:
            wrong += 1
            print(
                f"{complained or status} to {sent.what}: {sent.method} {sent.path[:80]} {sent.body[:200]!r}"
            )
    statuses = Counter({status: 0 for _, status in seen})
    for (_, status), times in seen.items():
        statuses[status] += times
    told = ", ".join(f"{status or 'not sent'}: {times}" for status, times in sorted(statuses.items()))
    print(f"mutated requests: {count}, of which wrong: {wrong}; by status {told}")
    return wrong


def _send(client: Client, sent: Sent) -> tuple[int, str | None] | None:
    try:
        answer = client.send(sent.method, sent.path, sent.body, sent.headers)
    except (HTTPException, ValueError, OSError):
        return None
    client.close() if sent.headers else None  # a damaged header may leave the connection out of step
    return answer.status, complaint(sent, answer.status, answer.headers, answer.body)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
