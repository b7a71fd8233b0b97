"""How many pages a second the server hands out at a p99 of 100 ms, and what others do on the same machine.

    python benchmarks/serving_load.py BUNDLES DATASET [against=pipeline,fastapi,litserve,ray] [workers=2]
        [seconds=8] [candidates=500] [users=2000] [p99_ms=100] [first_rate=8] [peer_python=PATH] [seed=1]
        [compiled=DIR] [words=KEY=VALUE,…]

Open loop from a second process: Poisson arrivals at a fixed rate whether or not answers came back, latency
from the moment a request was due, users of DATASET drawn by Zipf's law. The rate doubles while p99 stays
within its bound and no answer fails or is degraded; then it is narrowed down to a twelfth. Store: SQLite,
warmed from DATASET. ``compiled`` and ``words`` are further arguments of ``shopreel serve``; the pipeline is
compiled too, the others run eager PyTorch.
Every figure stands beside the CPU time per page, which means something even where other programs keep the
machine busy. ``pipeline`` is ranking and page building alone, without HTTP and store, sixteen requests at a
time, in as many processes as there are workers. BUNDLES comes from ``shopreel publish``; for a million
videos: ``shopreel simulate videos=1000000 users=20000 products=50000 days=4``, prepare, train, publish.
"""

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_world import Client, Server, wait_for

#: The highest rate that went well and the lowest that did not are at most this far apart in the end.
NARROW = 1.09
#: Seconds for which a connection is kept; servers close those that are idle for five.
FRESH_S = 2.0
#: For all but the server, which sees to it itself: threads that wait for work keep whole cores busy.
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True, slots=True)
class Load:
    """What one run at one rate showed. ``cpu_ms`` is per answered request, of the service's processes."""

    rate: float
    answered: float
    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]
    cpu_ms: float

    def good(self, p99_ms: float) -> bool:
        """All answered as they should be, within the bound."""
        return set(self.statuses) == {"200"} and self.p99_ms <= p99_ms

    def __str__(self) -> str:
        told = "" if set(self.statuses) <= {"200"} else f"  {self.statuses}"
        return (
            f"{self.rate:7.1f}/s asked {self.answered:7.1f}/s answered  p50 {self.p50_ms:6.1f}  "
            f"p99 {self.p99_ms:7.1f} ms  CPU {self.cpu_ms:6.2f} ms a page{told}"
        )


def main(bundles: str, dataset: str, *words: str) -> None:
    """Measure the server and whatever it is held against; a table goes to standard output."""
    options: dict[str, Any] = {
        "against": "pipeline,fastapi,litserve,ray", "workers": 2, "seconds": 8.0, "candidates": 500,
        "users": 2000, "p99_ms": 100.0, "first_rate": 8.0, "peer_python": sys.executable, "seed": 1,
        "compiled": "", "words": "",
    }  # fmt: skip
    for word in words:
        name, _, value = word.partition("=")
        options[name] = type(options[name])(value)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options["ids"] = _users(dataset, options["users"], options["seed"], folder)
        bundle = Path(bundles) / (Path(bundles) / "CURRENT").read_text().strip()
        warmed = _warmed_store(Path(bundles), dataset, folder)
        results = {"shopreel": _shopreel(Path(bundles), warmed, folder, options)}
        for name in filter(None, options["against"].split(",")):
            if name == "pipeline":
                results[name] = _pipelines(bundle, warmed, options)
            else:
                results[name] = _peer(name, bundle, warmed, folder, options)
    own = results["shopreel"]
    print(f"\n{'':10}{'pages/s':>9}{'shopreel/it':>13}{'CPU ms a page':>15}{'it/shopreel':>13}")
    for name, best in results.items():
        if best is None or own is None:
            print(f"{name:10}  none within {options['p99_ms']:.0f} ms")
            continue
        ratio, cpu = own.answered / best.answered, best.cpu_ms / own.cpu_ms
        print(f"{name:10}{best.answered:9.1f}{ratio:13.2f}{best.cpu_ms:15.2f}{cpu:13.2f}")


def _shopreel(bundles: Path, warmed: Path, folder: Path, options: dict[str, Any]) -> Load | None:
    store = shutil.copyfile(warmed, folder / "shopreel.db")
    words = [
        f"workers={options['workers']}", f"feed.candidates={options['candidates']}", "feed.budget_ms=1000",
        "http.page=false", "poll_s=3600", f"compiled={options['compiled'] or 'null'}",
        *filter(None, options["words"].split(",")),
    ]  # fmt: skip
    server = Server(bundles, f"sqlite:///{store}", folder / "shopreel", words)
    try:
        best = _climb("shopreel", server.port, server.process.pid, options)
        print(_stages(server.client().send("GET", "/metrics").body.decode()))
        return best
    finally:
        server.stop()


def _stages(text: str) -> str:
    """Milliseconds per stage and page over all that was served."""
    sums, counts = Counter[str](), Counter[str]()
    for line in text.splitlines():
        for kind, into in (("sum", sums), ("count", counts)):
            if line.startswith(f"shopreel_stage_seconds_{kind}{{"):
                into[line.split('"')[1]] += float(line.rsplit(" ", 1)[1])  # type: ignore[assignment]
    pages = max(1, counts["commit"])
    together = pages / max(1, counts["encode"])
    told = ", ".join(f"{stage} {1000 * sums[stage] / pages:.2f}" for stage in sums)
    return f"  ms a page by stage (encode, retrieve, ranker lie within rank): {told}; {together:.1f} a batch"


def _peer(name: str, bundle: Path, warmed: Path, folder: Path, options: dict[str, Any]) -> Load | None:
    store = shutil.copyfile(warmed, folder / f"{name}.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(Path(__file__).with_name("serving_peers.py"))
    numbers = [str(port), str(options["candidates"]), "1"]
    command = [options["peer_python"], script, name, str(bundle), f"sqlite:///{store}", *numbers]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=os.environ | ONE_THREAD
        )
    client, somebody = Client(port), json.loads(options["ids"].read_text())[0]

    def up() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{name} did not start: {(folder / f'{name}.log').read_text()[-800:]}")
        try:
            return client.post("/v1/feed", {"user_id": somebody}).status == 200
        except OSError:
            return False

    try:
        wait_for(f"{name} to serve", up, 600.0)
        return _climb(name, port, process.pid, options)
    except (RuntimeError, TimeoutError) as error:
        print(f"{name}: {error}")
        return None
    finally:
        client.close()
        for pid in [*_tree(process.pid), process.pid]:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        process.wait()


def _climb(name: str, port: int, pid: int, options: dict[str, Any]) -> Load | None:
    """The highest rate that went well."""
    print(f"{name}:")
    _generate(port, options["first_rate"], min(5.0, options["seconds"]), options)  # to warm up
    best: Load | None = None
    rate, too_high = options["first_rate"], float("inf")
    while best is None or too_high > NARROW * best.rate:
        before = _cpu_s(pid)
        told = _generate(port, rate, options["seconds"], options)
        spent = _cpu_s(pid) - before
        count = max(1, told["statuses"].get("200", 0))
        load = Load(
            rate, told["answered"], told["p50_ms"], told["p99_ms"], told["statuses"], 1000 * spent / count
        )
        print(f"  {load}", flush=True)
        if load.good(options["p99_ms"]):
            best = load
        else:
            too_high = rate
        if best is None:
            if rate < 1:
                return None
            rate /= 2
        else:
            rate = 2 * best.rate if too_high == float("inf") else (best.rate * too_high) ** 0.5
    return best


def _generate(port: int, rate: float, seconds: float, options: dict[str, Any]) -> Any:
    words = [str(port), str(rate), str(seconds), str(options["ids"]), str(options["seed"])]
    done = subprocess.run([sys.executable, __file__, "generate", *words], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def generate(port: int, rate: float, seconds: float, ids: str, seed: int) -> None:
    """The second process: send, wait for all answers, print what came of them as JSON."""
    latencies, statuses = asyncio.run(_send_all(port, rate, seconds, json.loads(Path(ids).read_text()), seed))
    good = sorted(latencies) or [float("inf")]
    told = {
        "answered": len(latencies) / seconds, "statuses": dict(statuses),
        "p50_ms": good[len(good) // 2], "p99_ms": good[min(len(good) - 1, int(0.99 * len(good)))],
    }  # fmt: skip
    print(json.dumps(told))


async def _send_all(
    port: int, rate: float, seconds: float, users: list[Any], seed: int
) -> tuple[list[float], Counter[str]]:
    dice = random.Random(seed)
    weights = [
        1 / (rank + 8) for rank in range(len(users))
    ]  # Zipf, its head cut: the first is 1 in 50 of 2,000
    idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
    latencies: list[float] = []
    statuses = Counter[str]()

    async def ask(user: Any, due: float) -> None:
        try:
            since, reader, writer = idle.pop() if idle else (0.0, None, None)
            if reader is None or writer is None or time.monotonic() - since > FRESH_S:
                if writer is not None:
                    writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = json.dumps({"user_id": user})
            head = "POST /v1/feed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            fields = answer.decode("latin-1").lower().split("\r\n")
            size = [int(field.split(":")[1]) for field in fields if field.startswith("content-length:")]
            page = await (reader.readexactly(size[0]) if size else reader.readuntil(b"\r\n0\r\n\r\n"))
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            statuses[type(error).__name__] += 1
            return
        idle.append((time.monotonic(), reader, writer))
        whole = b'"degraded":["' not in page
        statuses[fields[0].split(" ")[1] if whole else "degraded"] += 1
        if " 200 " in fields[0] and whole:
            latencies.append(1000 * (time.monotonic() - due))

    start, at, tasks = time.monotonic(), 0.0, []
    while (at := at + dice.expovariate(rate)) < seconds:
        user = dice.choices(users, weights)[0]
        await asyncio.sleep(max(0.0, start + at - time.monotonic()))
        tasks.append(asyncio.create_task(ask(user, start + at)))
    await asyncio.gather(*tasks)
    for _, _, writer in idle:
        writer.close()
    return latencies, statuses


def _pipelines(bundle: Path, warmed: Path, options: dict[str, Any]) -> Load:
    """As many processes of :func:`pipeline` as there are workers, at the same time."""
    words = [
        str(bundle),
        str(warmed),
        str(options["seconds"]),
        str(options["candidates"]),
        str(options["ids"]),
    ]
    command = [sys.executable, __file__, "pipeline", *words, options["compiled"]]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | ONE_THREAD)
        for _ in range(options["workers"])
    ]
    told = [json.loads(process.communicate()[0]) for process in running]
    rate = sum(one["rate"] for one in told)
    cpu_ms = sum(one["cpu_ms"] * one["rate"] for one in told) / rate
    load = Load(rate, rate, 0.0, 0.0, {"200": 0}, cpu_ms)
    print(f"pipeline: {options['workers']} processes of one thread\n  {load}")
    return load


def pipeline(bundle: Path, warmed: Path, seconds: float, candidates: int, ids: str, compiled: str) -> None:
    """Ranking and page building alone, in this process, in batches of sixteen, one thread."""
    import torch

    from serving.exploration import NO_EXPLORATION
    from serving.feed import build_page
    from serving.live import load_bundle
    from serving.paging import _candidates
    from serving.pipeline import RankRequest
    from serving.rules import Audience
    from serving.service import wall_clock_ms
    from serving.slate import SlatePreferences
    from serving.state import Limits, open_store
    from serving.state.protocol import DAY_MS

    torch.set_num_threads(1)
    live = load_bundle(bundle, threads=1, compiled=Path(compiled) if compiled else None)
    store = open_store(
        f"sqlite:///{warmed}", Limits(512, 90 * DAY_MS, DAY_MS, DAY_MS, 365 * DAY_MS, 30 * DAY_MS)
    )
    slate, none = SlatePreferences(2, 3, 4, 1, 0.0, 1.0, 60), np.empty(0, np.int64)
    requests, now_ms = [], wall_clock_ms()
    for user_id in json.loads(Path(ids).read_text())[:64]:
        state = store.user(user_id, now_ms)
        user = live.user_request(user_id, state.steps, None, now_ms)
        shown = live.rows_of([*state.served, *state.seen])
        market = live.market_of(user.user_row)
        requests.append(RankRequest(user, k=candidates, exclude_rows=shown, market=market))
    store.close()
    dice = np.random.default_rng(0)

    def once(batch: list[RankRequest]) -> None:
        for request, ranked in zip(batch, live.pipeline.rank(batch), strict=True):
            audience = Audience(request.market, None, request.exclude_rows, none, none, none)
            build_page(_candidates(ranked), 20, live.facts, audience, slate, NO_EXPLORATION, dice)

    once(requests[:16])
    started, used, pages = time.monotonic(), time.process_time(), 0
    while time.monotonic() - started < seconds:
        at = pages % len(requests)
        once(requests[at : at + 16])
        pages += 16
    wall, cpu = time.monotonic() - started, time.process_time() - used
    print(json.dumps({"rate": pages / wall, "cpu_ms": 1000 * cpu / pages}))


def _users(dataset: str, count: int, seed: int, folder: Path) -> Path:
    """A file with the ids of ``count`` users whom the log knows, in an order of its own."""
    import pyarrow.compute as pc

    from serving.held_out import open_log

    known = pc.unique(open_log(dataset).scan("events").to_table(columns=["user_id"])["user_id"]).to_pylist()
    path = folder / "users.json"
    path.write_text(json.dumps(random.Random(seed).sample(sorted(known), min(count, len(known)))))
    return path


def _warmed_store(bundles: Path, dataset: str, folder: Path) -> Path:
    server = Server(bundles, f"sqlite:///{folder}/warm.db", folder / "warm", [f"warm_from={dataset}"])
    server.stop()
    return folder / "warm.db"


def _tree(pid: int) -> list[int]:
    """The descendants of a process, and whoever shares a session with it or with one of them."""
    parent, session = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parent[int(entry.name)], session[int(entry.name)] = int(fields[1]), int(fields[3])
    found, size = {pid}, 0
    while size < len(found):
        size = len(found)
        found |= {one for one in parent if parent[one] in found or session[one] in found}
    return sorted(found - {pid})


def _cpu_s(pid: int) -> float:
    """CPU seconds that a service's processes used so far."""
    total = 0
    for member in [pid, *_tree(pid)]:
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    kinds: dict[str, list[Callable[[str], Any]]] = {
        "generate": [int, float, float, str, int],
        "pipeline": [Path, Path, float, int, str, str],
    }
    job = {"generate": generate, "pipeline": pipeline}.get(sys.argv[1])
    if job is not None:
        job(*(kind(word) for kind, word in zip(kinds[sys.argv[1]], sys.argv[2:], strict=True)))
    else:
        main(*sys.argv[1:])
