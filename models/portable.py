"""A trained model as two files: ``model.safetensors`` (weights) and ``model.json`` (shape, versions)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.atomic import read_json, write_json
from data.errors import ContractError
from models.two_tower import TwoTower, TwoTowerShape

FORMAT_VERSION = 5


def save_two_tower(model: TwoTower, directory: Path, **extra: Any) -> None:
    """Write both files into ``directory``; ``extra`` goes into the JSON (spec hash, metrics, …)."""
    save_weights(model.shape, model.state_dict(), directory, **extra)


def save_weights(shape: TwoTowerShape, weights: Mapping[str, Tensor], directory: Path, **extra: Any) -> None:
    """The same from weights by name, where no process holds the whole model."""
    directory.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(plain, directory / "model.safetensors")
    record = {"format_version": FORMAT_VERSION, "kind": "two_tower", "shape": shape.to_json(), **extra}
    write_json(directory / "model.json", record)


def load_two_tower(directory: Path, device: str = "cpu") -> TwoTower:
    """Rebuild a two-tower model in eval mode; refuse another version, kind or shape in one line."""
    record = read_json(directory / "model.json")
    if record.get("format_version") != FORMAT_VERSION or record.get("kind") != "two_tower":
        raise ContractError(
            f"{directory}/model.json: format {record.get('format_version')} of kind {record.get('kind')!r}, "
            f"this release reads format {FORMAT_VERSION} of kind 'two_tower'; train and publish again"
        )
    try:
        model = TwoTower(TwoTowerShape.from_json(record["shape"]))
        model.load_state_dict(load_file(directory / "model.safetensors"))
    except (TypeError, KeyError, ValueError, RuntimeError, SafetensorError, OSError) as error:
        first = str(error).splitlines()[0]
        raise ContractError(
            f"{directory}: weights and shape disagree ({first}); train and publish again"
        ) from None
    return model.to(torch.device(device)).eval()
