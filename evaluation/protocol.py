"""What was measured, against what, and every reason to distrust the numbers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.atomic import read_json
from data.errors import ContractError
from evaluation.catalogue import Catalogue
from evaluation.ids import id_words
from evaluation.ranking_study import ScoredRun
from evaluation.truth import Truth

#: Lists no longer than this that hold every right video come from a sample of negatives.
SAMPLED_DEPTH = 1100

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


def describe_truth(truth: Truth, catalogue: Catalogue | None) -> Protocol:
    """Counts of the truth and what the replay stated about its making."""
    stated = _stated(Path(truth.path))
    if catalogue is not None:
        stated.setdefault("catalogue_size", catalogue.size)
    protocol = Protocol({**stated, "truth": truth.path})
    protocol.facts |= {"requests": truth.requests, "users": truth.users, "right_videos": len(truth.gain_T)}
    missing = [key for key in STATED if key not in stated]
    if missing:
        protocol.warnings.append(
            f"the truth does not state its {', '.join(missing)}; write them into protocol.json beside it"
        )
    if catalogue is not None:
        protocol.warnings += catalogue.notes
        _overlap(protocol, truth, catalogue)
    return protocol


def describe_run(protocol: Protocol, name: str, run: ScoredRun, truth: Truth) -> None:
    """Add one run's coverage to ``protocol`` and warn where its numbers would mislead."""
    hits, path = run.hits, run.source.path
    covered = int((hits.depth_R > 0).sum())
    requests = len(hits.depth_R)
    if not covered and hits.requests_outside_truth:
        raise ContractError(
            f"run={path}: none of its {hits.requests_outside_truth:,} requests is in the truth; give the "
            "truth of the same requests, under the same ids"
        )
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
    ranked_truth = len(hits.truth_H) / max(int((hits.depth_R[truth.request_T] > 0).sum()), 1)
    # what a user has seen is left out of whole lists too, in a small catalogue much of it
    small_catalogue = _number(protocol.facts.get("catalogue_size")) <= 2 * depth
    if covered and 1 < depth <= SAMPLED_DEPTH and ranked_truth > 0.999 and not small_catalogue:
        warn(
            f"{name}: every right video stands in its list of {depth}; negatives look sampled, and sampled "
            "metrics do not compare with full ranking (Krichene and Rendle, KDD 2020)"
        )


def warn_of_short_lists(protocol: Protocol, deepest_cutoff: int) -> None:
    """One warning for all runs whose lists are shorter than the deepest cutoff."""
    depths = {name: facts["median_depth"] for name, facts in protocol.facts.get("runs", {}).items()}
    short = {name: depth for name, depth in depths.items() if 0 < depth < deepest_cutoff}
    if short:
        named = ", ".join(f"{name} {depth}" for name, depth in short.items())
        protocol.warnings.append(f"lists are shorter (median) than the cutoff {deepest_cutoff}: {named}")


def _overlap(protocol: Protocol, truth: Truth, catalogue: Catalogue) -> None:
    """Warn where the truth holds videos that the user had been shown before."""
    size = max(catalogue.size, 1)
    seen = np.unique(catalogue.history_user * size + catalogue.history_video)
    video_T = catalogue.video_rows.rows(id_words(truth.video_T))
    known_T = video_T >= 0
    repeated = int(np.isin(truth.user_R[truth.request_T][known_T] * size + video_T[known_T], seen).sum())
    protocol.facts["right_videos_seen_before"] = repeated
    if repeated:
        protocol.warnings.append(
            f"train/test overlap: {repeated:,} of {len(video_T):,} right videos were shown to the user before"
        )
    if not known_T.all():
        protocol.warnings.append(f"{int((~known_T).sum()):,} right videos are not in the dataset's catalogue")


def readable(value: Any) -> str:
    """A fact as one line: ``name: test · mode: time``, numbers with thousands, empty parts left out.

    So are moments in milliseconds (``end_ms``), which stand beside the same moment as text (``end``).
    """
    if isinstance(value, Mapping):
        twice = {f"{key}_ms" for key in value}
        known = {
            key: inner for key, inner in value.items() if inner not in (None, {}, []) and key not in twice
        }
        return " · ".join(f"{str(key).replace('_', ' ')}: {readable(inner)}" for key, inner in known.items())
    if isinstance(value, list | tuple):
        return ", ".join(readable(inner) for inner in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("inf")


def _stated(truth: Path) -> dict[str, Any]:
    file = (truth if truth.is_dir() else truth.parent) / "protocol.json"
    if not file.is_file():
        return {}
    content = read_json(file)
    if not isinstance(content, dict):
        raise ContractError(f"{file}: must be a JSON object with {', '.join(STATED)}")
    return content
