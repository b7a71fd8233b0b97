"""The directory that ``shopreel prepare`` writes and everything later reads.

``prepared.json`` (manifest), ``vocabularies/*.parquet``, ``videos.safetensors`` and
``users.safetensors`` (encoded features), ``video_counts.safetensors`` and ``video_raw.safetensors``
(numbers per catalogue row), ``sequences/part-*.parquet`` (absent from the copy inside a run).
"""

import atexit
import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from data.atomic import read_json, write_json
from data.errors import ContractError
from data.features import EncodedTable, FeatureSpec
from data.storage import File, RemoteFolder, open_folder
from data.vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]

PREPARED_VERSION = 1
#: Vocabularies that are not those of features.
INDEXES = ("catalogue", "users", "surfaces", "markets")

_LONG, _INT = pa.list_(pa.int64()), pa.list_(pa.int32())
#: One row per user, or per chunk of a user: see :class:`Prepared`.
SEQUENCES = pa.schema(
    [
        ("user_row", pa.int64()),
        ("step_video", _LONG), ("step_time_ms", _LONG), ("step_actions", _INT), ("step_known", _INT),
        ("step_watch_ms", _INT), ("step_surface", _INT),
        ("example_video", _LONG), ("example_time_ms", _LONG), ("example_history_end", _INT),
        ("example_true", _INT), ("example_known", _INT), ("example_watch_ms", _INT),
        ("example_order_value_minor", _LONG), ("example_split", pa.list_(pa.int8())),
        ("example_surface", _INT), ("example_market", _INT), ("example_position", _INT),
    ]
)  # fmt: skip


@dataclass(slots=True)
class Prepared:
    """An opened PREPARED directory; ``name`` is what it was opened as, a path or URL.

    What a URL names is downloaded into ``path``, for as long as the process lives, but for the shards, which
    are read where they lie, one by one.
    ``catalogue``: video_id ↔ row of ``video_table``; ``users``: user_id ↔ row of ``user_table``.
    ``video_train_count`` int64[N + 1]: training impressions per catalogue row; ``video_train_true``
    int64[N + 1, L]: how many of them had each label of ``data.schema.LABELS`` true.
    ``video_raw``: ``duration_ms``, ``publish_time_ms`` int64[N + 1], -1 unknown.

    A row of ``shards`` (schema ``SEQUENCES``) is a user, or a chunk of one: at most 1,024 new steps
    after up to 256 that came before, oldest first. ``example_*`` describe the impressions among the
    new steps; ``example_history_end`` counts this row's steps that were known strictly before the
    impression. ``example_true`` has the bits of labels that came true, ``example_known`` of those that
    may take part in a loss or metric: with the attribution window still open at the end of the log a
    label can be true without being known, never the reverse of what happened.
    """

    path: Path
    manifest: dict[str, Any]
    spec: FeatureSpec
    catalogue: Vocabulary
    users: Vocabulary
    surfaces: Vocabulary
    markets: Vocabulary
    vocabularies: dict[str, Vocabulary]
    video_table: EncodedTable
    user_table: EncodedTable
    video_train_count: I64
    video_train_true: I64
    video_raw: dict[str, I64]
    shards: list[File]
    name: str

    @classmethod
    def open(cls, path: str | Path) -> "Prepared":
        """Read everything but the sequences; a damaged or missing part raises :class:`ContractError`."""
        folder = open_folder(path)
        if isinstance(folder, Path):
            return cls._open(folder, str(path), folder)
        root = Path(tempfile.mkdtemp(prefix="shopreel-prepared-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        folder.download(root, leave_out="sequences/")
        try:
            return cls._open(root, str(path), folder)
        except ContractError as error:
            raise ContractError(str(error).replace(str(root), str(path))) from None

    @classmethod
    def _open(cls, root: Path, name: str, shards: Path | RemoteFolder) -> "Prepared":
        if not (root / "prepared.json").is_file():
            raise ContractError(f"prepared={name}: no prepared.json there; make it with shopreel prepare")
        manifest = read_json(root / "prepared.json")
        if not isinstance(manifest, dict) or manifest.get("schema_version") != PREPARED_VERSION:
            raise ContractError(
                f"{root}/prepared.json: schema_version is not {PREPARED_VERSION}; prepare again"
            )
        try:
            stated, parts = manifest["hash"], [part["file"] for part in manifest["shards"]]
            spec = FeatureSpec.from_json(manifest["feature_spec"])
            names = [_plain_name(name) for name in manifest["vocabularies"]]
            named = {key: root / "vocabularies" / f"{key}.parquet" for key in names}
            index = {key: Vocabulary.load(named.pop(key)) for key in INDEXES}
        except (KeyError, TypeError, AttributeError) as error:
            raise ContractError(f"{root}/prepared.json: lacks {error}; prepare again") from None
        vocabularies = {key: Vocabulary.load(file) for key, file in named.items()}
        for key, vocabulary in {**index, **vocabularies}.items():
            if vocabulary.hash != manifest["vocabularies"][key]:
                raise ContractError(
                    f"{root}/vocabularies/{key}.parquet: does not belong to this prepared.json"
                )
        if stated != manifest_hash(manifest):
            raise ContractError(f"{root}/prepared.json: was changed after it was written; prepare again")
        counts, raw = _arrays(root / "video_counts.safetensors"), _arrays(root / "video_raw.safetensors")
        prepared = cls(
            root, manifest, spec, **index, vocabularies=vocabularies,
            video_table=EncodedTable.load(root / "videos.safetensors"),
            user_table=EncodedTable.load(root / "users.safetensors"),
            video_train_count=counts["train_count"], video_train_true=counts["train_true_count"],
            video_raw=raw, shards=_shards(shards, parts), name=name,
        )  # fmt: skip
        prepared._check()
        return prepared

    @property
    def tasks(self) -> list[str]:
        """Labels with at least one known value among training impressions, in contract order."""
        return list(self.manifest["tasks"])

    @property
    def hash(self) -> str:
        """Identifies data, split, features and settings; the same for equal inputs on any engine."""
        return str(self.manifest["hash"])

    def save_tables(self, out: str | Path) -> None:
        """Copy everything but the sequences into the new directory ``out``, for a run to carry."""
        target = Path(out)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.path / "vocabularies", target / "vocabularies")
        for name in ("videos", "users", "video_counts", "video_raw"):
            shutil.copyfile(self.path / f"{name}.safetensors", target / f"{name}.safetensors")
        shutil.copyfile(self.path / "prepared.json", target / "prepared.json")

    def _check(self) -> None:
        rows = {
            "videos.safetensors": (self.video_table.num_rows, len(self.catalogue)),
            "users.safetensors": (self.user_table.num_rows, len(self.users)),
            "video_counts.safetensors": (len(self.video_train_count), len(self.catalogue)),
            **{
                f"video_raw.safetensors {k}": (len(v), len(self.catalogue)) for k, v in self.video_raw.items()
            },
        }
        for name, (found, wanted) in rows.items():
            if found != wanted:
                raise ContractError(f"{self.path}/{name}: {found} rows, expected {wanted}; prepare again")


def write_tables(
    root: Path,
    *,
    spec: FeatureSpec,
    indexes: dict[str, Vocabulary],
    vocabularies: dict[str, Vocabulary],
    video_table: EncodedTable,
    user_table: EncodedTable,
    video_train_count: I64,
    video_train_true: I64,
    video_raw: dict[str, I64],
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """Write every file but the sequences into ``root``; returns the manifest with its hash."""
    (root / "vocabularies").mkdir(parents=True, exist_ok=True)
    everything = {**{name: indexes[name] for name in INDEXES}, **vocabularies}
    for name, vocabulary in everything.items():
        vocabulary.save(root / "vocabularies" / f"{name}.parquet")
    video_table.save(root / "videos.safetensors")
    user_table.save(root / "users.safetensors")
    counts = {"train_count": video_train_count, "train_true_count": np.ascontiguousarray(video_train_true)}
    save_file(counts, root / "video_counts.safetensors")
    save_file(video_raw, root / "video_raw.safetensors")
    complete = {
        "schema_version": PREPARED_VERSION,
        **manifest,
        "feature_spec": spec.to_json(),
        "vocabularies": {name: vocabulary.hash for name, vocabulary in everything.items()},
        "catalogue_size": len(indexes["catalogue"]) - 1,
    }
    complete["hash"] = manifest_hash(complete)
    for file in root.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner alone
    write_json(root / "prepared.json", complete)
    return complete


def manifest_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of the manifest without its own hash and without where the dataset lies."""
    dataset = {key: value for key, value in manifest.get("dataset", {}).items() if key != "path"}
    content = {key: value for key, value in manifest.items() if key not in ("hash", "dataset")}
    return hashlib.sha256(json.dumps([dataset, content], sort_keys=True).encode()).hexdigest()


def _arrays(path: Path) -> dict[str, I64]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ContractError(f"{path}: cannot be read ({str(error).splitlines()[0]}); prepare again") from None


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ContractError(f"prepared.json: {name!r} is no file name; prepare again")
    return name


def _shards(root: Path | RemoteFolder, names: list[str]) -> list[File]:
    wanted = [f"sequences/{_plain_name(name)}" for name in names]
    if isinstance(root, RemoteFolder):
        lost = [name for name in wanted if name not in root.files]
    elif (root / "sequences").is_dir():
        lost = [name for name in wanted if not (root / name).is_file()]
    else:
        return []
    if lost:
        raise ContractError(f"{root}/{lost[0]}: missing; prepare again")
    return [root / name for name in wanted]
