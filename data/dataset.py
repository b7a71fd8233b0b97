"""A dataset directory on disk: where its tables lie and how they are opened and written."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from data.atomic import read_json, write_json
from data.errors import ContractError
from data.schema import SCHEMA_VERSION, TABLES
from data.storage import File, Folder, RemoteFile, RemoteFolder, open_folder, staged_output


@dataclass(kw_only=True, slots=True)
class DatasetInfo:
    """The content of ``dataset.json``.

    ``time_zone`` is an IANA name or a fixed offset such as ``+08:00``: where a "day" begins.
    ``ordered`` is false where the log gives sets without any order in time: then all events carry
    one time and nothing may be learnt from their order.
    ``real_time`` is false where only the order of events is real and their times are placed.
    """

    name: str
    source: str
    licence: str
    notes: list[str] = field(default_factory=list)
    time_zone: str = "UTC"
    tasks: list[str] = field(default_factory=list)
    ordered: bool = True
    real_time: bool = True
    schema_version: int = SCHEMA_VERSION
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dataset:
    """An opened dataset directory; see ``data.contract.open_dataset`` for one that was checked."""

    path: Folder
    info: DatasetInfo

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        """Open the dataset at a path or URL by its ``dataset.json``, without a look at its tables."""
        folder = open_folder(path)
        return cls(folder, read_info(folder))

    def has(self, table: str) -> bool:
        """Whether the optional ``table`` is there."""
        return bool(self.locations(table))

    def locations(self, table: str) -> list[str]:
        """What holds ``table``, relative to ``path``: a directory, one file, nothing, or (a mistake) both."""
        if isinstance(self.path, RemoteFolder):
            names = self.path.files
            directory = any(name.startswith(f"{table}/") for name in names)
            return [f"{table}/"] * directory + [f"{table}.parquet"] * (f"{table}.parquet" in names)
        return [name for name in (f"{table}/", f"{table}.parquet") if (self.path / name).exists()]

    def files(self, table: str) -> list[File]:
        """The Parquet files of ``table`` in name order; empty where the table is missing.

        A directory may have any depth; what begins with ``_`` or ``.`` in it belongs to other systems.
        """
        found = self.locations(table)
        if not found:
            return []
        if found[0] == f"{table}.parquet":
            return [self.path / found[0]]
        if isinstance(self.path, RemoteFolder):
            files: list[tuple[str, File]] = [
                (name.removeprefix(found[0]), file)
                for name, file in self.path.files.items()
                if name.startswith(found[0])
            ]
        else:
            root = self.path / table
            files = [(file.relative_to(root).as_posix(), file) for file in sorted(root.rglob("*.parquet"))]
        return [
            file
            for name, file in files
            if name.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in name.split("/"))
        ]

    def name_of(self, file: File) -> str:
        """The name of one of ``files`` relative to the dataset."""
        if isinstance(self.path, RemoteFolder):
            assert isinstance(file, RemoteFile)
            return file.path.removeprefix(f"{self.path.root}/")
        assert isinstance(file, Path)
        return file.relative_to(self.path).as_posix()

    def scan(self, table: str) -> ds.Dataset:
        """A lazy Arrow dataset over all files of ``table``."""
        files = self.files(table)
        if not files:
            raise ContractError(f"{self.path}: table {table} has no Parquet file")
        first = files[0]
        if isinstance(first, RemoteFile):
            paths = [file.path for file in files if isinstance(file, RemoteFile)]
            return ds.dataset(paths, format="parquet", filesystem=first.filesystem)
        return ds.dataset([str(file) for file in files], format="parquet")

    def read(self, table: str) -> pa.Table:
        """The whole of a small table (videos, products, users) in memory."""
        return self.scan(table).to_table()


def read_info(path: Folder) -> DatasetInfo:
    """Parse ``dataset.json`` under ``path``; refuse an unknown schema version or key."""
    if not (path.files if isinstance(path, RemoteFolder) else path.is_dir()):
        raise ContractError(f"dataset={path}: no such directory; make one with shopreel import or simulate")
    if not isinstance(path, RemoteFolder) and not (path / "dataset.json").exists():
        example = '{"schema_version": 1, "name": "ours", "source": "the app\'s log", "licence": "internal"}'
        raise ContractError(f"{path}/dataset.json: no such file; write it, such as {example}")
    raw = read_json(path / "dataset.json")
    if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
        raise ContractError(f"{path}/dataset.json: schema_version must be {SCHEMA_VERSION}; import again")
    known = DatasetInfo.__dataclass_fields__
    extra = {key: value for key, value in raw.items() if key not in known}
    values = {key: value for key, value in raw.items() if key in known}
    missing = [key for key in ("name", "source", "licence") if key not in values]
    if missing:
        raise ContractError(f"{path}/dataset.json: lacks {', '.join(missing)}; add it as text")
    for key, value in values.items():
        _check_kind(path, key, value)
    values["extra"] = {**values.get("extra", {}), **extra}
    return DatasetInfo(**values)


def _check_kind(path: Folder, key: str, value: Any) -> None:
    """Refuse a field of ``dataset.json`` of another kind than its default: ``"no"`` would count as true."""
    kinds: dict[str, tuple[type, str]] = {
        "notes": (list, "a list of texts"), "tasks": (list, "a list of texts"), "extra": (dict, "an object"),
        "ordered": (bool, "true or false"), "real_time": (bool, "true or false"),
        "schema_version": (int, "1"),
    }  # fmt: skip
    kind, words = kinds.get(key, (str, "a text"))
    texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if not isinstance(value, kind) or (kind is list and not texts):
        raise ContractError(f"{path}/dataset.json, field {key}: {value!r} is not {words}; correct it")


@contextmanager
def writing_dataset(out: str | Path, info: DatasetInfo, *, overwrite: bool = False) -> Iterator[Path]:
    """Stage a dataset at a path or URL: write tables into the yielded path, ``dataset.json`` comes last."""
    with staged_output(out, overwrite=overwrite) as scratch:
        yield scratch
        write_json(scratch / "dataset.json", asdict(info))


def write_table(directory: Path, table: str, rows: pa.Table) -> None:
    """Write one contract table as ``<table>.parquet``, columns in contract order, further ones after."""
    order = [name for name in TABLES[table] if name in rows.column_names]
    order += [name for name in rows.column_names if name not in order]
    pq.write_table(rows.select(order), directory / f"{table}.parquet", compression="zstd")
