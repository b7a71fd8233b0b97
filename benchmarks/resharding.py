"""Train on 1, then 2, then 4, then 2, then 1 process, and compare every step with one process alone.

    python benchmarks/resharding.py [prepared=PREPARED] [ranks=1,2,4,2,1] [every=4] [tokens=2048] [epochs=1]

Without ``prepared=`` the log is a small simulated market. Each job gets SIGKILL in all its processes once it
has written a checkpoint of its own, the next one, of another size, resumes it; the last one finishes. Tables
are cut over the processes by TorchRec (gloo), with row-wise Adagrad; ``model.tokens`` is divided by the
processes, so that all see the same whole batches.
Without dropout every loss must agree to 1e-5, and the weights to 1e-4.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file

from benchmarks.resume_drill import market

WORDS = [
    "model=two_tower", "device=cpu", "threads=1", "log_steps=1", "model.dim=16", "model.layers=1",
    "model.dropout=0", "model.id_dropout=0", "model.optimizer.dense_table_rows=10",
    "model.full_softmax_below=1000000",
]  # fmt: skip


def start(out: Path, arguments: dict[str, str], world: int, *words: str) -> list[subprocess.Popen[bytes]]:
    """One job of ``world`` processes, named through the environment as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).resolve().parent.parent
    command = [
        sys.executable, "-W", "ignore", "-m", "shopreel", "train", f"prepared={arguments['prepared']}",
        f"out={out}", f"checkpoint_steps={arguments.get('every', '4')}",
        f"model.tokens={int(arguments.get('tokens', '2048')) // world}",
        f"model.max_epochs={arguments.get('epochs', '1')}", *WORDS, *words,
    ]  # fmt: skip
    jobs = []
    for rank in range(world):
        place = {
            "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": root,
        }  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in place.items()}
        with (out.parent / f"{out.name}.log").open("ab") as log:
            jobs.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return jobs


def losses(out: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [entry["step"] for entry in entries if "train/loss" in entry]
    if steps != sorted(set(steps)):
        raise SystemExit("steps are out of order or repeated")
    return {entry["step"]: entry["train/loss"] for entry in entries if "train/loss" in entry}


def newest(out: Path) -> int:
    return max((int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")), default=0)


def main(arguments: dict[str, str]) -> None:
    sizes = [int(size) for size in arguments.get("ranks", "1,2,4,2,1").split(",")]
    with tempfile.TemporaryDirectory() as folder:
        if "prepared" not in arguments:
            root = Path(__file__).resolve().parent.parent
            made = market(Path(folder), os.environ | {"PYTHONPATH": str(root)})
            arguments = arguments | {"prepared": str(made)}
        alone, moved = Path(folder) / "alone", Path(folder) / "moved"
        for job in start(alone, arguments, 1):
            if job.wait():
                raise SystemExit((Path(folder) / "alone.log").read_text().splitlines()[-1])
        wanted, reached = losses(alone), [0]
        for place, world in enumerate(sizes):
            jobs = start(moved, arguments, world, "resume=true")
            last = place == len(sizes) - 1
            while all(job.poll() is None for job in jobs):
                if not last and newest(moved) > reached[-1]:
                    break
                time.sleep(0.02)
            for job in jobs:
                if last:
                    job.wait()
                else:
                    job.kill()
                    job.wait()
            reached.append(newest(moved))
            print(
                f"{world} process(es): from step {reached[-2]} to the checkpoint of step {reached[-1]}",
                flush=True,
            )
            if (last and jobs[0].returncode) or reached[-1] <= reached[-2]:
                raise SystemExit((Path(folder) / "moved.log").read_text().splitlines()[-1])
        found = losses(moved)
        apart = (
            max(abs(found[step] - loss) for step, loss in wanted.items())
            if found.keys() == wanted.keys()
            else 9
        )
        one, other = (load_file(run / "model" / "model.safetensors") for run in (alone, moved))
        weights = max(float(abs(one[name] - other[name]).max()) for name in one)
        print(f"{len(wanted)} steps: losses within {apart:.1e}, weights within {weights:.1e} of one alone")
        if apart > 1e-5 or weights > 1e-4:
            raise SystemExit("they differ")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
