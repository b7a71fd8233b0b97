"""``shopreel doctor``: what is installed, on which device, and every problem with its mend.

:mod:`training.installation` gathers facts; :func:`examine` judges them and touches nothing, so that
tests plant every problem. No network is used.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from packaging.version import Version

from data.errors import ConfigError
from training.installation import Facts, Probe, gather

#: PyTorch, FBGEMM and TorchRec are compiled against one another: one row works, a mixture does not.
TRIOS = ({"torch": "2.13", "fbgemm": "1.8", "torchrec": "1.8"},)
TESTED_PYTHON = (3, 11)
INSTALL = {
    "cpu": "at the repository's root: python -m pip install -r requirements/cpu.txt",
    "cuda": "at the repository's root: python -m pip install -r requirements/cuda.txt",
}
INSTALL_OURSELVES = "at the repository's root: python -m pip install -e ."
CPU_WHEEL = "PyTorch's install page names the index of CPU wheels; give it to pip as PIP_EXTRA_INDEX_URL"


class Format(Enum):
    """How the findings are printed."""

    text = "text"
    json = "json"


@dataclass(kw_only=True, slots=True)
class DoctorConfig:
    """Keys of ``configs/doctor.yaml``."""

    format: Format
    folder: str
    min_free_gib: float
    timeout_s: float

    def __post_init__(self) -> None:
        if self.min_free_gib < 0:
            raise ConfigError(f"min_free_gib={self.min_free_gib}: must not be negative")
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s={self.timeout_s}: must be positive")
        if not Path(self.folder).is_dir():
            raise ConfigError(f"folder={self.folder}: no such directory; name one that exists")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``mend`` is empty where all is well; ``problem`` sets the exit code."""

    subject: str
    says: str
    mend: str = ""
    problem: bool = False


def run(config: DoctorConfig) -> int:
    """Print every finding; 0 when there is no problem, 2 otherwise."""
    facts = gather(Path(config.folder), timeout_s=config.timeout_s)
    findings = examine(facts, min_free_gib=config.min_free_gib)
    problems = sum(finding.problem for finding in findings)
    if config.format is Format.json:
        report = {"problems": problems, "findings": [asdict(f) for f in findings], "facts": asdict(facts)}
        print(json.dumps(report, indent=2))
        return 2 if problems else 0
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = "PROBLEM" if finding.problem else "note" if finding.mend else "ok"
        print(f"{mark:<8}{finding.subject:<{width}}  {finding.says}")
        if finding.mend:
            print(f"{'':<8}{'':<{width}}  → {finding.mend}")
    print(f"{problems} problem{'s' * (problems != 1)}." if problems else "No problems. Next: shopreel demo")
    return 2 if problems else 0


def examine(facts: Facts, *, min_free_gib: float) -> list[Finding]:
    """Judge the facts: one finding per check, in the order in which they should be mended."""
    checks: tuple[Callable[[Facts], list[Finding]], ...] = (
        _python, _requirements, _trio, _torch, _fbgemm, _torchrec, _faiss, _source, _configs,
    )  # fmt: skip
    findings = [finding for check in checks for finding in check(facts)]
    free = f"{facts.free_gib:.1f} GiB free in {facts.folder}"
    if facts.free_gib < min_free_gib:
        mend = f"free some space, or write elsewhere with out=DIR (wanted: {min_free_gib:g} GiB)"
        return [*findings, Finding("disk", free, mend, problem=True)]
    return [*findings, Finding("disk", free)]


def _python(facts: Facts) -> list[Finding]:
    says = ".".join(map(str, facts.python)) + f" on {facts.platform}, {facts.cpu_count} cores"
    if facts.python[:2] == TESTED_PYTHON:
        return [Finding("python", says)]
    mend = "tested on Python 3.11; for an environment with it: make clean && make demo PYTHON=python3.11"
    return [Finding("python", says, mend, problem=facts.python[:2] < TESTED_PYTHON)]


def _requirements(facts: Facts) -> list[Finding]:
    install = INSTALL[_variant(facts)]
    missing = sorted(name for name in facts.pinned if name not in facts.versions)
    findings = [
        Finding("requirements", f"{name}=={facts.pinned[name]} is not installed", install, problem=True)
        for name in missing
    ]
    findings += [Finding("requirements", unmet, install, problem=True) for unmet in facts.unmet]
    other = [
        f"{name} {facts.versions[name]} (pinned {version})"
        for name, version in sorted(facts.pinned.items())
        if name in facts.versions and not _same_version(facts.versions[name], version)
    ]
    if other:
        findings.append(Finding("requirements", "other versions than tested: " + ", ".join(other), install))
    return findings or [Finding("requirements", f"{len(facts.versions)} distributions, all satisfied")]


def _trio(facts: Facts) -> list[Finding]:
    versions = facts.versions
    found = {
        "torch": versions.get("torch"),
        "fbgemm": versions.get("fbgemm-gpu-cpu") or versions.get("fbgemm-gpu"),
        "torchrec": versions.get("torchrec"),
    }
    says = " · ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    if {name: _minor(version) for name, version in found.items() if version} in TRIOS:
        return [Finding("pairing", says)]
    wanted = " or ".join(" · ".join(f"{name} {version}" for name, version in trio.items()) for trio in TRIOS)
    mend = f"only {wanted} work together: {INSTALL[_variant(facts)]}"
    return [Finding("pairing", says, mend, problem=True)]


def _torch(facts: Facts) -> list[Finding]:
    if facts.torch.error:
        return [_broken("torch", facts.torch, facts)]
    values = facts.torch.values
    cuda, devices = values["cuda"], values["devices"]
    build = f"built for CUDA {cuda}" if cuda else "built for CPU"
    says = f"{values['version']}, {build}, {values['threads']} threads, device {', '.join(devices) or 'cpu'}"
    if cuda and not facts.nvidia_driver:
        return [Finding("torch", says, f"a CUDA wheel on a CPU machine works but is large; {CPU_WHEEL}")]
    if cuda and not devices:
        mend = "there is an NVIDIA driver but CUDA sees no device: update it, or mend CUDA_VISIBLE_DEVICES"
        return [Finding("torch", says, mend, problem=True)]
    if not cuda and facts.nvidia_driver:
        return [Finding("torch", says, f"this machine's NVIDIA GPU stays idle: {INSTALL['cuda']}")]
    return [Finding("torch", says)]


def _fbgemm(facts: Facts) -> list[Finding]:
    # The local package that only carries the name is +cpu; see requirements/fbgemm-gpu-cpu.
    cuda_wheel = not facts.versions.get("fbgemm-gpu", "+cpu").endswith("+cpu")
    if cuda_wheel and not facts.nvidia_driver:
        says = (
            f"the CUDA wheel fbgemm-gpu {facts.versions['fbgemm-gpu']} cannot load on a machine without CUDA"
        )
        mend = f"python -m pip uninstall -y fbgemm-gpu, then {INSTALL['cpu']}"
        return [Finding("fbgemm", says, mend, problem=True)]
    if facts.fbgemm.error:
        return [_broken("fbgemm", facts.fbgemm, facts)]
    says = f"{facts.fbgemm.values.get('version')}, operators load"
    if facts.torch.values.get("cuda") and facts.nvidia_driver and not cuda_wheel:
        uninstall = "python -m pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu"
        mend = f"the GPU needs the CUDA wheel: {uninstall}, then {INSTALL['cuda']}"
        return [Finding("fbgemm", says + " (CPU only)", mend, problem=True)]
    return [Finding("fbgemm", says)]


def _torchrec(facts: Facts) -> list[Finding]:
    if facts.torchrec.error:
        return [_broken("torchrec", facts.torchrec, facts)]
    return [Finding("torchrec", f"{facts.torchrec.values.get('version')}, imports")]


def _faiss(facts: Facts) -> list[Finding]:
    if facts.faiss.error:
        return [_broken("faiss", facts.faiss, facts)]
    values = facts.faiss.values
    says = f"{values.get('version')}, {values.get('instructions')}, {values.get('threads')} threads"
    return [Finding("faiss", says)]


def _source(facts: Facts) -> list[Finding]:
    findings = []
    for name, origin in facts.origins.items():
        if not origin:
            says, mend = (
                f"package {name} is not found",
                "at the repository's root: python -m pip install -e .",
            )
        elif Path(origin).parent != Path(facts.home):
            says = f"package {name} comes from {origin}, not from {facts.home}"
            mend = "another project has a package of that name: use an environment of shopreel's own"
        else:
            continue
        findings.append(Finding("source", says, mend, problem=True))
    if "shopreel" not in facts.versions:
        says = "shopreel is not installed: it works from its own folder only"
        findings.append(Finding("source", says, INSTALL_OURSELVES))
    return findings or [Finding("source", f"shopreel {facts.versions['shopreel']} in {facts.home}")]


def _configs(facts: Facts) -> list[Finding]:
    if not facts.unreadable_configs:
        return [Finding("configs", "a readable YAML for every command")]
    return [Finding("configs", name, INSTALL_OURSELVES, problem=True) for name in facts.unreadable_configs]


def _broken(name: str, probe: Probe, facts: Facts) -> Finding:
    return Finding(name, f"does not load: {probe.error}", INSTALL[_variant(facts)], problem=True)


def _variant(facts: Facts) -> str:
    return "cuda" if facts.nvidia_driver else "cpu"


def _minor(version: str) -> str:
    return ".".join(str(part) for part in Version(version).release[:2])


def _same_version(installed: str, pinned: str) -> bool:
    return Version(installed).public == Version(pinned).public


CONFIG = DoctorConfig
