"""Choosing, building and tuning the index of a bundle; one below its recall target is refused."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import ConfigError
from serving.exact import Vectors
from serving.index import INDEX_FILE, ApproximateIndex, IndexKind, IndexParameters, choose_kind
from serving.publish_config import IndexConfig, Kind


def choices(videos: int, k: int, config: IndexConfig) -> list[IndexParameters]:
    """What to build for so many videos, not tuned yet; the later ones where the earlier miss the target."""
    kinds: list[IndexKind]
    if config.kind is Kind.auto:
        first = choose_kind(videos, exact_below=config.exact_below, scan_below=config.scan_below)
        kinds = [first, IndexKind.ivf] if first is not IndexKind.exact else [first]
    else:
        kinds = [IndexKind(config.kind.value)]
    if not videos:
        kinds = [IndexKind.exact]
    return [_parameters(kind, videos, max(1, min(k, videos)), config) for kind in kinds]


def build_index(
    directory: Path, vectors_ND: Vectors, user_UD: Vectors, wanted: Sequence[IndexParameters], *,
    recall_target: float, seed: int,
) -> tuple[IndexParameters, dict[str, Any]]:  # fmt: skip
    """Build, tune on one half of the users, measure on the other, save into ``directory``.

    Returns the first of ``wanted`` that reaches the target, and what was measured, as the manifest keeps
    it: ``recall``, ``users``, ``build_seconds`` and the ``tuned`` width. Exact search builds nothing.
    Raises :class:`ConfigError` where none reaches it.
    """
    reached = []
    half = len(user_UD) // 2
    tuning_UD, checking_UD = (user_UD[:half], user_UD[half:]) if half else (user_UD, user_UD)
    for parameters in wanted:
        if parameters.kind is IndexKind.exact:
            return parameters, {
                "recall": 1.0,
                "users": len(user_UD),
                "build_seconds": 0.0,
                "tuned": {"width": 0},
            }
        started = time.monotonic()
        built = ApproximateIndex.build(vectors_ND, parameters, seed=seed)
        seconds = round(time.monotonic() - started, 1)
        index, recall = built.tuned(vectors_ND, tuning_UD, checking_UD, recall_target)
        if recall >= recall_target:
            index.save(directory / INDEX_FILE)
            return parameters, {
                "recall": recall, "users": len(checking_UD), "build_seconds": seconds,
                "tuned": {"width": index.parameters.width},
            }  # fmt: skip
        reached.append(f"{parameters.kind.value} {recall:.4f}")
    raise ConfigError(
        f"recall@{wanted[0].k} against exact search is {', '.join(reached)} where it costs as much as brute "
        f"force, below recall_target={recall_target}; use index.kind=exact, or raise index.hnsw_links and "
        "index.hnsw_build_width"
    )


def _parameters(kind: IndexKind, videos: int, k: int, config: IndexConfig) -> IndexParameters:
    match kind:
        case IndexKind.exact | IndexKind.scan:
            return IndexParameters(kind=kind, k=k)
        case IndexKind.hnsw:
            return IndexParameters(
                kind=kind, k=k, links=config.hnsw_links, build_width=config.hnsw_build_width
            )
        case IndexKind.ivf | IndexKind.ivf_scan:
            return IndexParameters(
                kind=kind, k=k, lists=min(config.ivf_lists or round(4 * videos**0.5), videos)
            )
