"""A dataset directory on disk: where its tables lie and how they are opened and written."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from data.atomic import read_json, staged_directory, write_json
from data.errors import ContractError
from data.schema import SCHEMA_VERSION, TABLES


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

    path: Path
    info: DatasetInfo

    def has(self, table: str) -> bool:
        """Whether the optional ``table`` is there."""
        return self.location(table) is not None

    def location(self, table: str) -> Path | None:
        """The directory or file of ``table``, or None."""
        for candidate in (self.path / table, self.path / f"{table}.parquet"):
            if candidate.exists():
                return candidate
        return None

    def files(self, table: str) -> list[Path]:
        """The Parquet files of ``table`` in name order; empty where the table is missing."""
        location = self.location(table)
        if location is None:
            return []
        return sorted(location.rglob("*.parquet")) if location.is_dir() else [location]

    def scan(self, table: str) -> ds.Dataset:
        """A lazy Arrow dataset over all files of ``table``."""
        files = self.files(table)
        if not files:
            raise ContractError(f"{self.path}: table {table} has no Parquet file")
        return ds.dataset([str(file) for file in files], format="parquet")

    def read(self, table: str) -> pa.Table:
        """The whole of a small table (videos, products, users) in memory."""
        return self.scan(table).to_table()


def read_info(path: Path) -> DatasetInfo:
    """Parse ``dataset.json`` under ``path``; refuse an unknown schema version or key."""
    if not path.is_dir():
        raise ContractError(f"dataset={path}: no such directory; make one with shopreel import or simulate")
    raw = read_json(path / "dataset.json")
    if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
        raise ContractError(f"{path}/dataset.json: schema_version must be {SCHEMA_VERSION}; import again")
    known = DatasetInfo.__dataclass_fields__
    extra = {key: value for key, value in raw.items() if key not in known}
    values = {key: value for key, value in raw.items() if key in known}
    missing = [key for key in ("name", "source", "licence") if key not in values]
    if missing:
        raise ContractError(f"{path}/dataset.json: lacks {', '.join(missing)}; add it as text")
    values["extra"] = {**values.get("extra", {}), **extra}
    return DatasetInfo(**values)


@contextmanager
def writing_dataset(out: str | Path, info: DatasetInfo, *, overwrite: bool = False) -> Iterator[Path]:
    """Stage a dataset directory: write tables into the yielded path, ``dataset.json`` comes last."""
    with staged_directory(out, overwrite=overwrite) as scratch:
        yield scratch
        write_json(scratch / "dataset.json", asdict(info))


def write_table(directory: Path, table: str, rows: pa.Table) -> None:
    """Write one contract table as ``<table>.parquet``, columns in contract order, further ones after."""
    order = [name for name in TABLES[table] if name in rows.column_names]
    order += [name for name in rows.column_names if name not in order]
    pq.write_table(rows.select(order), directory / f"{table}.parquet", compression="zstd")
