"""Experiments: known answers, A/A runs (also under peeking), CUPED, sample ratio, Simpson, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from evaluation.arrays import Floats
from evaluation.experiment import cuped, sample_ratio_p, uplift
from evaluation.sequential import always_valid_p, mixture_scale, sequence_half_width
from shopreel import main
from tests.evaluation.worlds import write


def test_uplift_of_a_mean_is_welch() -> None:
    random = np.random.default_rng(0)
    value, treated = random.exponential(size=900), random.integers(0, 2, 900)
    found = uplift("x", value, np.ones(900), None, treated, 1000)
    parts = value[treated == 0], value[treated == 1]
    assert found.difference == pytest.approx(parts[1].mean() - parts[0].mean())
    assert found.p == pytest.approx(stats.ttest_ind(parts[1], parts[0], equal_var=False).pvalue, rel=0.02)
    assert found.low < found.difference < found.high
    assert found.sequence_low < found.low
    assert found.relative == pytest.approx(found.difference / parts[0].mean())


def test_ratio_metric_keeps_its_users_together() -> None:
    """Impressions of one user agree; treating them as independent would halve the interval."""
    random = np.random.default_rng(1)
    differences, widths = [], []
    for _ in range(300):
        shown = random.integers(1, 30, 400).astype(float)
        rate = random.beta(1, 4, 400)
        clicks = random.binomial(shown.astype(int), rate).astype(float)
        treated = random.integers(0, 2, 400)
        found = uplift("ctr", clicks, shown, None, treated, 1000)
        differences.append(found.difference)
        widths.append(found.high - found.low)
    assert np.mean(widths) / (2 * 1.96) == pytest.approx(np.std(differences), rel=0.12)


def test_cuped_removes_what_the_past_explains() -> None:
    random = np.random.default_rng(2)
    before = random.normal(size=20_000)
    treated = random.integers(0, 2, 20_000)
    value = before + 0.5 * random.normal(size=20_000) + 0.1 * treated
    adjusted, reduction = cuped(value, before, treated)
    assert reduction == pytest.approx(0.8, abs=0.02)
    assert adjusted[treated == 1].mean() - adjusted[treated == 0].mean() == pytest.approx(0.1, abs=0.02)
    assert cuped(value, np.full(20_000, 3.0), treated)[1] == 0.0
    assert cuped(value, None, treated)[0] is value


def test_sample_ratio() -> None:
    assert sample_ratio_p(np.array([5000, 5000]), np.array([1.0, 1.0])) == 1.0
    assert sample_ratio_p(np.array([5300, 4700]), np.array([0.5, 0.5])) < 1e-8
    expected = stats.chisquare([880, 120], [900, 100]).pvalue
    assert sample_ratio_p(np.array([880, 120]), np.array([9.0, 1.0])) == pytest.approx(expected)
    assert np.isnan(sample_ratio_p(np.array([10]), np.ones(1)))


def test_always_valid_p_matches_its_interval() -> None:
    rho = mixture_scale(5000)
    for users in (100, 5000, 80_000):
        half = sequence_half_width(0.3, users, rho)
        assert always_valid_p(half, 0.3, users, rho) == pytest.approx(0.05)
        assert half > 1.96 * 0.3
    assert always_valid_p(1.0, 0.0, 100, rho) == 1.0


def peeked(value: Floats, treated: Any, rho: float, step: int, alpha: float = 0.05) -> tuple[bool, bool]:
    """Whether the sequential and the ordinary test ever rejected while looking after every ``step`` users."""
    count = np.cumsum(np.stack([treated == 0, treated == 1]), axis=1)
    total = np.cumsum(np.stack([value * (treated == 0), value * (treated == 1)]), axis=1)
    square = np.cumsum(np.stack([value**2 * (treated == 0), value**2 * (treated == 1)]), axis=1)
    look = np.arange(2 * step, len(value) + 1, step) - 1
    mean = total[:, look] / count[:, look]
    error = np.sqrt(((square[:, look] / count[:, look] - mean**2) / (count[:, look] - 1)).sum(axis=0))
    difference = mean[1] - mean[0]
    always = [
        always_valid_p(d, e, int(n) + 1, rho) < alpha for d, e, n in zip(difference, error, look, strict=True)
    ]
    return any(always), bool((np.abs(difference) > 1.96 * error).any())


@pytest.mark.slow
def test_peeking_at_500_a_a_runs() -> None:
    """The sequential test stays below 5 %; the ordinary one, peeked at the same way, does not."""
    rho = mixture_scale(2000)
    rejected = np.zeros(2)
    for seed in range(500):
        random = np.random.default_rng([3, seed])
        value = random.exponential(size=4000) * (random.random(4000) < 0.3)
        rejected += peeked(value, random.integers(0, 2, 4000), rho, step=100)
    assert rejected[0] / 500 <= 0.05
    assert rejected[1] / 500 > 0.15


def test_the_sequential_test_finds_a_real_effect() -> None:
    rho = mixture_scale(2000)
    found = 0
    for seed in range(50):
        random = np.random.default_rng([4, seed])
        treated = random.integers(0, 2, 4000)
        found += peeked(random.exponential(size=4000) * (1 + 0.2 * treated), treated, rho, step=200)[0]
    assert found >= 45


def served(users: int, seed: int, lift: float = 0.0, keep_treated: float = 1.0) -> dict[str, Any]:
    """A served log: five impressions per user before the experiment and five during it."""
    random = np.random.default_rng(seed)
    taste = random.beta(2, 6, users)
    arm = np.where(random.random(users) < 0.5, "control", "new")
    kept = (arm == "control") | (random.random(users) < keep_treated)
    user = np.repeat(np.flatnonzero(kept), 10)
    during = np.tile(np.arange(10) >= 5, int(kept.sum()))
    chance = np.clip(taste[user] + lift * (during & (arm[user] == "new")), 0, 1)
    click = random.random(len(user)) < chance
    time = np.where(during, np.datetime64("2026-03-10"), np.datetime64("2026-03-01")).astype("datetime64[us]")
    return {
        "user_id": [f"u{u}" for u in user],
        "event_time": pa.array(time, pa.timestamp("us", tz="UTC")),
        "arm": pa.array(arm[user], mask=~during),
        "click": click,
        "watch_ms": pa.array((random.gamma(2, 1000, len(user)) * chance).astype(int), pa.int64()),
        "market": np.where(user % 3, "SE", "BR"),
    }


def experiment(folder: Path, log: dict[str, Any], *overrides: str) -> dict[str, Any]:
    out = folder / "out"
    path = write(pa.table(log), folder / "log.parquet")
    assert main(["evaluate", f"log={path}", f"out={out}", "overwrite=true", *overrides]) == 0
    found: dict[str, Any] = json.loads((out / "report.json").read_text())["experiment"]
    return found


def test_a_real_effect_end_to_end(tmp_path: Path) -> None:
    found = experiment(tmp_path, served(3000, 0, lift=0.1))
    by_name = {each["metric"]: each for each in found["uplifts"]["new"]}
    assert list(by_name) == ["click_per_user", "click_rate", "watch_ms_per_user"]
    assert by_name["click_rate"]["low"] < 0.1 < by_name["click_rate"]["high"]
    assert by_name["click_per_user"]["reduction"] > 0.1
    assert found["sample_ratio_p"] > 0.01
    assert found["warnings"] == []
    assert "click_per_user" in found["verdicts"][0]
    assert "may be stopped early" in found["verdicts"][0]
    assert set(found["slices"]["new"]["market"]) == {"SE", "BR"}


def test_no_effect_end_to_end(tmp_path: Path) -> None:
    found = experiment(tmp_path, served(2000, 1))
    assert "is not shown to differ from control" in found["verdicts"][0]


def test_broken_split_is_shouted_at(tmp_path: Path) -> None:
    found = experiment(tmp_path, served(3000, 2, keep_treated=0.8))
    assert found["sample_ratio_p"] < 0.0005
    assert "sample ratio mismatch" in found["warnings"][0]
    planned = experiment(tmp_path, served(3000, 2, keep_treated=0.8), "experiment.split={control: 5, new: 4}")
    assert planned["warnings"] == []


def test_users_in_two_arms_are_left_out(tmp_path: Path) -> None:
    log = served(500, 3)
    arms = log["arm"].to_pylist()
    arms[9] = "new" if arms[8] == "control" else "control"
    found = experiment(tmp_path, {**log, "arm": arms})
    assert "1 users were seen in two arms" in found["warnings"][0]
    assert sum(found["users"].values()) == 499


def test_pre_period_by_time(tmp_path: Path) -> None:
    log = served(1000, 4)
    whole = pa.array(np.repeat([a for a in log["arm"].to_pylist() if a][::5], 10))
    found = experiment(tmp_path, {**log, "arm": whole}, "experiment.start='2026-03-05T00:00:00'")
    assert found["uplifts"]["new"][0]["reduction"] > 0.1
    without = experiment(tmp_path, {**log, "arm": whole})
    assert without["uplifts"]["new"][0]["reduction"] == 0
    assert "CUPED is off" in without["warnings"][0]


def test_simpson(tmp_path: Path) -> None:
    """Better in both markets, worse overall, because the arm got more of the poor market."""
    random = np.random.default_rng(5)
    rows = 6000
    arm = np.where(random.random(rows) < 0.5, "control", "new")
    poor = random.random(rows) < np.where(arm == "new", 0.9, 0.1)
    click = random.random(rows) < np.where(poor, 0.1, 0.5) + 0.1 * (arm == "new")
    log = {"user_id": np.arange(rows), "arm": arm, "click": click, "market": np.where(poor, "BR", "SE")}
    found = experiment(tmp_path, log)
    assert any("Simpson's paradox: new moves click_per_user" in line for line in found["warnings"])


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({"arm": ["a"] * 3}, [], "set experiment.control to one of the arms a"),
        ({"arm": ["control"] * 3}, [], "only the arm control occurs"),
        ({"arm": pa.array([None] * 3, pa.string())}, [], "names no arm in any row"),
        ({"arm": [1, 2, 3]}, [], "column arm must be a string"),
        ({}, ["experiment.control=x"], "set experiment.control to one of the arms control, new"),
        ({}, ["experiment.split={control: 1}"], "experiment.split has no share for the arm new"),
        ({}, ["experiment.start=monday"], "is not an ISO time"),
        ({}, ["experiment.arm=nothing"], "neither an experiment"),
    ],
)
def test_refusals(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    overrides: list[str],
    message: str,
) -> None:
    log = {"user_id": [1, 2, 3], "arm": ["control", "new", "new"], "click": [True, False, True]}
    path = write(pa.table({**log, **change}), tmp_path / "log.parquet")
    assert main(["evaluate", f"log={path}", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
