"""A service's processes, and the CPU time that they took (Linux)."""

import os
from pathlib import Path


def tree(pid: int) -> list[int]:
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


def cpu_s(pid: int) -> float:
    """CPU seconds that a service's processes used so far."""
    total = 0
    for member in [pid, *tree(pid)]:
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
