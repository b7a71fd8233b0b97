"""Files and directories that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from data.errors import ConfigError
from data.locations import only_local


@contextmanager
def staged_directory(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a scratch directory beside ``out`` that becomes ``out`` when the block succeeds.

    When the block raises, the scratch directory is removed and an older ``out`` stays as it was.
    An ``out`` that exists and is not empty is refused unless ``overwrite``.
    """
    target = only_local("out", out).absolute()
    refuse_existing(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(old / target.name)
            scratch.rename(target)
            shutil.rmtree(old)
        else:
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_existing(out: str | Path, *, overwrite: bool) -> None:
    """Raise before any work when ``out`` is taken: a non-empty directory or a file."""
    target = only_local("out", out)
    if target.is_file():
        raise ConfigError(f"out={out} is a file; choose a directory")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"out={out} exists; choose another directory or add overwrite=true")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` through a synced temporary file and a rename."""
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically; NaN and infinity are refused (not JSON)."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


class Readable(Protocol):
    """A path, or a file under a URL."""

    def read_text(self, encoding: str = ...) -> str:
        """The whole content."""
        ...


def read_json(path: str | Readable) -> Any:
    """Parse a JSON file; a missing or broken one raises a one-line :class:`ConfigError`."""
    file = Path(path) if isinstance(path, str) else path
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
