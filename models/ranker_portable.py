"""A trained ranker as files: weights and counts as safetensors; ``model.json`` (shape, meaning of its
numbers, watch bins), ``calibration.json`` and ``value.json``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data.atomic import read_json, write_json
from data.catalogue_keys import CatalogueKeys
from data.counters import load_counts, save_counts
from data.errors import ContractError
from data.features import EncodedTable
from data.ranking_loader import RankingFeatures
from data.ranking_spec import RankingSpec
from models.calibration import Calibration
from models.ranker import Ranker, RankerShape
from models.value import ValueFormula
from models.watch import WatchBins

FORMAT_VERSION = 4
FILES = ("model.json", "model.safetensors", "counts.safetensors", "calibration.json", "value.json")


@dataclass(frozen=True, slots=True)
class RankerParts:
    """A ranker and all that turns its outputs into numbers people read."""

    model: Ranker
    features: RankingFeatures
    watch_bins: WatchBins | None
    calibration: Calibration
    value: ValueFormula


def save_ranker(parts: RankerParts, directory: Path, **extra: Any) -> None:
    """Write every file into ``directory``; ``extra`` goes into ``model.json`` (spec hash, metrics, …).

    Of the counts only what requests from the first held-out day on can reach is kept.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.model.state_dict().items()}
    save_file(weights, directory / "model.safetensors")
    counts = {name: [table.since(0) for table in tables] for name, tables in parts.features.counts.items()}
    save_counts(counts, directory / "counts.safetensors")
    bins = parts.watch_bins
    record = {
        "format_version": FORMAT_VERSION, "kind": "ranker", "shape": parts.model.shape.to_json(),
        "ranking_spec": parts.features.spec.to_json(),
        "watch_bins": None if bins is None else {
            "duration_ms": bins.duration_ms.tolist(), "edge_ms": bins.edge_ms.tolist(),
            "mean_ms": bins.mean_ms.tolist(),
        }, **extra,
    }  # fmt: skip
    write_json(directory / "model.json", record)
    write_json(directory / "calibration.json", parts.calibration.to_json())
    write_json(directory / "value.json", parts.value.to_json())


def load_ranker(
    directory: Path, video_table: EncodedTable, video_raw: dict[str, np.ndarray], *, spec_hash: str,
    user_table: EncodedTable, device: str = "cpu",
) -> RankerParts:  # fmt: skip
    """Read a ranker in eval mode for these tables; any mismatch raises :class:`ContractError`."""
    record = read_json(directory / "model.json")
    if record.get("format_version") != FORMAT_VERSION or record.get("kind") != "ranker":
        raise ContractError(
            f"{directory}/model.json: format {record.get('format_version')} of kind {record.get('kind')!r}, "
            f"this release reads format {FORMAT_VERSION} of kind 'ranker'; train and publish again"
        )
    if record.get("spec_hash") != spec_hash:
        raise ContractError(f"{directory}/model.json: trained for another feature spec; train again")
    try:
        spec = RankingSpec.from_json(record["ranking_spec"])
        model = Ranker(RankerShape.from_json(record["shape"]))
        model.load_state_dict(load_file(directory / "model.safetensors"))
        bins = record["watch_bins"]
        watch = None if bins is None else WatchBins(*(np.array(bins[n]) for n in WatchBins.__slots__))
        calibration = Calibration.from_json(read_json(directory / "calibration.json"))
        keys = CatalogueKeys.of(spec, video_table, user_table, video_raw)
        counts = load_counts(directory / "counts.safetensors")
        _check(spec, model.shape, calibration, list(counts))
    except (TypeError, KeyError, ValueError, RuntimeError, SafetensorError, OSError) as error:
        first = str(error).splitlines()[0]
        raise ContractError(f"{directory}: files of the ranker disagree ({first}); train again") from None
    value = ValueFormula.from_json(read_json(directory / "value.json"))
    features = RankingFeatures(spec, keys, counts)
    return RankerParts(model.to(torch.device(device)).eval(), features, watch, calibration, value)


def _check(spec: RankingSpec, shape: RankerShape, calibration: Calibration, counted: Sequence[str]) -> None:
    if spec.tasks != shape.tasks or len(calibration.slope) != len(shape.tasks):
        raise ValueError("tasks differ")
    if sorted(counted) != sorted(spec.counted):
        raise ValueError(f"counts of {', '.join(counted)}, not of {', '.join(spec.counted)}")
    if any(len(row) != shape.markets for row in calibration.bias):
        raise ValueError("calibration is for another number of markets")
