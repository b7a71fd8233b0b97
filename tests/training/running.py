"""How the tests of training start it: in this process, or in processes that can be killed."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import shopreel

REPOSITORY = Path(__file__).resolve().parents[2]
#: A small model whose every source of randomness is on; a few milliseconds a step.
SMALL = (
    "model=two_tower", "model.dim=16", "model.tokens=400", "model.layers=1", "model.max_steps=16",
    "model.optimizer.learning_rate=0.003", "model.optimizer.warmup_steps=5", "log_steps=1", "device=cpu",
    "model.refit_epochs=0", "model.outcome.dim=8",
)  # fmt: skip


def train(*words: str) -> int:
    """``shopreel train`` in this process."""
    return shopreel.main(["train", *SMALL, *words])


def spawn(*words: str, rank: int = 0, world: int = 1, port: int = 0) -> subprocess.Popen[str]:
    """``shopreel train`` as one process of a job, named through the environment as torchrun does."""
    ranks = {
        "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    environment = os.environ | {name: str(value) for name, value in ranks.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "shopreel", "train", *SMALL, *words],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def spawn_job(*words: str, world: int) -> list[subprocess.Popen[str]]:
    """All processes of a job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [spawn(*words, rank=rank, world=world, port=port) for rank in range(world)]


def finish(processes: list[subprocess.Popen[str]], timeout_s: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, standard output and error of each process; kills what does not end."""
    results = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout_s)
            results.append((process.returncode, out, err))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return results


def wait_for(condition, process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    """Poll until ``condition()`` while ``process`` runs."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()[1]}"
        assert time.monotonic() < end, "never happened"
        time.sleep(0.002)


def records(out: Path, kind: str = "train/loss") -> dict[int, float]:
    """Step → value of a metric in a run's metrics.jsonl; the same step twice is an error."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if kind in line]
    assert steps == sorted(set(steps)), "steps repeat or are out of order"
    return {line["step"]: line[kind] for line in lines if kind in line}
