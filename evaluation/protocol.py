"""What was measured, against what, and every reason to distrust the numbers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.atomic import read_json
from data.errors import ContractError
from evaluation.hits import Hits
from evaluation.truth import Truth

#: What ``protocol.json`` beside the truth should state; ``shopreel replay`` writes it.
STATED = {
    "split": "which events the truth holds, with the split manifest's hash",
    "catalogue_size": "how many videos could have been ranked",
    "seen_mask": "whether videos the user had seen were left out",
    "tie_break": "what decides between equal scores",
    "gain": "which label made a video right",
}


@dataclass(slots=True)
class Protocol:
    """``facts`` for the report's protocol section, ``warnings`` for everybody to read."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def describe_truth(truth: Truth) -> Protocol:
    """Counts of the truth and what the replay stated about its making."""
    stated = _stated(Path(truth.path))
    protocol = Protocol({**stated, "truth": truth.path})
    protocol.facts |= {"requests": truth.requests, "users": truth.users, "right_videos": len(truth.gain_T)}
    missing = [key for key in STATED if key not in stated]
    if missing:
        protocol.warnings.append(
            f"the truth does not state its {', '.join(missing)}; write them into protocol.json beside it"
        )
    return protocol


def describe_run(protocol: Protocol, name: str, path: str, hits: Hits, deepest_cutoff: int) -> None:
    """Add one run's coverage to ``protocol`` and warn where its numbers would mislead."""
    covered = int((hits.depth_R > 0).sum())
    requests = len(hits.depth_R)
    depth = int(np.median(hits.depth_R[hits.depth_R > 0])) if covered else 0
    protocol.facts.setdefault("runs", {})[name] = {
        "path": path,
        "rows": hits.rows,
        "requests_covered": covered,
        "requests_missing": requests - covered,
        "requests_outside_truth": hits.requests_outside_truth,
        "median_depth": depth,
        "requests_of_equal_scores": hits.requests_of_equal_scores,
        "requests_of_tied_scores": hits.requests_of_tied_scores,
    }
    warn = protocol.warnings.append
    if covered < requests:
        warn(f"{name}: covers {covered:,} of {requests:,} requests; the missing ones count as 0")
    if hits.requests_outside_truth:
        warn(f"{name}: {hits.requests_outside_truth:,} requests are not in the truth and were left out")
    if covered and hits.requests_of_equal_scores > covered // 2:
        warn(
            f"{name}: all scores are equal in {hits.requests_of_equal_scores:,} requests; a collapsed model?"
        )
    elif covered and hits.requests_of_tied_scores > covered // 10:
        warn(f"{name}: scores tie in {hits.requests_of_tied_scores:,} requests; the rank column decided")
    if covered and depth < deepest_cutoff:
        warn(f"{name}: lists are {depth} long (median), shorter than the cutoff {deepest_cutoff}")


def _stated(truth: Path) -> dict[str, Any]:
    file = (truth if truth.is_dir() else truth.parent) / "protocol.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    if not isinstance(content, dict):
        raise ContractError(f"{file}: must be a JSON object with {', '.join(STATED)}")
    return content
