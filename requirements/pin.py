"""Resolve the ``.in`` lists and pin them, transitive dependencies included, in the ``.txt`` beside each.

Run at the repository's root: ``make pin``, or ``python requirements/pin.py cpu dev`` for some of them.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path("requirements")
LISTS = ("cpu", "cuda", "dev", "spark", "browser", "traces")  # from dev on they stand on cpu.txt


def main() -> None:
    """Pin the lists named on the command line, all of them by default."""
    for name in sys.argv[1:] or LISTS:
        (FOLDER / f"{name}.txt").write_text(pinned(name), encoding="utf-8")
        print(f"requirements/{name}.txt written")


def pinned(name: str) -> str:
    """The content of ``<name>.txt``: what pip would install for ``<name>.in`` into an empty environment."""
    source = FOLDER / f"{name}.in"
    base = [line for line in source.read_text(encoding="utf-8").splitlines() if line.endswith(".txt")]
    known = {line for file in base for line in _lines(FOLDER / file.split()[-1])}
    lines = [line for line in sorted(_resolve(source), key=str.lower) if line not in known]
    return "\n".join([f"# Resolved from {name}.in by `make pin`; do not edit by hand.", *base, *lines]) + "\n"


def _resolve(source: Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), "-r", str(source)], check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [_line(install) for install in installs]


def _line(install: dict[str, dict[str, str]]) -> str:
    """``name==version`` without a build's local part, which only some indexes have; a folder stays a path."""
    if "dir_info" in install["download_info"]:
        return f"./{FOLDER}/{Path(install['download_info']['url']).name}"
    metadata = install["metadata"]
    return f"{metadata['name'].lower().replace('_', '-')}=={metadata['version'].partition('+')[0]}"


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


if __name__ == "__main__":
    main()
