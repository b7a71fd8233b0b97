"""``shopreel import``: raw logs as upstream publishes them → a dataset directory that passes the contract."""

import importlib
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from data.atomic import write_json
from data.contract import open_dataset, time_zone
from data.dataset import DatasetInfo, writing_dataset
from data.engine import Engine, Session, open_engine
from data.errors import ConfigError, ContractError
from data.locations import local_path
from data.readers.draft import Draft, Reader, ReaderOptions
from data.readers.staging import Backend, Staging
from data.readers.writing import Span, write_draft
from data.storage import local_copy, refuse_taken


class Source(Enum):
    """Which upstream format; each is the module of that name in ``data.readers``."""

    kuairand = "kuairand"
    kuairec = "kuairec"
    microlens = "microlens"
    taobao = "taobao"
    retailrocket = "retailrocket"
    otto = "otto"
    movielens = "movielens"
    recbole = "recbole"
    sequence = "sequence"
    openbandit = "openbandit"


@dataclass(kw_only=True, slots=True)
class ImportConfig:
    """``configs/import.yaml`` explains and defaults every key."""

    source: Source
    raw: str
    out: str
    engine: Engine
    overwrite: bool
    like_from_rating: float
    validation_share: float
    seed: int
    memory_limit_gb: float
    threads: int

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"validation_share={self.validation_share} is not in [0, 1)")
        if self.memory_limit_gb <= 0:
            raise ConfigError(f"memory_limit_gb={self.memory_limit_gb} is not above 0")
        if self.threads < 0:
            raise ConfigError(f"threads={self.threads} is negative; 0 takes all cores")


CONFIG = ImportConfig


def run(config: ImportConfig) -> None:
    """Read, write, check, and only then move the dataset into place; print the report and what is next."""
    refuse_taken(config.out, overwrite=config.overwrite)
    raw = local_path(config.raw)
    if raw is not None and not raw.exists():
        raise ConfigError(f"raw={raw}: no such file or directory")
    options = ReaderOptions(
        like_from_rating=config.like_from_rating, validation_share=config.validation_share, seed=config.seed
    )
    reader: Reader = importlib.import_module(f"data.readers.{config.source.value}").read
    info = DatasetInfo(name="", source="", licence="")
    with writing_dataset(config.out, info, overwrite=config.overwrite) as directory:
        scratch = directory / ".staged"
        scratch.mkdir()
        with (
            local_copy(config.raw, scratch) as raw,
            open_engine(
                config.engine, memory_limit_gb=config.memory_limit_gb, temp_directory=scratch,
                threads=config.threads,
            ) as session,
        ):  # fmt: skip
            backend = backend_of(session)
            with _steps(backend) as on_step:
                staging = Staging(backend, session.scratch, on_step)
                draft = reader(staging, raw, options)
                span = write_draft(draft, staging, directory)
        shutil.rmtree(scratch)
        for name, value in asdict(draft.info).items():
            setattr(info, name, value)
        _check(directory, info, config.out)
    console = Console()
    console.print(draft.report.render(f"{info.name}: {config.out}"))
    for note in info.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"next: {_next(config.out, draft, span)}", soft_wrap=True, highlight=False, markup=False)


def backend_of(session: Session) -> Backend:
    """What reads and writes on the engine of ``session``."""
    if session.engine is Engine.spark:
        from data.readers.spark_backend import SparkBackend

        return SparkBackend(session)
    from data.readers.duckdb_backend import DuckDBBackend

    return DuckDBBackend(session)


def _check(directory: Path, info: DatasetInfo, out: str) -> None:
    write_json(directory / "dataset.json", asdict(info))
    try:
        open_dataset(directory)
    except ContractError as error:
        where = str(error).replace(str(directory), out)
        raise ContractError(f"nothing written, the raw files break the contract: {where}") from None


def _next(out: str, draft: Draft, span: Span) -> str:
    command = f"shopreel prepare dataset={shlex.quote(out)} out={shlex.quote(out.rstrip('/') + '-prepared')}"
    if "split" in draft.tables["events"].columns:
        return command
    zone = time_zone(draft.info.time_zone)
    first, last = (moment.astimezone(zone).date() for moment in (span.first, span.last))
    held_out = timedelta(days=max(1, ((last - first).days + 1) // 15))
    end = last + timedelta(days=1)
    days = {"validation": end - 2 * held_out, "test": end - held_out, "end": end}
    return command + "".join(f" split.{name}={day}" for name, day in days.items())


@contextmanager
def _steps(backend: Backend) -> Iterator[Callable[[str], None]]:
    """Yield what to call when a step begins: a bar on a terminal, one line per step elsewhere."""
    console = Console(stderr=True)

    class QueryProgress(TaskProgressColumn):
        def render(self, task: Task) -> Text:
            if not task.finished and (share := backend.progress()) is not None:
                task.completed = max(task.completed, 100 * share)
            return super().render(task)

    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), QueryProgress(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip

    def begin(what: str) -> None:
        for task in bar.tasks:
            bar.update(task.id, completed=100)
        bar.add_task(what, total=100)
        if not console.is_terminal:
            console.print(f"import: {what}", highlight=False, markup=False)

    with bar:
        yield begin
