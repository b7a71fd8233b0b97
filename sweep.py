"""``shopreel sweep``: one ``shopreel train`` after another in search of better settings."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from data.atomic import write_bytes
from data.errors import ConfigError
from data.prepared import Prepared
from data.progress import progress
from evaluation.sweep_page import render_sweep
from training.search_space import Point
from training.study import State, Study, Trial
from training.sweep_config import Keep, Sweep, SweepConfig, configure
from training.sweep_directory import forget_models, open_sweep, trial_name
from training.sweep_results import said, show, trials_table, write_overrides, write_table
from training.trial import Outcome, train_trial

__all__ = ["CONFIG", "configure", "run"]
CONFIG = SweepConfig
#: Keys of train that may differ when a sweep goes on: they say where it runs, not what it finds.
OF_THE_MACHINE = ("prepared", "device", "threads", "timeout_minutes", "checkpoint_steps", "log_steps")
#: Trains by the words of ``shopreel train`` into a run directory, printing into a log.
Train = Callable[[Sequence[str], Path, Path], Outcome]


def run(sweep: Sweep, train: Train = train_trial) -> None:
    """Go through the trials; the tables in ``out`` are up to date after each."""
    config, out = sweep.config, Path(sweep.config.out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep starts a process per trial itself; start it without torchrun")
    data = Prepared.open(config.prepared).manifest["hash"]
    console = Console(stderr=True)
    with open_sweep(out, _record(sweep, data), resume=config.resume, overwrite=config.overwrite) as there:
        study = Study(
            out / "study.journal", sweep.space, config.sampler, config.sampler_seed, config.random_trials,
            sweep.defaults,
        )  # fmt: skip
        for broken in study.interrupt_running():
            _settle(sweep, broken)
        before = study.counted()
        how = f"goes on after {before} trials" if there else "a new sweep"
        total = min(config.trials, sweep.space.size() or config.trials)
        console.print(f"{out}: {how}, {total} in all", highlight=False, soft_wrap=True)
        with progress("trials", max(total - before, 0), "trials") as advance:
            while study.counted() < config.trials and (trial := study.begin()):
                _try(sweep, study, trial, train, console)
                advance(study.counted() - before)
        _write(sweep, study)
        _say_closing(sweep, study)


def _try(sweep: Sweep, study: Study, trial: Trial, train: Train, console: Console) -> None:
    """One training; one that is interrupted is marked as such before the sweep ends."""
    out = Path(sweep.config.out)
    log = out / "logs" / f"{trial_name(trial.number)}.log"
    console.print(
        f"trial {trial.number}: {said(trial, sweep.space)}", highlight=False, markup=False, soft_wrap=True
    )
    words = [*_words(sweep, trial.point), *sweep.only_here]
    try:
        outcome = train(words, out / trial_name(trial.number), log)
    except BaseException:
        study.interrupt(trial.number)
        _settle(sweep, study.trials()[trial.number])
        _write(sweep, study)
        console.print(f"broken off; the same command with resume=true goes on with {out}", soft_wrap=True)
        raise
    done = study.finish(outcome)
    _settle(sweep, done)
    _write(sweep, study)
    best = study.best()
    said_best = "" if best is None else f", best {best.outcome.value:.4f} in trial {best.number}"
    result = f"failed: {outcome.error} (see {log})"
    if done.state is State.complete:
        result = f"{outcome.metric} {outcome.value:.4f}"
    console.print(
        f"trial {trial.number}: {result} after {outcome.seconds:,.0f} s{said_best}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def _words(sweep: Sweep, point: Point) -> list[str]:
    """What ``shopreel train`` is to be told for a training with these settings."""
    return [*sweep.fixed, *sweep.space.overrides(point)]


def _record(sweep: Sweep, data: str) -> dict[str, object]:
    """What must stay the same for a sweep to go on."""
    config = sweep.config
    fixed = [word for word in sweep.fixed if word.partition("=")[0] not in OF_THE_MACHINE]
    return {
        "schema_version": 1,
        "search": {each.key: each.text for each in sweep.space.dimensions},
        "fixed": sorted(fixed),
        "prepared data": data,
        "sampler": config.sampler.value,
        "sampler_seed": config.sampler_seed,
        "random_trials": config.random_trials,
        "defaults_first": config.defaults_first,
    }


def _settle(sweep: Sweep, trial: Trial) -> None:
    """Write a trial's overrides into its run directory."""
    folder = Path(sweep.config.out) / trial_name(trial.number)
    folder.mkdir(exist_ok=True)
    write_overrides(_words(sweep, trial.point), folder / "overrides.yaml")


def _write(sweep: Sweep, study: Study) -> None:
    """Bring the tables up to date, then delete the model files that are not to be kept."""
    out, trials, best = Path(sweep.config.out), study.trials(), study.best()
    table = trials_table(trials, sweep.space)
    write_table(table, out / "trials.parquet")
    logarithmic = [each.key for each in sweep.space.dimensions if getattr(each.distribution, "log", False)]
    write_bytes(out / "sweep.html", render_sweep(table, f"Sweep · {out.name}", logarithmic).encode())
    if best is not None:
        found = f"validation {best.outcome.metric} {best.outcome.value:.4f}, trial {best.number}"
        write_overrides(
            _words(sweep, best.point), out / "best.yaml",
            f"the best of {study.counted()} trials: {found}", f"shopreel train @{out}/best.yaml out=RUN",
        )  # fmt: skip
    if sweep.config.keep is Keep.best:
        for trial in trials:
            if best is None or trial.number != best.number:
                forget_models(out, trial.number)


def _say_closing(sweep: Sweep, study: Study) -> None:
    """The table, the best, and what to run next."""
    out, best, trials = Path(sweep.config.out), study.best(), study.trials()
    console = Console()
    show(trials, sweep.space, out, console)
    if best is None:
        raise ConfigError(f"none of the {len(trials)} trials gave a model; their output is in {out}/logs")
    if study.counted() < sweep.config.trials:
        console.print(f"all {sweep.space.size()} combinations are tried")
    console.print(
        f"best: trial {best.number}, validation {best.outcome.metric} {best.outcome.value:.4f}, its run in "
        f"{out / trial_name(best.number)}; plots in {out / 'sweep.html'}\n"
        f"next: shopreel train @{out}/best.yaml out=RUN",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
