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

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process_tree import cpu_s, tree
from benchmarks.serving_world import Client, Server, wait_for

#: The highest rate that went well and the lowest that did not are at most this far apart in the end.
NARROW = 1.09
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
        for pid in [*tree(process.pid), process.pid]:
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
        before = cpu_s(pid)
        told = _generate(port, rate, options["seconds"], options)
        spent = cpu_s(pid) - before
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
    script = str(Path(__file__).with_name("serving_load_arrivals.py"))
    done = subprocess.run([sys.executable, script, *words], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _pipelines(bundle: Path, warmed: Path, options: dict[str, Any]) -> Load:
    """As many processes of ranking alone as there are workers, at the same time."""
    words = [
        str(bundle),
        str(warmed),
        str(options["seconds"]),
        str(options["candidates"]),
        str(options["ids"]),
    ]
    script = str(Path(__file__).with_name("serving_load_pipeline.py"))
    command = [sys.executable, script, *words, options["compiled"]]
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


if __name__ == "__main__":
    main(*sys.argv[1:])
