"""Open Bandit both ways: each policy's click rate estimated from the other's log, beside the measured one.

    python benchmarks/evaluation_open_bandit.py raw=/path/to/open-bandit

``raw`` holds ``random/`` and ``bts/`` with the campaigns ``all``, ``men``, ``women`` (upstream's own layout).
Values are clicks per 1,000 impressions with 95 % intervals; ✗ marks an interval that does not meet that of
the measured rate.
"""

import json
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from shopreel import main as shopreel

NAMES = ("ips", "snips", "dm", "dr", "switch_dr", "dr_os")


def run(*arguments: str) -> None:
    """A command of ours, quietly."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = shopreel(list(arguments))
    assert code == 0, said.getvalue()


def study(dataset: Path, out: Path, campaign: str, logging: str, target: str) -> dict[str, Any]:
    """The off-policy section of the report."""
    run(
        "evaluate", f"log={dataset}", f"out={out}", f"off_policy.logging_policy={logging}",
        f"off_policy.target_policy={target}", f"off_policy.where={{surface: {campaign}}}",
        "off_policy.unit=row",
    )  # fmt: skip
    found: dict[str, Any] = json.loads((out / "report.json").read_text())["off_policy"]
    return found


def text(estimate: dict[str, float]) -> str:
    return f"{1000 * estimate['value']:.2f} ({1000 * estimate['low']:.2f} – {1000 * estimate['high']:.2f})"


def main(arguments: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        run("import", "source=openbandit", f"raw={arguments['raw']}", f"out={dataset}")
        print("| campaign | log → target | measured | " + " | ".join(NAMES) + " |")
        print("|---" * (3 + len(NAMES)) + "|")
        for campaign in ("all", "men", "women"):
            for logging, target in (("random", "bts"), ("bts", "random")):
                out = Path(folder) / f"{campaign}-{logging}"
                found = study(dataset, out, campaign, logging, target)
                truth, cells = found["on_policy"], []
                for name in NAMES:
                    each = found["estimates"].get(name)
                    if each is None:
                        cells.append("refused")
                        continue
                    meets = each["low"] <= truth["high"] and truth["low"] <= each["high"]
                    cells.append(text(each) + ("" if meets else " ✗"))
                print(f"| {campaign} | {logging} → {target} | {text(truth)} | {' | '.join(cells)} |")
                for why in sorted(set(found["refused"].values())):
                    print(f"  refused: {why}")


if __name__ == "__main__":
    main(dict(word.split("=", 1) for word in sys.argv[1:]))
