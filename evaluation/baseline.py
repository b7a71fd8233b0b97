"""What to compare with what: from ``baseline=`` to pairs of run names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.inputs import STAGES, RunSource, is_predictions, open_runs

Pairs = list[tuple[str, str]]


def open_baseline(value: Any, sources: list[RunSource], primary: str) -> tuple[Pairs, list[RunSource]]:
    """(new, old) pairs of run names, and the further runs that the baseline brings.

    ``baseline=`` is the name of one of the runs (every other one is compared with it) or the place of
    other runs (stages are compared with the same stage, the primary run with the last of them). Without
    a baseline, stages are compared with a run that is none, and several plain runs with the first.
    """
    names = [source.name for source in sources]
    if isinstance(value, str) and value in names:
        return [(name, value) for name in names if name != value], []
    if value is not None and not (isinstance(value, str) and is_predictions(Path(value))):
        olds = [_renamed(source, names) for source in open_runs("baseline", value)]
        by_stage = {old.stage: old.name for old in olds if old.stage}
        pairs = [(source.name, by_stage[source.stage]) for source in sources if source.stage in by_stage]
        return pairs or [(primary, olds[-1].name)], olds
    if value is None:
        references = [source.name for source in sources if source.stage not in STAGES]
        if len(references) < len(names):  # such as the popularity run that replay adds to its stages
            return [(primary, name) for name in references], []
        return [(name, names[0]) for name in names[1:]], []
    return [], []


def _renamed(source: RunSource, taken: list[str]) -> RunSource:
    return replace(source, name=f"baseline/{source.name}") if source.name in taken else source
