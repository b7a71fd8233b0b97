"""The directory of a training run, as publishing reads it: a record, a portable model, the tables it fits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.atomic import read_json
from data.errors import ConfigError, ContractError
from data.prepared import Prepared


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """An opened run that has a best model. ``model`` is its portable directory."""

    path: Path
    record: dict[str, Any]
    prepared: Prepared
    model: Path

    @property
    def dataset_fingerprint(self) -> str:
        """Fingerprint of the dataset that it was trained on."""
        return str(self.prepared.manifest["dataset"]["fingerprint"])

    def facts(self, **further: Any) -> dict[str, Any]:
        """What a bundle's manifest says about where its model comes from."""
        kept = ("kind", "seed", "fingerprint", "best", "splits", "versions")
        known = {name: self.record.get(name) for name in kept}
        return {**known, "prepared": self.prepared.hash, **further}


def open_run(path: str, kind: str) -> TrainedRun:
    """Open a run of ``kind``; refuses, in one line, anything that cannot be published."""
    root = Path(path)
    if not (root / "run.json").is_file():
        raise ConfigError(f"{kind}={path}: no run.json there; give the out= of shopreel train model={kind}")
    record = read_json(root / "run.json")
    if not isinstance(record, dict) or record.get("kind") != kind:
        found = record.get("kind") if isinstance(record, dict) else None
        raise ContractError(f"{root}/run.json: a run of kind {found!r}, not {kind}; train model={kind}")
    if not (root / "model" / "model.json").is_file():
        raise ConfigError(
            f"{kind}={path}: no model yet; let training reach its first validation (resume=true)"
        )
    prepared = Prepared.open(root / "prepared")
    stated = record.get("prepared", {}).get("hash")
    if stated != prepared.hash:
        raise ContractError(f"{root}/prepared: not the data that run.json was trained on; train again")
    return TrainedRun(root, record, prepared, root / "model")
