"""Every problem that ``shopreel doctor`` knows is planted and must be found, with its mend."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import shopreel
from training import installation
from training.doctor import Finding, examine
from training.installation import OUR_PACKAGES, Facts, Probe

HOME = Path("/home/me/shopreel")
CUDA_TORCH = Probe(values={"version": "2.13.0", "cuda": "13.0", "threads": 2, "devices": []})
ONE_GPU = Probe(values={**CUDA_TORCH.values, "devices": ["cuda:0 a GPU"]})
HEALTHY = Facts(
    python=(3, 11, 7),
    platform="Linux x86_64",
    cpu_count=2,
    nvidia_driver=False,
    versions={
        "torch": "2.13.0+cpu",
        "fbgemm-gpu": "1.8.0+cpu",
        "fbgemm-gpu-cpu": "1.8.0",
        "torchrec": "1.8.0",
        "shopreel": "0.1.0",
        "redis": "8.1.0",
    },
    unmet=[],
    pinned={"torch": "2.13.0", "redis": "8.1.0"},
    origins={name: str(HOME / name) for name in OUR_PACKAGES},
    home=str(HOME),
    unreadable_configs=[],
    free_gib=50.0,
    folder="/home/me",
    torch=Probe(values={"version": "2.13.0+cpu", "cuda": None, "threads": 2, "devices": []}),
    fbgemm=Probe(values={"version": "1.8.0"}),
    torchrec=Probe(values={"version": "1.8.0"}),
    faiss=Probe(values={"version": "1.15.1", "instructions": "OPTIMIZE AVX2", "threads": 2}),
)


def plant(**changes: Any) -> Facts:
    return dataclasses.replace(HEALTHY, **changes)


def versions(**changes: str | None) -> dict[str, str]:
    merged = {**HEALTHY.versions, **{name.replace("_", "-"): version for name, version in changes.items()}}
    return {name: version for name, version in merged.items() if version}


def remarks(facts: Facts) -> list[Finding]:
    return [finding for finding in examine(facts, min_free_gib=5) if finding.mend]


def test_a_healthy_machine_has_no_remark():
    findings = examine(HEALTHY, min_free_gib=5)
    assert not remarks(HEALTHY)
    assert not any(finding.problem for finding in findings)
    said = "\n".join(finding.says for finding in findings)
    assert "torch 2.13.0+cpu · fbgemm 1.8.0 · torchrec 1.8.0" in said
    assert "OPTIMIZE AVX2" in said


def test_a_healthy_gpu_machine_has_no_remark():
    facts = plant(
        nvidia_driver=True,
        torch=ONE_GPU,
        versions=versions(fbgemm_gpu_cpu=None, fbgemm_gpu="1.8.0", torch="2.13.0"),
    )
    assert not remarks(facts)
    assert any("cuda:0 a GPU" in finding.says for finding in examine(facts, min_free_gib=5))


GPU = {"nvidia_driver": True, "torch": ONE_GPU}
PROBLEMS = {
    "old Python": (plant(python=(3, 10, 4)), "3.10.4", "PYTHON=python3.11"),
    "missing pin": (plant(versions=versions(redis=None)), "redis==8.1.0 is not installed", "cpu.txt"),
    "unmet requirement": (plant(unmet=["a 1 needs b>=2, but 1 is installed"]), "b>=2", "cpu.txt"),
    "torchrec too old": (plant(versions=versions(torchrec="1.7.0")), "torchrec 1.7.0", "torchrec 1.8 work"),
    "torch too new": (plant(versions=versions(torch="2.14.0")), "torch 2.14.0", "torch 2.13 ·"),
    "no fbgemm": (
        plant(versions=versions(fbgemm_gpu=None, fbgemm_gpu_cpu=None)),
        "fbgemm missing",
        "fbgemm 1.8",
    ),
    "CUDA fbgemm over the CPU one": (
        plant(versions=versions(fbgemm_gpu="1.8.0")),
        "without CUDA",
        "uninstall -y fbgemm-gpu",
    ),
    "CUDA fbgemm on a CPU machine": (
        plant(versions=versions(fbgemm_gpu_cpu=None, fbgemm_gpu="1.8.0")),
        "without CUDA",
        "uninstall -y fbgemm-gpu",
    ),
    "CPU fbgemm on a GPU machine": (plant(**GPU), "operators load (CPU only)", "cuda.txt"),
    "driver without a device": (
        plant(nvidia_driver=True, torch=CUDA_TORCH),
        "device cpu",
        "CUDA_VISIBLE_DEVICES",
    ),
    "torch does not import": (plant(torch=Probe(error="ImportError: libc10.so")), "libc10.so", "cpu.txt"),
    "fbgemm crashes": (plant(fbgemm=Probe(error="crashes with signal 11")), "signal 11", "cpu.txt"),
    "torchrec does not import": (
        plant(torchrec=Probe(error="undefined symbol")),
        "undefined symbol",
        "cpu.txt",
    ),
    "faiss does not import": (plant(faiss=Probe(error="No module named 'faiss'")), "'faiss'", "cpu.txt"),
    "package missing": (
        plant(origins={**HEALTHY.origins, "models": ""}),
        "models is not found",
        "install -e .",
    ),
    "package of another project": (
        plant(origins={**HEALTHY.origins, "data": "/site-packages/data"}),
        "data comes from /site-packages",
        "of shopreel's own",
    ),
    "config unreadable": (
        plant(unreadable_configs=["configs/train.yaml: gone"]),
        "train.yaml: gone",
        "install -e .",
    ),
    "disk full": (plant(free_gib=4.9), "4.9 GiB free in /home/me", "wanted: 5 GiB"),
}


@pytest.mark.parametrize(("facts", "says", "mend"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_planted_problem_is_found_with_its_mend(facts, says, mend):
    found = [finding for finding in remarks(facts) if finding.problem]
    assert any(says in finding.says and mend in finding.mend for finding in found), found


NOTES = {
    "newer Python": (plant(python=(3, 12, 1)), "tested on Python 3.11"),
    "CUDA torch on a CPU machine": (plant(torch=CUDA_TORCH), "CUDA wheel on a CPU machine"),
    "idle GPU": (plant(nvidia_driver=True), "stays idle"),
    "another version than pinned": (plant(versions=versions(redis="8.0.0")), "cpu.txt"),
    "not installed": (plant(versions=versions(shopreel=None)), "install -e ."),
}


@pytest.mark.parametrize(("facts", "mend"), NOTES.values(), ids=NOTES)
def test_what_works_but_could_be_better_is_a_note(facts, mend):
    (note,) = remarks(facts)
    assert mend in note.mend
    assert not note.problem


@pytest.mark.parametrize(("facts", "code"), [(HEALTHY, 0), (plant(free_gib=0.0), 2)])
@pytest.mark.parametrize("form", ["text", "json"])
def test_exit_code_and_report(capsys, monkeypatch, facts, code, form):
    monkeypatch.setattr("training.doctor.gather", lambda folder, timeout_s: facts)
    assert shopreel.main(["doctor", f"format={form}"]) == code
    out = capsys.readouterr().out
    if form == "json":
        report = json.loads(out)
        assert report["problems"] == (1 if code else 0)
        assert report["facts"]["versions"]["torch"] == "2.13.0+cpu"
    else:
        assert ("PROBLEM disk" in out) == bool(code)
        assert out.rstrip().splitlines()[-1] == ("1 problem." if code else "No problems. Next: shopreel demo")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes with signal 11"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("assert False, 'wrong results'", "AssertionError: wrong results"),
        ("import time; time.sleep(60)", "still importing after 3 s"),
        ("values = dict(version='1')", ""),
    ],
)
def test_a_library_that_dies_does_not_take_the_doctor_along(monkeypatch, code, error):
    monkeypatch.setattr(installation, "_PROBES", {"library": code})
    probe = installation._run_probes(3.0)["library"]
    assert probe.error == error
    assert bool(probe.values) == (not error)


@pytest.mark.slow
def test_gathering_on_this_machine(tmp_path):
    facts = installation.gather(tmp_path, timeout_s=120)
    assert facts.python == sys.version_info[:3]
    assert facts.cpu_count >= 1
    assert facts.versions["torch"].startswith(facts.pinned["torch"])
    assert set(facts.pinned) >= {"torch", "faiss-cpu", "hydra-core", "fastapi"}
    assert facts.free_gib > 0
    home = Path(shopreel.__file__).parent
    assert facts.home == str(home)
    assert {name: Path(origin) for name, origin in facts.origins.items()} == {
        name: home / name for name in OUR_PACKAGES
    }
    assert not facts.torch.error
    assert not facts.faiss.error
    assert facts.faiss.values["instructions"]


def test_requirements_that_nothing_meets_are_listed(tmp_path, monkeypatch):
    information = tmp_path / "needy-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: needy\nVersion: 1.0\n"
        "Requires-Dist: of-nobody (>=2)\nRequires-Dist: pytest (<1)\n"
        "Requires-Dist: only-extra ; extra == 'more'\nRequires-Dist: only-windows ; sys_platform == 'win32'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    unmet = installation._unmet_requirements({"pytest": "9.0"})
    assert [line for line in unmet if line.startswith("needy")] == [
        "needy 1.0 needs of-nobody>=2, which is not installed",
        "needy 1.0 needs pytest<1, but 9.0 is installed",
    ]
