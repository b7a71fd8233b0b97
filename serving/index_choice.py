"""Choosing, building and tuning the index of a bundle; one below its recall target is refused."""

import time
from pathlib import Path
from typing import Any

from data.errors import ConfigError
from serving.exact import Vectors
from serving.index import INDEX_FILE, ApproximateIndex, IndexKind, IndexParameters, choose_kind
from serving.publish_config import IndexConfig, Kind


def parameters_for(videos: int, k: int, config: IndexConfig) -> IndexParameters:
    """What to build for so many videos, not tuned yet."""
    kind = (
        choose_kind(videos, exact_below=config.exact_below, hnsw_below=config.hnsw_below)
        if config.kind is Kind.auto
        else IndexKind(config.kind.value)
    )
    k = max(1, min(k, videos))
    match kind:
        case IndexKind.hnsw if videos:
            return IndexParameters(
                kind=kind, k=k, links=config.hnsw_links, build_width=config.hnsw_build_width
            )
        case IndexKind.ivf if videos:
            lists = min(config.ivf_lists or round(4 * videos**0.5), videos)
            return IndexParameters(kind=kind, k=k, lists=lists)
    return IndexParameters(kind=IndexKind.exact, k=k)


def build_index(
    directory: Path, vectors_ND: Vectors, user_UD: Vectors, parameters: IndexParameters, *,
    recall_target: float, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Build, tune on one half of the users, measure on the other, save into ``directory``.

    Returns what was measured, as the manifest keeps it: ``recall``, ``users``, ``build_seconds`` and the
    ``tuned`` width. Exact search builds nothing. Raises :class:`ConfigError` below the target.
    """
    if parameters.kind is IndexKind.exact:
        return {"recall": 1.0, "users": len(user_UD), "build_seconds": 0.0, "tuned": {"width": 0}}
    started = time.monotonic()
    built = ApproximateIndex.build(vectors_ND, parameters, seed=seed)
    seconds = round(time.monotonic() - started, 1)
    half = len(user_UD) // 2
    tuning_UD, checking_UD = (user_UD[:half], user_UD[half:]) if half else (user_UD, user_UD)
    index, recall = built.tuned(vectors_ND, tuning_UD, checking_UD, recall_target)
    if recall < recall_target:
        raise ConfigError(
            f"index.kind={parameters.kind.value}: recall@{parameters.k} is {recall:.4f} at its widest, below "
            f"recall_target={recall_target}; raise index.hnsw_links and index.hnsw_build_width, or use "
            "index.kind=exact"
        )
    index.save(directory / INDEX_FILE)
    return {
        "recall": recall, "users": len(checking_UD), "build_seconds": seconds,
        "tuned": {"width": index.parameters.width},
    }  # fmt: skip
