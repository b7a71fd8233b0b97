"""Raw files are parsed once into staged Parquet; everything after that is Ibis expressions.

The backends (DuckDB, Spark) differ only in how they parse text, how they write Parquet and how they spell
a timestamp, so readers give identical rows on both. Times travel as int64 Unix microseconds until written.
"""

import csv
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import ContractError

#: Rows of one raw file are numbered below this, so that ``line`` orders the rows of all files.
LINES_PER_FILE = 1 << 50
HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How a delimited text file is written. ``quote`` None means that quotes are plain characters.

    ``multiline`` allows quoted line breaks; Spark then cannot split the file, so logs go without.
    """

    delimiter: str = ","
    quote: str | None = '"'
    header: bool = True
    encoding: str = "utf-8"
    multiline: bool = False


class Backend(Protocol):
    """What an engine must do by itself. Errors of malformed text are :class:`ContractError`."""

    def stage_text(
        self, file: Path, columns: Mapping[str, str], layout: TextFormat, kept: Sequence[str], directory: Path
    ) -> None:
        """Parse ``file`` with ``columns`` in file order (int64, float64 or string); stage those ``kept``."""

    def stage_json(self, file: Path, columns: Mapping[str, str], directory: Path) -> None:
        """Parse a JSON-lines ``file``; ``columns`` maps keys to Ibis types, structs and arrays included."""

    def stage(self, rows: ir.Table, directory: Path) -> None:
        """Compute ``rows`` once into Parquet under ``directory``."""

    def scan(self, directory: Path) -> ir.Table:
        """Lazy rows of staged Parquet, with ``line`` (int64): their order in the file, from 0."""

    def scan_parquet(self, files: Sequence[Path]) -> ir.Table:
        """Lazy rows of any Parquet files of one schema."""

    def fetch(self, rows: ir.Table) -> pa.Table:
        """Compute a small result."""

    def write(self, rows: ir.Table, path: Path) -> None:
        """Write ``rows`` in their order: to one file where ``path`` ends in .parquet, else a directory."""

    def timestamp(self, micros: ir.IntegerValue) -> ir.Value:
        """Unix microseconds as timestamp[us, UTC]."""

    def progress(self) -> float | None:
        """How much of the running query is done, 0 … 1; None where it cannot be told."""


@dataclass(slots=True)
class Staging:
    """A backend with a scratch directory. ``on_step`` hears what begins, for the progress bar."""

    backend: Backend
    scratch: Path
    on_step: Callable[[str], None] = lambda _: None
    _staged: int = field(default=0, init=False)

    def read_text(
        self,
        files: Sequence[Path],
        columns: Mapping[str, str],
        layout: TextFormat = TextFormat(),
        *,
        optional: Mapping[str, str] | None = None,
    ) -> ir.Table:
        """Parse delimited text ``files`` into the named columns plus ``line`` (their order over all files).

        ``columns`` maps required names to int64, float64 or string; ``optional`` ones are null where a
        file lacks them; all others are dropped. Without a header, ``columns`` is the whole row. A blank
        field is null. Raises :class:`ContractError` naming file and line of a malformed row.
        """
        wanted = {**columns, **(optional or {})}
        parts: list[ir.Table] = []
        for file in files:
            found = dict(columns)
            if layout.header:
                names = read_header(file, layout)
                missing = [name for name in columns if name not in names]
                if missing:
                    raise ContractError(
                        f"{file}, column {missing[0]}: missing (the header has {', '.join(names[:12])}); "
                        "use the upstream file unchanged"
                    )
                found = {name: wanted.get(name, "string") for name in names}
            kept = [name for name in found if name in wanted]
            directory = self._directory(f"reading {file.name}")
            self.backend.stage_text(file, found, layout, kept, directory)
            rows = self._scan(directory, len(parts))
            values = {
                name: _blank_as_null(rows[name], kind) if name in found else ibis.null(kind)
                for name, kind in wanted.items()
            }
            parts.append(rows.select(**values, line=rows.line))
        return ibis.union(*parts) if len(parts) > 1 else parts[0]

    def read_lines(self, files: Sequence[Path], encoding: str = "utf-8") -> ir.Table:
        """The non-blank lines of ``files`` as ``text`` and ``line``."""
        layout = TextFormat(delimiter="\x1f", quote=None, header=False, encoding=encoding)
        rows = self.read_text(files, {"text": "string"}, layout)
        return rows.mutate(text=rows.text.strip()).filter(lambda row: row.text != "")

    def read_json_lines(self, files: Sequence[Path], columns: Mapping[str, str]) -> ir.Table:
        """One row per JSON line of ``files``: ``columns`` (key to Ibis type) plus ``line``."""
        parts: list[ir.Table] = []
        for file in files:
            directory = self._directory(f"reading {file.name}")
            self.backend.stage_json(file, columns, directory)
            parts.append(self._scan(directory, len(parts)))
        return ibis.union(*parts) if len(parts) > 1 else parts[0]

    def table(self, rows: pa.Table) -> ir.Table:
        """A small Arrow table as an expression."""
        directory = self._directory(None)
        directory.mkdir(parents=True)
        pq.write_table(rows, directory / "part-00000.parquet")
        return self.backend.scan_parquet([directory / "part-00000.parquet"])

    def stage(self, rows: ir.Table, what: str) -> ir.Table:
        """Compute ``rows`` once and read them from disk from then on."""
        directory = self._directory(what)
        self.backend.stage(rows, directory)
        return self.backend.scan_parquet(sorted(directory.glob("*.parquet")))

    def fetch(self, rows: ir.Table) -> list[dict[str, Any]]:
        """Compute a small result as a list of rows."""
        found: list[dict[str, Any]] = self.backend.fetch(rows).to_pylist()
        return found

    def count(self, rows: ir.Table) -> int:
        """How many rows."""
        return int(self.fetch(rows.aggregate(n=rows.count()))[0]["n"])

    def _directory(self, what: str | None) -> Path:
        if what:
            self.on_step(what)
        self._staged += 1
        return self.scratch / f"{self._staged:04d}"

    def _scan(self, directory: Path, file_number: int) -> ir.Table:
        rows = self.backend.scan(directory)
        return rows.mutate(line=rows.line.cast("int64") + file_number * LINES_PER_FILE)


def read_header(file: Path, layout: TextFormat) -> list[str]:
    """The column names in the first line of ``file`` (plain or .gz); raises where there is none."""
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rb") as text:
            first = text.readline(HEADER_BYTES).decode(layout.encoding).removeprefix("\ufeff").rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ContractError(f"{file}, line 1: not readable as text ({error}); copy it again") from None
    names = first.split(layout.delimiter) if first else []
    if layout.quote:
        names = next(csv.reader([first], delimiter=layout.delimiter, quotechar=layout.quote), [])
    names = [name or f"unnamed_{number}" for number, name in enumerate(names)]
    if not names:
        raise ContractError(f"{file}, line 1: the file has no header; copy it again")
    if len(set(names)) < len(names):
        raise ContractError(f"{file}, line 1: a column name stands twice; use the upstream file unchanged")
    return names


def _blank_as_null(value: ir.Value, kind: str) -> ir.Value:
    return value.nullif("") if kind == "string" else value
