"""``shopreel import`` as a user meets it: exit codes, one-line refusals, nothing half-written."""

import gzip
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.contract import open_dataset
from shopreel import main
from tests.data.upstream import UPSTREAM, kuairand, otto, recbole, sequence


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, source: str, raw: Path, *more: str) -> str:
    """The one line that the command prints; nothing may be left of ``out``."""
    out = tmp_path / "out"
    before = sorted(tmp_path.iterdir())
    assert main(["import", f"source={source}", f"raw={raw}", f"out={out}", *more]) == 2
    assert sorted(tmp_path.iterdir()) == before
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("import: ")]
    assert len(lines) == 1
    return lines[0]


def test_the_report_and_the_next_command(
    capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path
) -> None:
    out = tmp_path / "my data"
    assert main(["import", "source=kuairand", f"raw={kuairand(raw)}", f"out='{out}'"]) == 0
    printed = capsys.readouterr().out
    assert "2 exact" in printed
    assert "2 time out of range" in printed
    assert (
        f"next: shopreel prepare dataset='{out}' out='{out}-prepared' "
        "split.validation=2022-04-27 split.test=2022-04-28 split.end=2022-04-29" in printed
    )
    assert open_dataset(out).info.tasks[-1] == "watch"
    assert sorted(file.name for file in out.iterdir()) == [
        "dataset.json",
        "events",
        "users.parquet",
        "videos.parquet",
    ]
    assert not list(tmp_path.glob(".*"))


def test_a_long_log_is_cut_into_files_in_its_order(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kuairand(raw)
    assert main(["import", "source=kuairand", f"raw={folder}", f"out={tmp_path / 'one'}"]) == 0
    monkeypatch.setattr("data.readers.duckdb_backend.PART_ROWS", 2)
    assert main(["import", "source=kuairand", f"raw={folder}", f"out={tmp_path / 'cut'}"]) == 0
    one, cut = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "cut")
    rows = one.read("events")
    assert [file.name for file in cut.files("events")] == [
        f"part-{number:05d}.parquet" for number in range(-(-rows.num_rows // 2))
    ]
    assert cut.read("events").equals(rows)


def test_a_given_split_needs_no_dates(capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path) -> None:
    assert main(["import", "source=sequence", f"raw={sequence(raw)}", f"out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"out={tmp_path / 'out'}-prepared")


@pytest.mark.parametrize("source", sorted({source for source, _ in UPSTREAM.values()}))
def test_a_folder_without_the_files_names_those_looked_for(
    source: str, capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path
) -> None:
    (raw / "something.else").write_text("x")
    message = refused(capsys, tmp_path, source, raw)
    assert f"raw={raw}" in message
    assert "found n" in message


def test_a_missing_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nowhere: no such file or directory" in refused(capsys, tmp_path, "otto", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("8,99,20220428", "line 3: Expected Number of Columns: 19 Found: 3 in '8,99,20220428'"),
        ("eight,99" + ",0" * 17, "line 3: Error when converting column \"user_id\""),
        ("8,99" + ",0" * 18, "line 3: Expected Number of Columns: 19 Found: 20"),
        ('8,"99' + ",0" * 17, "line 3: Value with unterminated quote found"),
        ("8,99" + ",0" * 16 + ",\udcff", 'line 3: Error when converting column "tab"'),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named(
    line: str, expected: str, capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path
) -> None:
    folder = kuairand(raw)
    log = folder / "data" / "log_random_4_22_to_5_08_pure.csv"
    log.write_bytes(log.read_bytes() + os.fsencode(line + "\n"))
    message = refused(capsys, tmp_path, "kuairand", folder)
    assert f"{log}, {expected}" in message
    assert message.endswith("correct or remove that line")


def test_a_malformed_json_line_is_named(
    capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path
) -> None:
    folder = otto(raw)
    log = folder / "train.jsonl"
    first, *rest = log.read_text().splitlines(keepends=True)
    log.write_text(first + '{"session": 9, "events": [}\n' + "".join(rest))
    message = refused(capsys, tmp_path, "otto", folder)
    assert f"{log}, line 2: " in message


def test_a_cut_gzip_file_is_named(capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path) -> None:
    folder = kuairand(raw)
    log = folder / "data" / "log_history_4_09_to_4_24_pure.csv.gz"
    many = gzip.decompress(log.read_bytes()).splitlines(keepends=True)
    whole = gzip.compress(many[0] + many[1] * 50_000 + os.urandom(20_000).hex().encode())
    log.write_bytes(whole[: len(whole) // 2])
    message = refused(capsys, tmp_path, "kuairand", folder)
    assert f"{log}: damaged or cut short" in message
    assert message.endswith("copy it again")


def test_a_missing_column_is_named(capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path) -> None:
    folder = kuairand(raw)
    log = folder / "data" / "log_random_4_22_to_5_08_pure.csv"
    log.write_text(log.read_text().replace("time_ms", "when"))
    assert f"{log}, column time_ms: missing (the header has user_id, video_id" in refused(
        capsys, tmp_path, "kuairand", folder
    )


def test_an_empty_file_has_no_header(capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path) -> None:
    folder = kuairand(raw)
    (folder / "data" / "log_random_4_22_to_5_08_pure.csv").write_text("")
    assert "line 1: the file has no header" in refused(capsys, tmp_path, "kuairand", folder)


def test_a_log_without_usable_rows(capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path) -> None:
    (raw / "UserBehavior.csv").write_text("1,2,3,pv,1\n1,2,3,pv,2122867355\n")
    message = refused(capsys, tmp_path, "taobao", raw)
    assert "no event is left (2 outside the log's days" in message


def test_conflicting_rows_of_a_video_are_refused_by_the_contract(
    capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path
) -> None:
    folder = recbole(raw)
    with (folder / "shop.item").open("a") as videos:
        videos.write("007\tAnother title\t\t\t\t\n")
    message = refused(capsys, tmp_path, "recbole", folder)
    assert f"{tmp_path / 'out'}/videos.parquet, column video_id, row 1 (from 0): duplicate id 007" in message


def test_two_logs_need_a_choice(capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path) -> None:
    sequence(raw)
    (raw / "Toys.txt").write_text("1 2 3\n")
    message = refused(capsys, tmp_path, "sequence", raw)
    assert f"holds several texts (Beauty.txt, Toys.txt); name one, as raw={raw / 'Beauty.txt'}" in message


def test_variants_are_not_mixed(capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path) -> None:
    folder = kuairand(raw)
    log = folder / "data" / "log_random_4_22_to_5_08_pure.csv"
    log.rename(log.with_name("log_random_4_22_to_5_08_1k.csv"))
    assert "holds logs of 1k and pure; keep one variant" in refused(capsys, tmp_path, "kuairand", folder)


def test_an_existing_dataset_stays_unless_overwritten(
    capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["import", "source=sequence", f"raw={sequence(raw)}", f"out={out}"]
    assert main(arguments) == 0
    first = (out / "dataset.json").read_bytes()
    assert main(arguments) == 2
    assert "add overwrite=true" in capsys.readouterr().err
    (raw / "Beauty.txt").write_text("1 2 x\n")
    assert main([*arguments, "overwrite=true"]) == 0
    assert (out / "dataset.json").read_bytes() != first
    ids = pq.read_schema(out / "events" / "part-00000.parquet")
    assert str(ids.field("video_id").type) == "string"
    assert str(ids.field("user_id").type) == "int64"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("source=netflix", "netflix"),
        ("validation_share=1.0", "validation_share=1.0 is not in [0, 1)"),
        ("memory_limit_gb=0", "memory_limit_gb=0.0 is not above 0"),
        ("threads=-1", "threads=-1 is negative"),
        ("engin=spark", "unknown key 'engin'; did you mean engine?"),
    ],
)
def test_bad_overrides(
    override: str, expected: str, capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path
) -> None:
    assert expected in refused(capsys, tmp_path, "sequence", sequence(raw), override)
