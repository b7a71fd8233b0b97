"""The arguments of ``shopreel serve``; their defaults and meanings stand in configs/serve.yaml."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum

from data.errors import ConfigError
from serving.app import HttpSettings
from serving.exploration import ExplorationPreferences
from serving.paging import CampaignPreferences, FeedSettings
from serving.schema import MAX_PAGE_SIZE
from serving.shadow import ShadowSettings
from serving.slate import SlatePreferences
from serving.sources import SourceQuotas
from serving.state import Limits
from serving.state.protocol import DAY_MS

#: ``as_of`` values that are not moments.
NOW, LOG = "now", "log"


class Device(Enum):
    """Where user vectors are computed: ``auto`` takes CUDA when there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Traces(Enum):
    """Where spans of requests go."""

    none = "none"
    otlp = "otlp"


@contextmanager
def _section(name: str) -> Iterator[None]:
    """Names the section of a setting that is out of range."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


@dataclass(kw_only=True, slots=True)
class FeedConfig:
    """The ``feed`` section: how many candidates, and how long a request may take."""

    page_size: int
    candidates: int
    budget_ms: int
    max_batch: int
    max_queue: int

    def __post_init__(self) -> None:
        if not 1 <= self.page_size <= MAX_PAGE_SIZE:
            raise ConfigError(f"feed.page_size={self.page_size} is not within 1 … {MAX_PAGE_SIZE}")
        for name in ("candidates", "budget_ms", "max_batch", "max_queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"feed.{name}={getattr(self, name)} must be at least 1")


@dataclass(kw_only=True, slots=True)
class SlateConfig:
    """The ``slate`` section: preferences of a page."""

    creator_cap: int
    merchant_cap: int
    brand_cap: int
    product_cap: int
    min_shopping_share: float
    max_shopping_share: float
    lookahead: int
    diversity: float

    def preferences(self) -> SlatePreferences:
        """The same as the pages take it."""
        return SlatePreferences(**asdict(self))

    def __post_init__(self) -> None:
        with _section("slate"):
            self.preferences()


@dataclass(kw_only=True, slots=True)
class ExplorationConfig:
    """The ``exploration`` section."""

    positions: list[int]
    pool: int
    uniform_share: float
    temperature: float

    def preferences(self) -> ExplorationPreferences:
        """The same as the pages take it."""
        return ExplorationPreferences(**{**asdict(self), "positions": tuple(sorted(self.positions))})

    def __post_init__(self) -> None:
        with _section("exploration"):
            self.preferences()


@dataclass(kw_only=True, slots=True)
class SourcesConfig:
    """The ``sources`` section: candidates besides those of the towers, and what newcomers are promised."""

    fresh: int
    fresh_days: float
    popular: int
    followed: int
    video_showings: int
    merchant_showings: int
    merchant_days: float

    def quotas(self) -> SourceQuotas:
        """The same as the pages take it."""
        return SourceQuotas(**asdict(self))

    def __post_init__(self) -> None:
        with _section("sources"):
            self.quotas()


@dataclass(kw_only=True, slots=True)
class ShadowConfig:
    """The ``shadow`` section: a second bundle that ranks some requests too, unseen."""

    bundles: str | None
    out: str | None
    share: float
    depth: int
    load: float
    max_queue: int

    def settings(self) -> ShadowSettings:
        """The same as the shadow takes it."""
        return ShadowSettings(share=self.share, depth=self.depth, load=self.load, max_queue=self.max_queue)

    def __post_init__(self) -> None:
        with _section("shadow"):
            self.settings()
        if (self.bundles is None) != (self.out is None):
            raise ConfigError("shadow: bundles says who ranks, out where it is written: give both or none")


@dataclass(kw_only=True, slots=True)
class CampaignsConfig:
    """The ``campaigns`` section."""

    positions: list[int]

    def preferences(self) -> CampaignPreferences:
        """The same as the pages take it."""
        return CampaignPreferences(tuple(sorted(self.positions)))

    def __post_init__(self) -> None:
        with _section("campaigns"):
            self.preferences()


@dataclass(kw_only=True, slots=True)
class MemoryConfig:
    """The ``memory`` section: what the store keeps of users, and for how long."""

    history_steps: int
    seen_days: float
    served_hours: float
    session_hours: float
    user_days: float
    event_days: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ConfigError(f"memory.{name}={value} must be above 0")


@dataclass(kw_only=True, slots=True)
class HttpConfig:
    """The ``http`` section: bounds, keys and rates."""

    max_body_bytes: int
    threads: int
    max_in_flight: int
    requests_per_second: float
    burst: int
    api_keys: list[str]
    page: bool
    shutdown_s: int

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "threads", "max_in_flight", "shutdown_s"):
            if getattr(self, name) < 1:
                raise ConfigError(f"http.{name}={getattr(self, name)} must be at least 1")
        if any(len(key) < 16 for key in self.api_keys):
            raise ConfigError("http.api_keys: a key needs at least 16 characters")


@dataclass(kw_only=True, slots=True)
class ServeConfig:
    """The whole command."""

    bundles: str
    store: str
    host: str
    port: int
    workers: int
    device: Device
    poll_s: float
    model_threads: int
    compiled: str | None
    cursor_secret: str | None
    warm_from: str | None
    warm_until: str | None
    as_of: str
    memory_limit_gb: float
    plan: str | None
    log: str | None
    log_every_s: float
    traces: Traces
    feed: FeedConfig
    slate: SlateConfig
    exploration: ExplorationConfig
    campaigns: CampaignsConfig
    sources: SourcesConfig
    shadow: ShadowConfig
    memory: MemoryConfig
    http: HttpConfig

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port={self.port} is not within 0 … 65535")
        if min(self.poll_s, self.memory_limit_gb, self.log_every_s) <= 0:
            raise ConfigError("poll_s, memory_limit_gb and log_every_s must be above 0")
        if self.workers < 1:
            raise ConfigError(f"workers={self.workers} must be at least 1")
        if self.model_threads < 0:
            raise ConfigError(f"model_threads={self.model_threads} is negative; 0 leaves it to the libraries")
        if self.cursor_secret is not None and len(self.cursor_secret.encode()) < 16:
            raise ConfigError("cursor_secret needs at least 16 characters")
        if self.warm_from is None and (self.warm_until is not None or self.as_of == LOG):
            raise ConfigError("warm_until and as_of=log speak of a log: give warm_from=DATASET")
        with _section("feed"):
            self.feed_settings()
        for name in ("warm_until", "as_of"):
            value = getattr(self, name)
            if value is not None and value not in (NOW, LOG):
                moment_ms(name, value)

    def feed_settings(self) -> FeedSettings:
        """How pages are made."""
        return FeedSettings(
            page_size=self.feed.page_size,
            candidates=self.feed.candidates,
            slate=self.slate.preferences(),
            exploration=self.exploration.preferences(),
            campaigns=self.campaigns.preferences(),
            sources=self.sources.quotas(),
            max_batch=self.feed.max_batch,
            max_queue=self.feed.max_queue,
        )

    def limits(self) -> Limits:
        """What the store keeps."""
        hour_ms = DAY_MS / 24
        return Limits(
            history_steps=self.memory.history_steps,
            seen_ttl_ms=int(self.memory.seen_days * DAY_MS),
            served_ttl_ms=int(self.memory.served_hours * hour_ms),
            session_ttl_ms=int(self.memory.session_hours * hour_ms),
            user_ttl_ms=int(self.memory.user_days * DAY_MS),
            event_ttl_ms=int(self.memory.event_days * DAY_MS),
        )

    def http_settings(self) -> HttpSettings:
        """Bounds of the HTTP side."""
        return HttpSettings(
            max_body_bytes=self.http.max_body_bytes,
            threads=self.http.threads,
            max_in_flight=self.http.max_in_flight,
            budget_ms=self.feed.budget_ms,
            page=self.http.page,
            api_keys=tuple(self.http.api_keys),
            requests_per_second=self.http.requests_per_second / self.workers,
            burst=-(-self.http.burst // self.workers),
        )


def moment_ms(name: str, text: str) -> int:
    """Unix ms of a date or a moment in ISO 8601; UTC where no zone is given."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{name}={text}: write it as 2026-03-16 or 2026-03-16T12:00:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
