"""The HTML report: whole, self-contained, hostile names escaped, every section where its tables are."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from evaluation.svg import short, ticks
from shopreel import main
from tests.evaluation.market import Pipeline
from tests.evaluation.test_experiment import served
from tests.evaluation.worlds import run_table, truth_table, write

VOID = {"meta", "br"}


class Checker(HTMLParser):
    """Every tag is closed in order; what would load something is collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in {"script", "link", "img", "iframe", "object", "embed"}:
            self.loads.append(tag)
        self.loads += [
            f"{name}={value}" for name, value in attrs if name in {"src", "href", "onclick", "onload"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: Path) -> tuple[str, Checker]:
    text = page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert checker.loads == []
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert 'name="viewport"' in text
    return text, checker


def test_everything_at_once(tmp_path: Path) -> None:
    new = Pipeline(users=300, index_recall=0.9, bad_market="BR").write(tmp_path / "new")
    old = Pipeline(users=300, ranker_noise=2.0).write(tmp_path / "old")
    log = write(pa.table(served(600, 0, lift=0.2)), tmp_path / "log.parquet")
    out = tmp_path / "out"
    options = [f"run={new}", f"baseline={old}", f"log={log}", f"out={out}", "replicates=100"]
    assert main(["evaluate", *options]) == 0
    text, checker = checked(out / "report.html")
    for heading in ("Ranking", "Is it real?", "For whom?", "Experiment", "Protocol"):
        assert f"<h2>{heading}</h2>" in text
    assert checker.tags.count("svg") >= 5
    assert "market = BR" in text
    assert sorted(file.name for file in out.iterdir()) == ["report.html", "report.json"]


def test_names_from_the_data_cannot_inject(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    gains = {f"r{r}": {r: 1.0} for r in range(60)}
    lists = {f"r{r}": [r, 900] if r % 3 else [900, r] for r in range(60)}
    truth = truth_table(gains, market=pa.array([evil if r % 2 else "[red]x[/red]" for r in range(60)]))
    truth_path = write(truth, tmp_path / "truth.parquet")
    stage = pa.array([evil] * 120)
    run_path = write(run_table(lists, stage=stage), tmp_path / "run.parquet")
    (tmp_path / "protocol.json").write_text(json.dumps({"gain": evil, "split": {"name": evil}}))
    out = tmp_path / "out"
    assert main(["evaluate", f"run={run_path}", f"truth={truth_path}", f"out={out}", "replicates=100"]) == 0
    text, _ = checked(out / "report.html")
    assert "&lt;script&gt;alert(1)" in text
    assert evil in json.loads((out / "report.json").read_text())["slices"]["run"]["market"]


def test_report_json_has_no_nan(tmp_path: Path) -> None:
    rows = {"user_id": [1, 2], "p_click": [0.2, 0.3], "label_click": [True, True]}
    path = write(pa.table(rows), tmp_path / "p.parquet")
    out = tmp_path / "out"
    assert main(["evaluate", f"predictions={path}", f"out={out}", "replicates=100"]) == 0
    report = json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["metrics"]["auc/click"]["value"] is None
    assert "label_click is the same in all 2 known rows" in report["warnings"][0]
    checked(out / "report.html")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 0.27, [0.15, 0.2, 0.25]),
        (-3, 7, [-2, 0, 2, 4, 6]),
        (2, 2, [2]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_short_numbers() -> None:
    assert [short(value) for value in (0.25, 1500, 2e6, 0, -3e9)] == ["0.25", "1.5k", "2M", "0", "-3G"]
