"""``manifest.json``: what a bundle holds, the checksum of every file, and the name that follows from them."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.atomic import read_json, write_bytes
from data.errors import ConfigError, ContractError

#: Raised whenever a bundle of an older release would be read wrongly.
BUNDLE_VERSION = 1
MANIFEST = "manifest.json"
#: Follow from the rest of the content, but not bit for bit the same twice (FAISS builds in parallel).
DERIVED_FILES = ("index.faiss", "golden.arrow")

_NAME = re.compile(r"bundle-[0-9a-f]{16}")
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The facts of a bundle. All values are plain JSON.

    ``files``: relative path → ``{"sha256", "bytes"}``, all but the manifest. ``models``: kind →
    ``{"run", "seed", "best", "prepared", "similarity", "dim"}``. ``features``: hashes of feature spec and
    vocabularies. ``catalogue``: number of videos and products. ``dataset``: name, fingerprint and which
    splits it was cut into. ``index``: the request (kind, target, build parameters).
    ``measured``: recall, collapse report, seconds, versions and date; it does not enter the name.
    """

    bundle_version: int
    name: str
    files: dict[str, dict[str, Any]]
    models: dict[str, dict[str, Any]]
    features: dict[str, Any]
    catalogue: dict[str, int]
    dataset: dict[str, Any]
    split: dict[str, Any]
    index: dict[str, Any]
    measured: dict[str, Any]

    @classmethod
    def of(cls, directory: Path, **facts: Any) -> "Manifest":
        """The manifest of the files that lie under ``directory`` now; ``facts`` are the other fields."""
        files = {
            path.relative_to(directory).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in sorted(directory.rglob("*"))
            if path.is_file() and path != directory / MANIFEST
        }
        unnamed = cls(bundle_version=BUNDLE_VERSION, name="", files=files, **facts)
        return cls(**(asdict(unnamed) | {"name": unnamed.content_name()}))

    def content_name(self) -> str:
        """``bundle-`` and 16 hex digits over everything but the derived files and ``measured``."""
        content = asdict(self)
        del content["name"], content["measured"]
        content["files"] = {
            path: fact["sha256"] for path, fact in self.files.items() if path not in DERIVED_FILES
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"bundle-{digest[:16]}"

    def write(self, directory: Path) -> None:
        """Write ``manifest.json`` into ``directory``."""
        write_bytes(directory / MANIFEST, self._render())

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read and check ``manifest.json``: version, keys, name, and that not one byte was changed."""
        path = directory / MANIFEST
        try:
            raw = read_json(path)
            content = path.read_bytes()
        except (ConfigError, OSError) as error:
            raise ContractError(f"{error}; publish again") from None
        version = raw.get("bundle_version") if isinstance(raw, dict) else None
        if version != BUNDLE_VERSION:
            raise ContractError(
                f"{path}: bundle_version is {version}, this release reads {BUNDLE_VERSION}; publish again"
            )
        seal = raw.pop("seal", None)
        try:
            manifest = cls(**raw)
            whole = content == manifest._render() and seal is not None
            named = manifest.name == manifest.content_name()
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise ContractError(f"{path}: not a bundle manifest ({error}); publish again") from None
        if not whole or not named:
            raise ContractError(f"{path}: was changed after it was written; publish again")
        return manifest

    def check_files(self, directory: Path) -> None:
        """Compare size and checksum of every file; the first mismatch raises :class:`ContractError`."""
        for relative, fact in self.files.items():
            path = directory / relative
            if not path.resolve().is_relative_to(directory.resolve()):
                raise ContractError(f"{directory}/{MANIFEST}: names {relative!r} outside the bundle")
            if not path.is_file():
                raise ContractError(f"{path}: missing from the bundle; publish again")
            if path.stat().st_size != fact["bytes"] or sha256(path) != fact["sha256"]:
                raise ContractError(f"{path}: differs from its checksum in {MANIFEST}; publish again")

    def _render(self) -> bytes:
        content = asdict(self)
        seal = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
        return (
            json.dumps({**content, "seal": seal}, indent=2, sort_keys=True, allow_nan=False) + "\n"
        ).encode()


def is_bundle_name(name: str) -> bool:
    """Whether ``name`` can be a bundle's directory: nothing that could lead to another folder."""
    return _NAME.fullmatch(name) is not None


def sha256(path: Path) -> str:
    """Checksum of a file, streamed."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
