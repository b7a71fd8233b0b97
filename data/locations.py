"""What a path argument names: a place on this machine, or a URL."""

from pathlib import Path

from data.errors import ConfigError


def local_path(path: str | Path) -> Path | None:
    """The path of this machine that ``path`` (plain or ``file://``) names; None for any other URL."""
    text = str(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if "://" in text else Path(path)


def only_local(key: str, path: str | Path) -> Path:
    """The local path of an argument called ``key`` that takes no URL; refuses one."""
    local = local_path(path)
    if local is None:
        raise ConfigError(f"{key}={path}: must be a path of this machine; choose one and copy it from there")
    return local
