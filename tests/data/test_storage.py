"""Datasets and prepared data under URLs: equal to local ones, whole or not there, refused in one line."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import shopreel
from data.contract import open_dataset
from data.errors import ConfigError, ContractError
from data.prepared import Prepared
from data.sequences import Sequences
from data.storage import MANIFEST, RemoteFolder, staged_output
from shopreel import main
from tests.data.logs import crowded_log, prepare, write_dataset
from tests.data.upstream import kuairand

SETTINGS = ("max_unknown_share=1", "split.end=2026-01-04", "shard_steps=100", "memory_limit_gb=0.5")


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    events, actions = crowded_log(5, users=60, span_ms=72, unit_ms=3_600_000)
    return write_dataset(
        tmp_path / "d", events, actions=actions, files=3, videos=[{"video_id": 10}, {"video_id": 20}]
    )


def test_prepared_through_urls_is_what_it_is_on_this_machine(
    memory: MemoryFileSystem, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.prepare.BLOCK_RECORDS", 100)  # so that there are several shards
    # as another system would leave it: partitions of any depth, no manifest, a half-written part
    memory.put(str(dataset), "/bucket/d", recursive=True)
    memory.mv("/bucket/d/events/part-1.parquet", "/bucket/d/events/day=2026-01-02/part.parquet")
    memory.pipe_file("/bucket/d/events/_temporary/part-9.parquet", b"not yet")
    local = prepare(dataset, tmp_path / "p", *SETTINGS)
    remote = prepare("memory://bucket/d", "memory://bucket/p", *SETTINGS)  # type: ignore[arg-type]
    assert len(remote.shards) > 2
    assert [part["rows"] for part in remote.manifest["shards"]] == [
        part["rows"] for part in local.manifest["shards"]
    ]
    assert remote.catalogue == local.catalogue
    assert np.array_equal(remote.video_train_count, local.video_train_count)
    for one, other in zip(local.shards, remote.shards, strict=True):
        mine, theirs = Sequences.read(one), Sequences.read(other)
        assert all(np.array_equal(mine.steps[name], theirs.steps[name]) for name in mine.steps)
        assert all(np.array_equal(mine.examples[name], theirs.examples[name]) for name in mine.examples)
    assert open_dataset("memory://bucket/d", max_unknown_share=1).read("videos").num_rows == 2


def test_an_import_to_a_url_and_what_prepare_makes_of_it(memory: MemoryFileSystem, tmp_path: Path) -> None:
    raw = kuairand(tmp_path)
    memory.put(str(raw), "/logs/raw", recursive=True)
    assert main(["import", "source=kuairand", f"raw={raw}", f"out={tmp_path / 'd'}"]) == 0
    assert main(["import", "source=kuairand", "raw=memory://logs/raw", "out=memory://logs/d"]) == 0
    local, remote = open_dataset(tmp_path / "d"), open_dataset("memory://logs/d")
    assert remote.info == local.info
    for table in ("events", "videos", "users"):
        assert remote.read(table).equals(local.read(table))
    days = ("split.validation=2022-04-27", "split.test=2022-04-28", "split.end=2022-04-29")
    one = prepare(tmp_path / "d", tmp_path / "p", *days)
    other = prepare("memory://logs/d", "memory://logs/p", *days)  # type: ignore[arg-type]
    assert other.hash == one.hash  # fingerprint of the files, split, features, vocabularies, shards


def test_readers_see_the_old_content_or_the_new_never_a_part(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(value: str, *, overwrite: bool) -> None:
        with staged_output("memory://bucket/out", overwrite=overwrite) as staged:
            (staged / "deep").mkdir()
            for name in ("a", "deep/b", "deep/c"):
                (staged / name).write_text(value)

    def seen() -> set[str]:
        return {file.read_text() for file in RemoteFolder.open("memory://bucket/out").files.values()}

    during: list[set[str]] = []
    put = MemoryFileSystem.put_file

    def watched(self: MemoryFileSystem, *arguments: object, **options: object) -> None:
        during.append(seen())
        put(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", watched)
    write("old", overwrite=False)
    assert during == [set()] * 3
    during.clear()
    write("new", overwrite=True)
    assert during == [{"old"}] * 3
    assert seen() == {"new"}
    left = {path.split("/")[3] for path in memory.find("/bucket/out")}
    assert len(left) == 2, "the manifest and one folder: what was replaced is gone"

    def broken(self: MemoryFileSystem, source: str, target: str, **options: object) -> None:
        if target.endswith("deep/c"):
            raise OSError("the connection was reset")
        put(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", broken)
    with pytest.raises(OSError, match="reset"):
        write("newer", overwrite=True)
    assert seen() == {"new"}
    assert {path.split("/")[3] for path in memory.find("/bucket/out")} == left


def test_a_killed_first_write_is_not_there_and_not_in_the_way(
    memory: MemoryFileSystem, dataset: Path
) -> None:
    memory.put(str(dataset), "/bucket/d/write-0123456789abcdef", recursive=True)
    with pytest.raises(ContractError, match=r"dataset=memory://bucket/d: no such directory"):
        open_dataset("memory://bucket/d")
    with staged_output("memory://bucket/d") as staged:
        (staged / "dataset.json").write_text("{}")
    assert list(RemoteFolder.open("memory://bucket/d").files) == ["dataset.json"]


def test_a_file_that_the_manifest_names_and_the_store_lacks(memory: MemoryFileSystem) -> None:
    with staged_output("memory://bucket/out") as staged:
        (staged / "a").write_text("content")
    (path,) = (path for path in memory.find("/bucket/out") if not path.endswith(MANIFEST))
    memory.pipe_file(path, b"cut")
    with pytest.raises(ContractError, match=r"a, which _manifest.json names, has 3 bytes, not 7"):
        RemoteFolder.open("memory://bucket/out")
    memory.rm(path)
    with pytest.raises(ContractError, match=r"a, which _manifest.json names, is missing"):
        RemoteFolder.open("memory://bucket/out")


def test_what_may_not_be_replaced(memory: MemoryFileSystem) -> None:
    memory.pipe_file("/bucket/foreign/notes.txt", b"mine")
    with pytest.raises(ConfigError, match=r"holds notes.txt and no _manifest.json"), _writing("foreign"):
        pass
    with _writing("ours"):
        pass
    with pytest.raises(ConfigError, match="add overwrite=true"), _writing("ours"):
        pass


def _writing(name: str):
    return staged_output(f"memory://bucket/{name}")


def test_a_missing_package_and_an_unknown_protocol_are_named(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.get_filesystem_class", missing)
    assert main(["prepare", "dataset=s3://bucket/d", "out=s3://bucket/p"]) == 2
    error = capsys.readouterr().err
    assert "s3://bucket/p: needs a package for s3:// (Install s3fs to access S3)" in error
    assert error.endswith("python -m pip install s3fs\n")
    monkeypatch.undo()
    assert main(["prepare", "dataset=nowhere://d", "out=memory://bucket/p"]) == 2
    assert "nowhere://d: Protocol not known: nowhere" in capsys.readouterr().err


def test_commands_that_write_here_only_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "model=two_tower", "prepared=P", "out=memory://bucket/run"]) == 2
    assert "out=memory://bucket/run: must be a path of this machine" in capsys.readouterr().err


def test_a_file_url_is_a_local_path(dataset: Path) -> None:
    assert open_dataset(f"file://{dataset}", max_unknown_share=1).path == dataset


def test_a_contract_column_in_a_directory_name_alone_is_refused(dataset: Path) -> None:
    (dataset / "events" / "market=de").mkdir()
    (dataset / "events" / "part-1.parquet").rename(dataset / "events" / "market=de" / "part-1.parquet")
    with pytest.raises(ContractError, match=r"events/market=de/part-1.parquet, column market: stands in"):
        open_dataset(dataset, max_unknown_share=1)


def test_damage_in_a_remote_file_names_it(memory: MemoryFileSystem, dataset: Path) -> None:
    table = pq.read_table(dataset / "events" / "part-0.parquet")
    pq.write_table(table.drop_columns(["video_id"]), dataset / "events" / "part-0.parquet")
    memory.put(str(dataset), "/bucket/d", recursive=True)
    with pytest.raises(ContractError, match=r"memory:///bucket/d/events/part-0.parquet, column video_id"):
        open_dataset("memory://bucket/d")
    with pytest.raises(ContractError, match=r"prepared=memory://bucket/d: no prepared.json there"):
        Prepared.open("memory://bucket/d")


def test_simulated_markets_go_to_urls_too(memory: MemoryFileSystem) -> None:
    shopreel.run_command(
        "simulate", ["out=memory://bucket/m", "users=20", "videos=50", "products=30", "days=4", "seed=1"]
    )
    assert open_dataset("memory://bucket/m").scan("events").count_rows() > 0
