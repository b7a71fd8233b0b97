"""The server's memory: one protocol, two implementations."""

from data.errors import ConfigError
from serving.state.protocol import Limits, Store

__all__ = ["Limits", "Store", "open_store"]


def open_store(url: str, limits: Limits) -> Store:
    """Open ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``redis://host:port/db``.

    Raises :class:`data.errors.ConfigError` for any other URL and for a place that cannot be opened.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1 and ":memory:" not in rest:
        from serving.state.sqlite import SqliteStore

        return SqliteStore(rest[1:], limits)
    if scheme in ("redis", "rediss", "unix") and rest:
        from serving.state.redis import RedisStore

        return RedisStore(url, limits)
    raise ConfigError(f"store={url}: give sqlite:///PATH (a file) or redis://HOST:PORT/DB")
