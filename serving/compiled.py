"""The bundle's ranker as compiled code, kept in a folder of this machine: made once, loaded by every process.

Run as a module it compiles one: ``python -m serving.compiled BUNDLE FILE THREADS``.
"""

import fcntl
import hashlib
import logging
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from models.bundle import Bundle
from models.ranker_export import can_export, export_scorer

logger = logging.getLogger("shopreel.compiled")


def use_compiled_ranker(bundle: Bundle, folder: Path, *, threads: int) -> bool:
    """Let the bundle's ranker score by compiled code; whether it does now.

    What is not in ``folder`` yet is compiled first, in a process of its own (half a minute of a core), by one
    of those who want it while the others wait. Without a ranker, on a CUDA device, without a C++ compiler or
    where it fails, the ranker stays as it is, and a log line says why.
    """
    ranker = bundle.ranker
    if ranker is None or ranker.device.type != "cpu":
        return False
    if not can_export():
        logger.warning("no C++ compiler on the path: the ranker is not compiled")
        return False
    file = folder / f"{bundle.name}-{_machine(threads)}.pt2"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists() and not _compile(bundle.path, file, threads):
            return False
    ranker.use_exported(file)
    logger.info("the ranker of %s runs compiled: %s", bundle.name, file)
    return True


def main(path: str, file: str, threads: str) -> None:
    """Compile the ranker of the bundle at ``path`` into ``file``."""
    if int(threads):
        torch.set_num_threads(int(threads))
    ranker = Bundle.open(path).ranker
    assert ranker is not None
    export_scorer(ranker.model, Path(file))


def _compile(path: Path, file: Path, threads: int) -> bool:
    draft = file.with_name(f".{os.getpid()}-{file.name}")
    command = [sys.executable, "-m", "serving.compiled", str(path), str(draft), str(threads)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        draft.replace(file)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logger.warning("the ranker is not compiled: %s", said.strip().splitlines()[-1])
        return False
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    return True


def _machine(threads: int) -> str:
    """What compiled code depends on besides the weights."""
    facts = [torch.__version__, platform.machine(), str(threads)]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        facts += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main(*sys.argv[1:])
