"""A bundle is whole, of this release and its own, or it is refused in one line that says what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ConfigError, ContractError
from data.vocabulary import Vocabulary
from models.bundle import (
    EVERYWHERE,
    Bundle,
    in_catalogue_order,
    locate,
    move_current,
    read_arrow,
    store,
    write_arrow,
)
from models.inference import embed_catalogue
from models.manifest import MANIFEST, Manifest
from models.portable import load_two_tower
from serving.golden import GOLDEN_FILE, check_golden
from serving.pipeline import Pipeline
from tests.serving.conftest import Published


@pytest.fixture
def bundles(published: Published, tmp_path: Path) -> Path:
    """A copy of the folder of bundles, to be damaged."""
    shutil.copytree(published.bundles, tmp_path / "bundles")
    return tmp_path / "bundles"


@pytest.fixture
def live(bundles: Path) -> Path:
    return locate(bundles)


def seal_again(directory: Path, **changed) -> Path:
    """Write a manifest that fits the files as they are now, and give the directory the name it then has."""
    raw = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).unlink()
    kept = {key: raw[key] for key in raw if key not in ("bundle_version", "name", "files", "seal")}
    manifest = Manifest.of(directory, **(kept | changed))
    manifest.write(directory)
    return directory.rename(directory.with_name(manifest.name))


def refused(path: Path) -> str:
    with pytest.raises(ContractError) as error:
        Bundle.open(path)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_lies_in_a_bundle_belongs_together(published: Published):
    bundle = Bundle.open(published.bundles / "CURRENT")
    assert bundle.name == published.live == bundle.path.name
    size = len(bundle.catalogue)
    assert bundle.manifest.catalogue["videos"] == size - 1
    for table in (bundle.videos["video_id"], bundle.video_vectors, bundle.video_train_count):
        assert len(table) == size
    assert bundle.video_table.num_rows == size
    assert bundle.videos["video_id"].to_pylist() == bundle.catalogue.ids(np.arange(size)).to_pylist()
    model = load_two_tower(bundle.path / "two_tower")
    learnt = bundle.video_vectors[:, : model.shape.learnt]
    np.testing.assert_array_equal(learnt, embed_catalogue(model, bundle.video_table))
    assert bundle.products is not None
    top = bundle.popularity[EVERYWHERE]
    assert (np.diff(top.count) <= 0).all()
    assert top.video_row.min() > 0
    markets = [popularity for market, popularity in bundle.popularity.items() if market != EVERYWHERE]
    assert sum(popularity.count.sum() for popularity in markets) <= top.count.sum()
    assert str(Path.home()) not in (bundle.path / "prepared" / "prepared.json").read_text()
    assert "path" not in bundle.prepared["dataset"]


def test_a_bundle_opens_by_every_name_it_has(bundles: Path, live: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(bundles.parent)
    for path in (bundles, bundles / "CURRENT", live, Path("bundles/CURRENT"), str(live)):
        assert Bundle.open(path).name == live.name


def test_any_flipped_byte_of_any_file_is_refused(bundles: Path, live: Path):
    rng = np.random.default_rng(0)
    files = [path for path in sorted(live.rglob("*")) if path.is_file()]
    assert len(files) > 10
    for file in files:
        whole = file.read_bytes()
        for place in {0, len(whole) - 1, int(rng.integers(len(whole)))}:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            message = refused(bundles)
            assert file.name in message
            assert "publish again" in message
        file.write_bytes(whole)
    assert Bundle.open(bundles).name == live.name


def test_a_missing_or_cut_file_is_refused(bundles: Path, live: Path):
    whole = (live / "video_vectors.npy").read_bytes()
    (live / "video_vectors.npy").write_bytes(whole[:-8])
    assert "video_vectors.npy: differs from its checksum" in refused(bundles)
    (live / "video_vectors.npy").unlink()
    assert "video_vectors.npy: missing" in refused(bundles)
    (live / MANIFEST).unlink()
    assert "no manifest.json" in refused(live)


def test_another_release_is_refused(bundles: Path, live: Path):
    raw = json.loads((live / MANIFEST).read_text())
    (live / MANIFEST).write_text(json.dumps(raw | {"bundle_version": 99}))
    assert "bundle_version is 99, this release reads" in refused(bundles)
    (live / MANIFEST).write_text(json.dumps({key: raw[key] for key in raw if key != "split"}))
    assert "not a bundle manifest" in refused(bundles)
    (live / MANIFEST).write_text("[]")
    assert "bundle_version is None" in refused(bundles)


def test_another_model_version_is_refused(live: Path):
    model = live / "two_tower" / "model.json"
    record = json.loads(model.read_text())
    model.write_text(json.dumps(record | {"format_version": 99}))
    assert "format 99" in refused(seal_again(live))


def test_a_model_of_other_features_is_refused(live: Path):
    model = live / "two_tower" / "model.json"
    record = json.loads(model.read_text())
    model.write_text(json.dumps(record | {"spec_hash": "0" * 64}))
    assert "another feature spec" in refused(seal_again(live))


def test_vocabularies_of_another_bundle_are_refused(live: Path):
    features = json.loads((live / MANIFEST).read_text())["features"]
    live = seal_again(live, features=features | {"vocabularies/catalogue": "0" * 64})
    assert "hash of vocabularies/catalogue is not the one" in refused(live)


def test_vectors_that_do_not_fit_are_refused(live: Path):
    vectors = np.load(live / "video_vectors.npy")
    np.save(live / "video_vectors.npy", vectors[:, 1:])
    live = seal_again(live)
    assert "dimensions" in refused(live)
    np.save(live / "video_vectors.npy", vectors[1:])
    live = seal_again(live)
    assert "expected float32" in refused(live)
    np.save(live / "video_vectors.npy", np.array([{}]), allow_pickle=True)
    assert "cannot be read" in refused(seal_again(live))


def test_a_bundle_under_another_name_is_refused(live: Path):
    assert "give the directory its name back" in refused(live.rename(live.with_name("mine")))


@pytest.mark.parametrize(
    "text",
    ["", "bundle-0123456789abcdef", "../bundles/LIVE", "/etc", "LIVE/prepared", ".", "bundle-\n", "x" * 999],
)
def test_current_names_a_bundle_beside_it_and_nothing_else(bundles: Path, live: Path, text: str):
    (bundles / "CURRENT").write_text(text.replace("LIVE", live.name))
    assert "CURRENT" in refused(bundles)


def test_current_of_bytes_is_refused(bundles: Path):
    (bundles / "CURRENT").write_bytes(b"\xff\xfe\x00")
    assert "must hold the name of a bundle" in refused(bundles)


def test_current_does_not_follow_a_link_out_of_its_folder(bundles: Path, live: Path, tmp_path: Path):
    live.rename(tmp_path / live.name)
    live.symlink_to(tmp_path / live.name)
    assert "which is not in" in refused(bundles)


def test_nothing_there(tmp_path: Path):
    assert "make one with shopreel publish" in refused(tmp_path / "nothing")
    assert "no manifest.json" in refused(tmp_path)


def test_current_moves_only_to_what_is_there(bundles: Path, live: Path, published: Published):
    move_current(bundles, published.other)
    assert Bundle.open(bundles).name == published.other
    for name in ("bundle-0123456789abcdef", "../" + live.name, ""):
        with pytest.raises(ConfigError, match="publish it first"):
            move_current(bundles, name)
    assert Bundle.open(bundles).name == published.other


def test_golden_requests_notice_another_answer(bundles: Path, live: Path, monkeypatch: pytest.MonkeyPatch):
    pipeline = Pipeline(Bundle.open(live))
    assert check_golden(pipeline) == 16
    encode = pipeline.bundle.encoder.encode
    monkeypatch.setattr(pipeline.bundle.encoder, "encode", lambda requests: encode(requests) * 1.01)
    with pytest.raises(ContractError, match=r"scores of request \d+ are off by"):
        check_golden(pipeline)
    monkeypatch.setattr(pipeline.bundle.encoder, "encode", lambda requests: encode(requests) * np.nan)
    with pytest.raises(ContractError, match="degraded by user_encoder"):
        check_golden(pipeline)


def test_golden_requests_of_another_kind_are_refused(live: Path):
    write_arrow(live / GOLDEN_FILE, pa.table({"user_row": [1]}))
    with pytest.raises(ContractError, match="not a table of golden requests"):
        check_golden(Pipeline(Bundle.open(seal_again(live))))


def test_storing_an_equal_bundle_keeps_the_first_and_mends_a_broken_one(
    bundles: Path, live: Path, tmp_path: Path
):
    first, second = (Path(shutil.copytree(live, tmp_path / name)) for name in ("first", "second"))
    stamp = (live / MANIFEST).stat().st_ino
    assert store(first, bundles) == live
    assert (live / MANIFEST).stat().st_ino == stamp
    (live / "videos.arrow").write_bytes(b"broken")
    assert store(second, bundles) == live
    assert Bundle.open(live).name == live.name


@given(st.lists(st.integers(0, 40), unique=True), st.lists(st.integers(0, 40), unique=True))
def test_videos_stand_at_their_catalogue_rows(listed, known):
    catalogue = Vocabulary.build(pa.array(known, pa.int64()))
    videos = pa.table(
        {
            "title": pa.array([f"t{video}" for video in listed], pa.string()),
            "video_id": pa.array(listed, pa.int64()),
            "content_embedding": pa.array([[0.0, 1.0]] * len(listed), pa.list_(pa.float32(), 2)),
        }
    )
    ordered = in_catalogue_order(videos, catalogue)
    assert ordered.column_names == ["video_id", "title"]
    titles = [f"t{video}" if video in listed else None for video in sorted(known)]
    assert ordered.to_pylist() == [
        {"video_id": video, "title": title}
        for video, title in zip([None, *sorted(known)], [None, *titles], strict=True)
    ]


def test_a_damaged_arrow_file_is_refused(tmp_path: Path):
    (tmp_path / "x.arrow").write_bytes(b"ARROW1" * 9)
    with pytest.raises(ContractError, match="cannot be read"):
        read_arrow(tmp_path / "x.arrow")
