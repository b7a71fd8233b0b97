"""Kill training again and again, resume it, and compare every step with a run that nobody disturbed.

    python benchmarks/resume_drill.py [prepared=PREPARED] [kills=20] [seed=0] [epochs=2]

Without ``prepared=`` the log is a small simulated market. The process gets SIGKILL at a random step after its
last start, wherever it is (within a step, a validation, a checkpoint); the next one starts with
``resume=true``. In the end metrics.jsonl must hold every step once, in order, with the undisturbed run's loss
to the last bit: dropout, negatives and batches are random, so one example lost, repeated or swapped would
change it from there on. The weights must be the same bits, too.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(out: Path, arguments: dict[str, str], *words: str) -> list[str]:
    """One training run, with every source of randomness on."""
    return [
        sys.executable, "-m", "shopreel", "train", "model=two_tower", f"prepared={arguments['prepared']}",
        f"out={out}", "device=cpu", "threads=1", "log_steps=1", "checkpoint_steps=10", "model.dim=16",
        "model.layers=1", "model.tokens=1024", f"model.max_epochs={arguments.get('epochs', '2')}",
        "model.patience=100", "model.uniform_negatives=64", "model.full_softmax_below=1", *words,
    ]  # fmt: skip


def market(folder: Path, environment: dict[str, str]) -> Path:
    """A simulated log of some 40,000 impressions, prepared."""
    log, prepared = folder / "log", folder / "prepared"
    for words in (
        ["simulate", f"out={log}", "users=600", "videos=1000", "products=300", "days=8"],
        ["prepare", f"dataset={log}", f"out={prepared}", f"temp_directory={folder}"],
    ):
        subprocess.run(
            [sys.executable, "-m", "shopreel", *words], check=True, capture_output=True, env=environment
        )
    return prepared


def losses(out: Path) -> list[tuple[int, float]]:
    """(step, loss) as logged; whole lines alone."""
    file = out / "metrics.jsonl"
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(entry["step"], entry["train/loss"]) for entry in entries if "train/loss" in entry]


def weights(out: Path) -> str:
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


def main(arguments: dict[str, str]) -> None:
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    generator = random.Random(int(arguments.get("seed", "0")))
    kills = int(arguments.get("kills", "20"))
    with tempfile.TemporaryDirectory() as folder:
        if "prepared" not in arguments:
            arguments = arguments | {"prepared": str(market(Path(folder), environment))}
        calm, drilled = Path(folder) / "calm", Path(folder) / "drilled"
        subprocess.run(command(calm, arguments), check=True, capture_output=True, env=environment)
        wanted = losses(calm)
        print(f"undisturbed: {len(wanted)} steps", flush=True)
        killed: list[int] = []
        starts = 0
        while True:
            starts += 1
            log = subprocess.DEVNULL
            process = subprocess.Popen(
                command(drilled, arguments, "resume=true"), env=environment, stdout=log, stderr=log
            )
            begin = max((step for step, _ in losses(drilled)), default=0)
            left = (len(wanted) - begin) // max(kills - len(killed), 1)
            ahead = generator.randint(1, max(left, 1))
            while process.poll() is None and len(killed) < kills:
                now = max((step for step, _ in losses(drilled)), default=0)
                if now >= begin + ahead and now > 0:
                    time.sleep(generator.random() * 0.02)
                    process.kill()
                    process.wait()
                    killed.append(max(step for step, _ in losses(drilled)))
                    break
                time.sleep(0.005)
            else:
                if process.wait():
                    raise SystemExit("a resumed run failed by itself")
                break
        found = losses(drilled)
        same = found == wanted
        first = next((a for a, b in zip(found, wanted, strict=False) if a != b), None)
        print(f"killed {len(killed)} times, at steps {killed}; {starts} starts")
        print(f"steps logged {len(found)}, all once and equal in every bit: {same}")
        print(f"same weights: {weights(calm) == weights(drilled)}")
        if not same or weights(calm) != weights(drilled) or len(killed) < kills:
            raise SystemExit(f"the drill failed: first difference {first}, {len(killed)} of {kills} kills")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
