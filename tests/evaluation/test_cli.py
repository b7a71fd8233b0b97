"""The command end to end: exit codes, report.json, what is on screen."""

import json
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shopreel import main
from tests.evaluation.market import Pipeline
from tests.evaluation.test_experiment import served
from tests.evaluation.worlds import run_table, truth_table, write

GAINS = {f"r{r}": {r: 1.0, 1000 + r: 1.0} for r in range(60)}
GOOD = {f"r{r}": [r, 500, 501] for r in range(60)}
POOR = {f"r{r}": [502, 500, r] if r % 2 else [500, 501, 502] for r in range(60)}


@pytest.fixture
def replay(tmp_path: Path) -> Path:
    folder = tmp_path / "replay"
    folder.mkdir()
    write(truth_table(GAINS), folder / "truth.parquet")
    for stage, lists in (("exact", GOOD), ("index", GOOD), ("feed", POOR)):
        stages = pa.array([stage] * sum(map(len, lists.values())))
        write(run_table(lists, stage=stages), folder / f"run_{stage}.parquet")
    return folder


def test_replay_folder_gives_a_report_per_stage(
    replay: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        main(["evaluate", f"run={replay}", f"out={out}", "cutoffs=[2,3]", "verdict=ndcg@3", "replicates=200"])
        == 0
    )
    report = json.loads((out / "report.json").read_text())
    assert report["primary"] == "feed"
    assert list(report["runs"]) == ["exact", "index", "feed"]
    assert report["metrics"] == report["runs"]["feed"]["metrics"]
    exact = report["runs"]["exact"]["metrics"]["recall@2"]
    assert exact == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 60}
    feed = report["metrics"]["recall@3"]
    assert feed["value"] == 0.25
    assert 0.15 < feed["low"] < 0.25 < feed["high"] < 0.35
    assert report["protocol"]["users"] == 60
    screen = capsys.readouterr().out
    assert "recall@3" in screen
    assert "0.2500" in screen


def test_gate_exits_with_three(replay: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["evaluate", f"run={replay}", "replicates=100", "metrics=[recall]", "cutoffs=[2]"]
    assert main([*base, "fail_under='recall@3>=0.2'"]) == 0
    assert main([*base, "fail_under='recall@3>=0.2,ndcg@3>0.9'"]) == 3
    assert "ndcg@3>0.9 does not hold: ndcg@3 is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fail_under=ndcg", "is not of the form ndcg@20>=0.1"),
        ("fail_under='auc/click>=0.5'", "no metric 'auc/click' in this report"),
        ("cutoffs=[0]", "cutoffs must be a list of ranks from 1"),
        ("metrics=[recal]", "is not one of recall"),
        ("truth=nowhere.parquet", "no such file"),
        ("run=null", "nothing to evaluate"),
        ("runn=x", "did you mean run?"),
    ],
)
def test_mistakes_exit_with_two(
    replay: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main(["evaluate", f"run={replay}", "replicates=100", override]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_existing_out_is_refused_and_left_alone(
    replay: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert main(["evaluate", f"run={replay}", f"out={out}"]) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_warnings_name_what_would_mislead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(truth_table(GAINS), tmp_path / "truth.parquet")
    lists = {f"r{r}": [r, 500] for r in range(30)} | {"stranger": [1, 2]}
    table = run_table(lists)
    flat = table.set_column(3, "score", pa.array([0.5] * table.num_rows))
    run = write(flat, tmp_path / "run.parquet")
    assert main(["evaluate", f"run={run}", f"truth={truth}", "replicates=100"]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert "covers 30 of 60 requests" in screen
    assert "1 requests are not in the truth" in screen
    assert "all scores are equal in 30 requests" in screen
    assert "lists are shorter (median) than the cutoff 100: run 2" in screen
    assert "does not state its split" in screen


def test_two_predictions_tables_are_compared(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.normal(-1, 1, 6000)
    label = random.random(6000) < 1 / (1 + np.exp(-truth))
    paths = {}
    for name, noise in (("old", 1.5), ("new", 0.2)):
        score = 1 / (1 + np.exp(-truth - noise * random.normal(size=6000)))
        rows = {"user_id": np.arange(6000) % 700, "p_click": score, "label_click": label}
        rows["market"] = np.array(["SE", "BR"])[np.arange(6000) % 2]
        paths[name] = write(pa.table(rows), tmp_path / f"{name}.parquet")
    out = tmp_path / "out"
    named = f"predictions={{new: {paths['new']}, old: {paths['old']}}}"
    assert main(["evaluate", named, "baseline=old", f"out={out}", "replicates=200"]) == 0
    report = json.loads((out / "report.json").read_text())
    [comparison] = report["comparisons"]
    assert comparison["verdict"].startswith("new is better than old: auc/click")
    by_name = {each["metric"]: each for each in comparison["differences"]}
    assert by_name["ne/click"]["delta"]["high"] < 0
    assert report["metrics"]["auc/click"]["value"] > 0.65
    assert set(report["slices"]["predictions/new"]["market"]) == {"SE", "BR"}
    beside = ["evaluate", f"predictions={paths['new']}", f"baseline={paths['old']}", "replicates=100"]
    assert main([*beside, "fail_under='auc/click>=0.65, ne/click<1'"]) == 0


def test_a_run_of_other_requests_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(truth_table({"r1": {1: 1.0}}), tmp_path / "truth.parquet")
    run = write(run_table({"user-1": [1, 2]}), tmp_path / "run.parquet")
    assert main(["evaluate", f"run={run}", f"truth={truth}", "replicates=100"]) == 2
    assert f"run={run}: none of its 1 requests is in the truth" in capsys.readouterr().err


def test_sampled_negatives_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gains = {f"r{r}": {r: 1.0} for r in range(40)}
    lists = {f"r{r}": [r, *range(1000 + r, 1099 + r)] for r in range(40)}
    truth = write(truth_table(gains), tmp_path / "truth.parquet")
    run = write(run_table(lists), tmp_path / "run.parquet")
    assert main(["evaluate", f"run={run}", f"truth={truth}", "replicates=100"]) == 0
    assert "negatives look sampled" in " ".join(capsys.readouterr().out.split())
    # the rest of a small catalogue, of which each user has seen some, is no sample
    (tmp_path / "protocol.json").write_text('{"catalogue_size": 150}')
    assert main(["evaluate", f"run={run}", f"truth={truth}", "replicates=100"]) == 0
    assert "negatives look sampled" not in " ".join(capsys.readouterr().out.split())


class FakeMlflow:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.files: list[str] = []

    def set_tracking_uri(self, uri: str) -> None:
        self.uri = uri

    def set_experiment(self, name: str) -> None:
        self.experiment = name

    def start_run(self, run_name: str | None) -> AbstractContextManager[None]:
        self.run_name = run_name
        return nullcontext()

    def log_metrics(self, metrics: dict[str, float]) -> None:
        self.metrics |= metrics

    def log_params(self, params: dict[str, str]) -> None:
        self.params = params

    def log_artifacts(self, folder: str) -> None:
        self.files = sorted(file.name for file in Path(folder).iterdir())


def test_mlflow_is_an_extra(replay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    words = ["evaluate", f"run={replay}", f"out={tmp_path / 'out'}", "replicates=100", "mlflow.uri=file:///x"]
    assert main(words) == 0
    assert (fake.uri, fake.experiment, fake.run_name) == ("file:///x", "shopreel", "feed")
    assert {"ndcg_at_20", "ndcg_at_20.low", "ndcg_at_20.high"} <= set(fake.metrics)
    assert fake.params["users"] == "60"
    assert fake.files == ["report.html", "report.json"]


def test_mlflow_missing_is_said_before_any_work(
    replay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main(["evaluate", f"run={replay}", f"out={tmp_path / 'out'}", "mlflow.uri=file:///x"]) == 2
    assert "pip install mlflow" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


#: Refuses to import what a machine that only evaluates does not have.
BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchrec", "fbgemm_gpu", "faiss", "models", "sklearn"}:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
from shopreel import main

sys.exit(main(sys.argv[1:]))
"""


def test_evaluation_runs_where_torch_is_not_installed(tmp_path: Path) -> None:
    """Runs, a baseline, predictions, an experiment and a log with propensities, through the command."""
    new = Pipeline(users=200).write(tmp_path / "new")
    old = Pipeline(users=200, ranker_noise=2.0).write(tmp_path / "old")
    random = np.random.default_rng(0)
    rows = {
        "user_id": np.arange(2000) % 200,
        "p_click": random.random(2000),
        "label_click": random.random(2000) < 0.4,
    }
    predictions = write(pa.table(rows), tmp_path / "predictions.parquet")
    served_log = write(pa.table(served(600, 0, lift=0.2)), tmp_path / "served.parquet")
    half = np.full(2000, 0.5)
    bandit = {"user_id": rows["user_id"], "video_id": np.arange(2000) % 2, "click": rows["label_click"]}
    bandit |= {"propensity": half, "target_propensity": half}
    bandit_log = write(pa.table(bandit), tmp_path / "bandit.parquet")
    found = {}
    for name, options in {
        "served": [f"run={new}", f"baseline={old}", f"predictions={predictions}", f"log={served_log}"],
        "bandit": [f"log={bandit_log}"],
    }.items():
        out = tmp_path / name
        command = [sys.executable, "-c", BLOCKED, "evaluate", *options, f"out={out}", "replicates=100"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((out / "report.json").read_text())
    assert "ndcg@20" in found["served"]["metrics"]
    assert "auc/click" in found["served"]["metrics"]
    assert found["served"]["experiment"]
    assert set(found["bandit"]["off_policy"]["estimates"]) == {"ips", "snips"}


def test_evaluation_never_imports_torch_or_models() -> None:
    heavy = ("torch", "models", "faiss", "sklearn")
    code = f"import sys, evaluation.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
