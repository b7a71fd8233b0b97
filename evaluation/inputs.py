"""From the ``run=`` argument to named runs: files, replay folders, lists, and stage columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from data.errors import ConfigError, ContractError
from evaluation.tables import RUN, Kind, open_table

#: The order of the pipeline; the last one present is what the user sees.
STAGES = ("exact", "index", "ranker", "feed")


@dataclass(frozen=True, slots=True)
class RunSource:
    """One ranked list per request: where it is and what it is called in the report."""

    name: str
    path: str
    table: ds.Dataset
    where: ds.Expression | None = None
    stage: str | None = None


def open_runs(key: str, value: Any) -> list[RunSource]:
    """Resolve ``run=`` or ``baseline=``: path, list of paths, or {name: path}.

    A folder with ``run_*.parquet`` files (as ``shopreel replay`` writes it) gives one run per file.
    """
    if value is None:
        return []
    if isinstance(value, Mapping):
        named = [(str(name), str(path)) for name, path in value.items()]
    elif isinstance(value, list | tuple):
        named = [("", str(path)) for path in value]
    else:
        named = [("", str(value))]
    sources: list[RunSource] = []
    for name, path in named:
        parts = replay_files(Path(path)) or [Path(path)]
        for part in parts:
            prefix = name if len(parts) == 1 else f"{name}/" if name else ""
            sources += _stages(key, prefix, part)
    return sorted(_unique(sources), key=_order)


def named_paths(value: Any) -> list[tuple[str, str]]:
    """``predictions=`` as (name, path): a path, a list of paths, or {name: path}."""
    if isinstance(value, Mapping):
        return [(str(name), str(path)) for name, path in value.items()]
    paths = [str(path) for path in value] if isinstance(value, list | tuple) else [str(value)]
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = [
            f"{Path(path).absolute().parent.name}/{name}" for path, name in zip(paths, names, strict=True)
        ]
    return list(zip(names, paths, strict=True))


def is_predictions(path: Path) -> bool:
    """Whether a Parquet file looks like a predictions table: some p_<task>, no rank."""
    if not path.is_file():
        return False
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        return False
    return "rank" not in names and any(name.startswith(("p_", "predicted_")) for name in names)


def replay_files(folder: Path) -> list[Path]:
    """The ``run_*.parquet`` of a replay folder; empty for anything else."""
    return sorted(folder.glob("run_*.parquet")) if folder.is_dir() else []


def beside(value: Any, name: str) -> str | None:
    """``name`` in the replay folder given as ``run=``, where there is one: truth and predictions."""
    if isinstance(value, str) and replay_files(Path(value)) and (Path(value) / name).is_file():
        return str(Path(value) / name)
    return None


def _stages(key: str, prefix: str, path: Path) -> list[RunSource]:
    table = open_table(key, path, RUN)
    own = path.stem.removeprefix("run_") if path.is_file() else path.name
    base = f"{prefix}{own}" if not prefix or prefix.endswith("/") else prefix
    if "stage" not in table.schema.names:
        return [RunSource(base, str(path), table)]
    if not Kind.text.fits(table.schema.field("stage").type):
        raise ContractError(f"{key}={path}: column stage must be a string; cast it")
    column = table.to_table(columns=["stage"])["stage"]
    stages = [str(stage) for stage in column.unique().to_pylist() if stage is not None]
    if len(stages) > 1 and column.null_count:
        raise ContractError(
            f"{key}={path}: column stage has nulls beside {stages[0]!r}; fill or drop those rows"
        )
    if len(stages) <= 1:
        return [RunSource(base, str(path), table, stage=stages[0] if stages else None)]
    join = f"{prefix}/" if prefix and not prefix.endswith("/") else prefix
    return [
        RunSource(f"{join}{stage}", str(path), table, ds.field("stage") == stage, stage) for stage in stages
    ]


def _unique(sources: list[RunSource]) -> list[RunSource]:
    names = [source.name for source in sources]
    result = []
    for source in sources:
        name = source.name
        if names.count(name) > 1:
            name = f"{Path(source.path).absolute().parent.name}/{name}"
        result.append(RunSource(name, source.path, source.table, source.where, source.stage))
    final = [source.name for source in result]
    if len(set(final)) < len(final):
        raise ConfigError("two runs have the same name; name them: 'run={old: a.parquet, new: b.parquet}'")
    return result


def _order(source: RunSource) -> int:
    return STAGES.index(source.stage) if source.stage in STAGES else -1
