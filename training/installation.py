"""Facts about this machine and this Python environment, as plain data; nothing is judged here."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

OUR_PACKAGES = ("data", "models", "training", "serving", "evaluation", "configs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A library tried in a process of its own: what it said of itself, or why it died."""

    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Everything that :func:`examine` judges."""

    python: tuple[int, int, int]
    platform: str
    cpu_count: int  # cores that this process may use
    nvidia_driver: bool
    versions: dict[str, str]  # installed distributions, canonical name → version
    unmet: list[str]  # requirements of installed distributions that no installed version meets
    pinned: dict[str, str]  # requirements/cpu.txt or cuda.txt where the source tree has one
    origins: dict[str, str]  # our packages → the folder that they are imported from; "" = not found
    home: str  # folder of shopreel.py
    unreadable_configs: list[str]
    free_gib: float
    folder: str
    torch: Probe
    fbgemm: Probe
    torchrec: Probe
    faiss: Probe


def gather(folder: Path, *, timeout_s: float) -> Facts:
    """Look at this machine and this environment; heavy libraries are tried in processes of their own."""
    probes = _run_probes(timeout_s)
    versions: dict[str, str] = {
        canonicalize_name(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    home = Path(__file__).resolve().parent.parent
    return Facts(
        python=sys.version_info[:3],
        platform=f"{platform.system()} {platform.machine()}",
        cpu_count=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        nvidia_driver=driver,
        versions=versions,
        unmet=_unmet_requirements(versions),
        pinned=_read_pins(home / "requirements" / ("cuda.txt" if driver else "cpu.txt")),
        origins={name: _origin(name) for name in OUR_PACKAGES},
        home=str(home),
        unreadable_configs=_unreadable_configs(),
        free_gib=shutil.disk_usage(folder).free / 2**30,
        folder=str(folder.resolve()),
        **probes,
    )


_PROBES = {
    "torch": """
import torch
n = torch.cuda.device_count()
values = dict(version=torch.__version__, cuda=torch.version.cuda, threads=torch.get_num_threads(),
    devices=[f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(n)])
""",
    "fbgemm": """
import torch, fbgemm_gpu
offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([2, 0, 1]))
assert offsets.tolist() == [0, 2, 2, 3], f"its operators give wrong results: {offsets.tolist()}"
values = dict(version=fbgemm_gpu.__version__)
""",
    "torchrec": """
import torchrec
values = dict(version=torchrec.__version__)
""",
    "faiss": """
import faiss, numpy
index = faiss.IndexFlatIP(2)
index.add(numpy.eye(2, dtype="float32"))
assert index.search(numpy.array([[0, 1]], dtype="float32"), 1)[1][0, 0] == 1, "a search gives a wrong result"
values = dict(version=faiss.__version__, instructions=faiss.get_compile_options().strip(),
    threads=faiss.omp_get_max_threads())
""",
}


def _run_probes(timeout_s: float) -> dict[str, Probe]:
    """Try each library in a child, all at once; a crash, a hang and an exception all become a reason."""
    children = {}
    for name, code in _PROBES.items():
        script = f"{code}\nimport json; print('\\n@' + json.dumps(values))"
        command = [sys.executable, "-W", "ignore", "-c", script]
        children[name] = subprocess.Popen(command, stdout=-1, stderr=-1, stdin=subprocess.DEVNULL, text=True)
    return {name: _read_probe(child, timeout_s) for name, child in children.items()}


def _read_probe(child: "subprocess.Popen[str]", timeout_s: float) -> Probe:
    try:
        output, errors = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return Probe(error=f"still importing after {timeout_s:g} s")
    if child.returncode < 0:
        return Probe(error=f"crashes with signal {-child.returncode}")
    if child.returncode:
        lines = [line for line in errors.splitlines() if line.strip()]
        return Probe(error=lines[-1] if lines else f"exit code {child.returncode}")
    return Probe(values=json.loads(output.rsplit("\n@", 1)[1]))


def _unmet_requirements(versions: dict[str, str]) -> list[str]:
    """Requirements of installed distributions, extras left out, that the environment does not meet."""
    unmet = []
    for distribution in importlib.metadata.distributions():
        owner = f"{distribution.metadata['Name']} {distribution.version}"
        for text in distribution.requires or []:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            wanted = f"{requirement.name}{requirement.specifier}"
            version = versions.get(canonicalize_name(requirement.name))
            if version is None:
                unmet.append(f"{owner} needs {wanted}, which is not installed")
            elif not requirement.specifier.contains(version, prereleases=True):
                unmet.append(f"{owner} needs {wanted}, but {version} is installed")
    return sorted(unmet)


def _read_pins(path: Path) -> dict[str, str]:
    """The ``name==version`` lines of a requirements file; empty where the source tree has none."""
    if not path.is_file():
        return {}
    pins: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("#")[0].partition("==")
        if equals:
            pins[canonicalize_name(name.strip())] = version.partition(";")[0].strip()
    return pins


def _origin(package: str) -> str:
    """The folder of a regular package; "" where there is none or only a plain folder of that name."""
    spec = importlib.util.find_spec(package)
    return str(Path(spec.origin).resolve().parent) if spec and spec.origin else ""


def _unreadable_configs() -> list[str]:
    from shopreel import COMMANDS

    problems = []
    for name in COMMANDS:
        try:
            resources.files("configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"configs/{name}.yaml: {error}")
    return problems
