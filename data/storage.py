"""Where files lie: on this machine, or under a URL of any file system that fsspec knows.

A local directory appears by a rename (``data.atomic``). Object stores rename nothing, so what is written to a
URL lies in a folder of its own, ``write-<hex>/``, and counts from the moment when ``_manifest.json``, written
last, as one object, names that folder and its files. Readers trust the manifest: they see the old content or
the new, never a part. A URL without a manifest, filled by another system, is read as it is listed.
"""

import json
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

from data.atomic import refuse_existing, staged_directory
from data.errors import ConfigError, ContractError
from data.locations import local_path

MANIFEST = "_manifest.json"
MANIFEST_VERSION = 1
_WRITE = re.compile(r"write-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file under a URL, with the part of ``Path`` that readers need. ``size`` in bytes, −1 unknown."""

    filesystem: Any
    path: str
    size: int = -1

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open for reading; raises FileNotFoundError."""
        opened: IO[Any] = self.filesystem.open(self.path, mode)
        return opened

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole content."""
        content: bytes = self.filesystem.cat_file(self.path)
        return content.decode(encoding)

    def __str__(self) -> str:
        return str(self.filesystem.unstrip_protocol(self.path))


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder under a URL; ``files`` by their names relative to it, in order. Made by :meth:`open`."""

    url: str
    filesystem: Any
    root: str
    files: dict[str, RemoteFile]

    @classmethod
    def open(cls, url: str) -> "RemoteFolder":
        """List what the manifest names, or all there is; without any file where nothing is there.

        Raises :class:`ConfigError` where the URL cannot be reached, :class:`ContractError` where a file that
        the manifest names is missing or has another size.
        """
        filesystem, root = _reach(url)
        folder, named = _manifest(filesystem, root, url)
        if named is not None:
            root = f"{root}/{folder}"
        listed = _listed(filesystem, root, url)
        for name, size in (named or {}).items():
            if (found := listed.get(name)) != size:
                state = "is missing" if found is None else f"has {found:,} bytes, not {size:,}"
                raise ContractError(
                    f"{url}: {folder}/{name}, which {MANIFEST} names, {state}; was it replaced just now? "
                    "Open it again, or write it again"
                )
        chosen = named or {name: size for name, size in listed.items() if not _unfinished(name)}
        files = {name: RemoteFile(filesystem, f"{root}/{name}", size) for name, size in chosen.items()}
        return cls(url, filesystem, root, files)

    def download(self, target: Path, *, below: str = "", leave_out: str | None = None) -> None:
        """Copy the files under ``below`` into ``target``, but those whose names begin with ``leave_out``."""
        for name, file in self.files.items():
            if name.startswith(below) and not (leave_out and name.startswith(leave_out)):
                local = target / name
                local.parent.mkdir(parents=True, exist_ok=True)
                self.filesystem.get_file(file.path, str(local))

    def __truediv__(self, name: str) -> RemoteFile:
        return self.files.get(name, RemoteFile(self.filesystem, f"{self.root}/{name}"))

    def __str__(self) -> str:
        return self.url


File = Path | RemoteFile
Folder = Path | RemoteFolder


def open_folder(path: str | Path) -> Folder:
    """A local directory, there or not, or the opened folder of a URL."""
    local = local_path(path)
    return RemoteFolder.open(str(path)) if local is None else local


def size_of(file: File) -> int:
    """Bytes of a file."""
    return file.size if isinstance(file, RemoteFile) else file.stat().st_size


def read_schema(file: File) -> pa.Schema:
    """Schema in the footer of a Parquet file; raises what pyarrow raises."""
    if isinstance(file, Path):
        return pq.read_schema(file)
    with file.open() as opened:
        return pq.read_schema(opened)


def read_parquet(file: File, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet file in memory, or some of its columns."""
    chosen = None if columns is None else list(columns)
    if isinstance(file, Path):
        return pq.read_table(file, columns=chosen)
    with file.open() as opened:
        return pq.read_table(opened, columns=chosen)


def let_duckdb_read(connection: Any, files: Sequence[File]) -> None:
    """Register the file systems of ``files`` with a DuckDB connection, which then reads their URLs."""
    for file in files:
        if isinstance(file, RemoteFile):
            protocol = file.filesystem.protocol
            first = protocol if isinstance(protocol, str) else protocol[0]
            if not connection.filesystem_is_registered(first):
                connection.register_filesystem(file.filesystem)


@contextmanager
def local_copy(path: str | Path, scratch: Path) -> Iterator[Path]:
    """The file or folder ``path``; what a URL names is downloaded into ``scratch`` while it is used."""
    local = local_path(path)
    if local is not None:
        yield local
        return
    folder = RemoteFolder.open(str(path))
    with tempfile.TemporaryDirectory(prefix="copy-", dir=scratch) as directory:
        target = Path(directory)
        if folder.files:
            folder.download(target)
        elif folder.filesystem.isfile(folder.root):
            target /= folder.root.rsplit("/", 1)[-1]
            folder.filesystem.get_file(folder.root, str(target))
        else:
            raise ConfigError(f"{path}: nothing is there")
        yield target


def refuse_taken(out: str, *, overwrite: bool) -> None:
    """Raise before any work when something lies under ``out``, a path or URL, that may not be replaced."""
    if local_path(out) is not None:
        refuse_existing(out, overwrite=overwrite)
        return
    filesystem, root = _reach(out)
    taken = [name for name in _listed(filesystem, root, out) if not _unfinished(name)]
    if MANIFEST in taken and not overwrite:
        raise ConfigError(f"out={out} exists; choose another directory or add overwrite=true")
    if taken and MANIFEST not in taken:
        raise ConfigError(f"out={out} holds {taken[0]} and no {MANIFEST}; choose another, it stays as it is")


@contextmanager
def staged_output(
    out: str | Path, *, overwrite: bool = False, scratch: str | Path | None = None
) -> Iterator[Path]:
    """Yield a local directory that becomes the content of ``out``, a path or URL, when the block succeeds.

    For a URL it lies in ``scratch`` (default: the system's) and is uploaded at the end, the manifest last;
    what it replaces is deleted then. When anything raises, readers go on with what was there.
    """
    if local_path(out) is not None:
        with staged_directory(out, overwrite=overwrite) as staged:
            yield staged
        return
    url = str(out)
    refuse_taken(url, overwrite=overwrite)
    filesystem, root = _reach(url)
    with tempfile.TemporaryDirectory(prefix="shopreel-", dir=scratch) as name:
        yield Path(name)
        before, _ = _manifest(filesystem, root, url)
        folder = f"write-{secrets.token_hex(8)}"
        local = {file.relative_to(name).as_posix(): file for file in sorted(Path(name).rglob("*"))}
        local = {relative: file for relative, file in local.items() if file.is_file()}
        manifest = {
            "schema_version": MANIFEST_VERSION,
            "folder": folder,
            "files": {relative: file.stat().st_size for relative, file in local.items()},
        }
        try:
            for relative, file in local.items():
                target = f"{root}/{folder}/{relative}"
                filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
                filesystem.put_file(str(file), target)
            filesystem.pipe_file(f"{root}/{MANIFEST}", json.dumps(manifest, indent=2).encode())
        except BaseException:
            _remove(filesystem, f"{root}/{folder}")
            raise
        if before:
            _remove(filesystem, f"{root}/{before}")


def _reach(url: str) -> tuple[Any, str]:
    """The file system of ``url`` and the path in it, without a slash at the end."""
    protocol = url.partition("://")[0]
    try:
        filesystem, root = url_to_fs(url)
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", "").partition(".")[0]
        mend = f"python -m pip install {package}" if package else "install it"
        raise ConfigError(f"{url}: needs a package for {protocol}:// ({error}); {mend}") from None
    except ValueError as error:
        raise ConfigError(f"{url}: {error}; fsspec names s3://, gs://, abfs://, hdfs:// and others") from None
    return filesystem, root.rstrip("/")


def _unfinished(name: str) -> bool:
    """Whether a file under a URL belongs to a write that no manifest has named."""
    return _WRITE.fullmatch(name.partition("/")[0]) is not None


def _listed(filesystem: Any, root: str, url: str) -> dict[str, int]:
    """Size of every file under ``root``, by relative name, in order."""
    try:
        filesystem.invalidate_cache()
        found = filesystem.find(root, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:  # every store has exceptions of its own
        raise ConfigError(f"{url}: cannot be listed ({_one_line(error)}); check address and rights") from None
    prefix = f"{root}/"
    return {
        path.removeprefix(prefix): int(facts["size"] or 0)
        for path, facts in sorted(found.items())
        if path.startswith(prefix) and facts["type"] == "file"
    }


def _manifest(filesystem: Any, root: str, url: str) -> tuple[str, dict[str, int] | None]:
    """The folder that the manifest names, and the size of each file in it; None without a manifest."""
    try:
        content = json.loads(filesystem.cat_file(f"{root}/{MANIFEST}"))
        if content["schema_version"] != MANIFEST_VERSION or not _WRITE.fullmatch(content["folder"]):
            raise ValueError(f"schema_version {content['schema_version']}")
        named = {str(name): int(size) for name, size in content["files"].items()}
        if any(".." in name.split("/") or name.startswith("/") for name in named):
            raise ValueError("a name that leads out of its folder")
        return content["folder"], named
    except FileNotFoundError:
        return "", None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ContractError(
            f"{url}/{MANIFEST}: not a manifest ({_one_line(error)}); write it again"
        ) from None


def _remove(filesystem: Any, path: str) -> None:
    """Delete what no manifest names; what stays after a failure is never read."""
    with suppress(Exception):
        filesystem.rm(path, recursive=True)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
