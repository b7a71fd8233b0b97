"""A bundle: one immutable directory with all that serving needs, named by the hash of its content.

``BUNDLES/CURRENT`` is a text file that holds the name of the live one. Layout of a bundle::

    manifest.json       facts, checksums, name          models.manifest
    prepared/           id maps, feature spec, encoded videos and users (no sequences)
    two_tower/          weights and shape               models.portable
    video_vectors.npy   float32[N + 1, D + K + C]       models.inference: final_vectors
    videos.arrow        the raw table, row r = catalogue row r, row 0 null
    products.arrow      the raw table, where the dataset has one
    popularity.arrow    market, video_row, count        what is shown when the model cannot answer
    index.faiss         unless search is exact          serving.index
    golden.arrow        requests and their answers      serving.golden

N videos, D dimensions.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from data.atomic import read_json, write_bytes, write_json
from data.errors import ConfigError, ContractError
from data.features import EncodedTable, FeatureSpec
from data.prepared import Prepared
from data.vocabulary import Vocabulary
from models.inference import UserEncoder
from models.manifest import MANIFEST, Manifest, is_bundle_name
from models.portable import load_two_tower
from models.ranker_inference import RankerScorer
from models.ranker_portable import FILES as RANKER_FILES
from models.ranker_portable import load_ranker

CURRENT = "CURRENT"
#: Popularity over all markets, for a market of which nothing is known.
EVERYWHERE = ""


@dataclass(frozen=True, slots=True)
class Popularity:
    """Catalogue rows by falling count, equal counts by row; both int64 and of one length."""

    video_row: NDArray[np.int64]
    count: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened and checked bundle. Arrays over the catalogue have N + 1 rows; row 0 is the unknown video.

    ``videos`` are raw rows in catalogue order (``videos.take(rows)``), row 0 all null; ``products`` as in
    the dataset, None where it has none. ``video_vectors`` is float32[N + 1, D], memory-mapped;
    ``video_train_count`` int64[N + 1] counts training impressions. ``prepared`` is ``prepared.json``: split,
    attribution and other settings that later commands take from here.
    ``popularity`` is by market, ``EVERYWHERE`` always there. ``ranker``: None where the
    tower's score decides.
    """

    path: Path
    manifest: Manifest
    prepared: dict[str, Any]
    catalogue: Vocabulary
    users: Vocabulary
    surfaces: Vocabulary
    markets: Vocabulary
    spec: FeatureSpec
    vocabularies: dict[str, Vocabulary]
    video_table: EncodedTable
    user_table: EncodedTable
    video_train_count: NDArray[np.int64]
    video_vectors: NDArray[np.float32]
    encoder: UserEncoder
    videos: pa.Table
    products: pa.Table | None
    popularity: dict[str, Popularity]
    ranker: RankerScorer | None = None

    @property
    def name(self) -> str:
        """The directory's name: ``bundle-`` and 16 hex digits."""
        return self.manifest.name

    @classmethod
    def open(cls, path: str | Path, *, device: str = "cpu") -> "Bundle":
        """Open a bundle directory, ``BUNDLES/CURRENT``, or the ``BUNDLES`` that has a ``CURRENT``.

        Checks the name, every checksum, versions, vocabularies and shapes; the first mismatch raises
        :class:`ContractError` with the mend. The golden requests are ``serving.golden``'s.
        """
        directory = locate(path)
        bundle = cls.load(directory, device=device)
        if directory.name != bundle.name:
            raise ContractError(f"{directory}: holds {bundle.name}; give the directory its name back")
        return bundle

    @classmethod
    def load(cls, directory: Path, *, device: str = "cpu") -> "Bundle":
        """As :meth:`open`, for a directory that has not got its name yet."""
        manifest = Manifest.read(directory)
        manifest.check_files(directory)
        prepared = Prepared.open(directory / "prepared")
        features = feature_hashes(prepared)
        for name in sorted(manifest.features.keys() | features.keys()):
            if manifest.features.get(name) != features.get(name):
                raise ContractError(
                    f"{directory}: hash of {name} is not the one in {MANIFEST}; publish again"
                )
        vectors = _vectors(directory / "video_vectors.npy", len(prepared.catalogue))
        return cls(
            path=directory, manifest=manifest, prepared=prepared.manifest,
            catalogue=prepared.catalogue, users=prepared.users, surfaces=prepared.surfaces,
            markets=prepared.markets, spec=prepared.spec,
            vocabularies=prepared.vocabularies, video_table=prepared.video_table,
            user_table=prepared.user_table, video_train_count=prepared.video_train_count,
            video_vectors=vectors,
            encoder=open_encoder(directory / "two_tower", prepared, vectors, device=device),
            videos=_videos(directory / "videos.arrow", prepared.catalogue),
            products=read_arrow(directory / "products.arrow") if "products.arrow" in manifest.files else None,
            popularity=_popularity(directory / "popularity.arrow", len(prepared.catalogue)),
            ranker=open_ranker(directory / "ranker", prepared, device=device)
            if "ranker" in manifest.models else None,
        )  # fmt: skip


def open_encoder(
    model: Path, prepared: Prepared, vectors: NDArray[np.float32], *, device: str = "cpu"
) -> UserEncoder:
    """The user tower of the portable ``model``; refuses one trained for another feature spec or width."""
    tower = load_two_tower(model, device)
    if read_json(model / "model.json").get("spec_hash") != prepared.spec.hash:
        raise ContractError(f"{model}/model.json: trained for another feature spec; train and publish again")
    if vectors.shape[1] != tower.shape.width:
        raise ContractError(
            f"{model}: a model of {tower.shape.width} dimensions, video_vectors.npy has {vectors.shape[1]}; "
            "publish again"
        )
    return UserEncoder(tower, prepared.user_table, vectors, device)


def open_ranker(model: Path, prepared: Prepared, *, device: str = "cpu") -> RankerScorer:
    """The ranker of the portable ``model``, with the catalogue's vectors computed."""
    parts = load_ranker(
        model, prepared.video_table, prepared.video_raw, spec_hash=prepared.spec.hash,
        user_table=prepared.user_table, device=device,
    )  # fmt: skip
    return RankerScorer(parts, prepared.video_table, prepared.user_table, device)


def feature_hashes(prepared: Prepared) -> dict[str, str]:
    """Hashes of the feature spec and of every vocabulary: what model, tables and bundle must agree on."""
    vocabularies = {
        "catalogue": prepared.catalogue, "users": prepared.users, "surfaces": prepared.surfaces,
        "markets": prepared.markets, **prepared.vocabularies,
    }  # fmt: skip
    hashes = {f"vocabularies/{name}": vocabulary.hash for name, vocabulary in vocabularies.items()}
    return {"feature_spec": prepared.spec.hash, **hashes}


def locate(path: str | Path) -> Path:
    """The bundle directory that ``path`` means: itself, or what its ``CURRENT`` names.

    ``CURRENT`` may only name a directory beside it. Raises :class:`ContractError`.
    """
    place = Path(path)
    if (place / CURRENT).is_file() and not (place / MANIFEST).is_file():
        place = place / CURRENT
    if not place.exists():
        raise ContractError(f"bundle={path}: not there; make one with shopreel publish")
    if place.is_dir():
        if not (place / MANIFEST).is_file():
            raise ContractError(f"bundle={path}: no {MANIFEST} in it; give a bundle, or BUNDLES/{CURRENT}")
        return place.absolute()
    try:
        name = place.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    if not is_bundle_name(name):
        raise ContractError(
            f"{place}: must hold the name of a bundle beside it, such as bundle-0123456789abcdef"
        )
    bundles = place.absolute().parent
    target = bundles / name
    if not target.is_dir() or target.resolve().parent != bundles.resolve():
        raise ContractError(f"{place}: points to {name}, which is not in {bundles}; publish again")
    return target


def current_name(bundles: Path) -> str | None:
    """The name in ``BUNDLES/CURRENT``, not checked further; None where there is none."""
    try:
        name = (bundles / CURRENT).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if is_bundle_name(name) else None


def move_current(bundles: Path, name: str) -> None:
    """Make ``name`` the live bundle, atomically: this is all that a deployment is."""
    if not is_bundle_name(name) or not (bundles / name / MANIFEST).is_file():
        raise ConfigError(f"{bundles}: has no bundle {name}; publish it first")
    write_bytes(bundles / CURRENT, f"{name}\n".encode())


def write_parts(
    directory: Path, *, prepared: Prepared, model: Path, vectors: NDArray[np.float32], videos: pa.Table,
    products: pa.Table | None, popularity: dict[str, Popularity], ranker: Path | None = None,
) -> None:  # fmt: skip
    """Write all but index, golden requests and manifest into the empty ``directory``.

    ``model`` is a portable two-tower directory, ``ranker`` that of a ranker where there is one; ``videos``
    any rows with a ``video_id``.
    """
    prepared.save_tables(directory / "prepared")
    manifest = read_json(directory / "prepared" / "prepared.json")
    manifest["dataset"].pop("path", None)  # where it lay is nobody's business and would change the name
    write_json(directory / "prepared" / "prepared.json", manifest)
    (directory / "two_tower").mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copyfile(model / name, directory / "two_tower" / name)
    if ranker is not None:
        (directory / "ranker").mkdir()
        for name in RANKER_FILES:
            shutil.copyfile(ranker / name, directory / "ranker" / name)
    np.save(directory / "video_vectors.npy", np.ascontiguousarray(vectors, np.float32), allow_pickle=False)
    write_arrow(directory / "videos.arrow", in_catalogue_order(videos, prepared.catalogue))
    if products is not None:
        write_arrow(directory / "products.arrow", products)
    counted = {
        "market": pa.array(np.repeat(list(popularity), [len(top.count) for top in popularity.values()])),
        "video_row": pa.array(np.concatenate([top.video_row for top in popularity.values()])),
        "count": pa.array(np.concatenate([top.count for top in popularity.values()])),
    }
    write_arrow(directory / "popularity.arrow", pa.table(counted))


def store(draft: Path, bundles: Path) -> Path:
    """Move the finished ``draft`` to its name under ``bundles``; an equal bundle that is whole stays."""
    manifest = Manifest.read(draft)
    target = bundles / manifest.name
    if target.exists():
        try:
            Manifest.read(target).check_files(target)
        except ContractError:
            broken = draft.with_name(f"{draft.name}.broken")
            target.rename(broken)
            draft.rename(target)
            shutil.rmtree(broken)
    else:
        draft.rename(target)
    return target


def in_catalogue_order(videos: pa.Table, catalogue: Vocabulary) -> pa.Table:
    """Rows of ``videos`` at their catalogue rows: N + 1 of them, row 0 and videos without a row null.

    Fixed-size vectors are left out: they live on in the encoded features. ``video_id`` is always there.
    """
    place = np.full(len(catalogue), -1, np.int64)
    place[catalogue.rows(videos["video_id"])] = np.arange(videos.num_rows)
    place[0] = -1
    kept = [
        name
        for name in videos.column_names
        if name != "video_id" and not pa.types.is_fixed_size_list(videos.schema.field(name).type)
    ]
    index = pa.array(np.maximum(place, 0), mask=place < 0)
    ordered = videos.select(kept).take(index) if kept else None
    ids = catalogue.ids(np.arange(len(catalogue)))
    columns = {"video_id": ids} | ({name: ordered[name] for name in kept} if ordered is not None else {})
    return pa.table(columns)


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write an uncompressed Arrow file: several processes map it and share its pages."""
    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_arrow(path: Path) -> pa.Table:
    """Map what :func:`write_arrow` wrote; a damaged file raises :class:`ContractError`."""
    try:
        return ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise ContractError(f"{path}: cannot be read ({str(error).splitlines()[0]}); publish again") from None


def _vectors(path: Path, rows: int) -> NDArray[np.float32]:
    try:
        # copy-on-write: torch shares writable memory only, and nobody writes
        vectors: NDArray[np.float32] = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ContractError(f"{path}: cannot be read ({str(error).splitlines()[0]}); publish again") from None
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != rows:
        raise ContractError(
            f"{path}: {vectors.dtype}{list(vectors.shape)}, expected float32[{rows}, D]; publish again"
        )
    return vectors


def _videos(path: Path, catalogue: Vocabulary) -> pa.Table:
    videos = read_arrow(path)
    if videos.num_rows != len(catalogue):
        raise ContractError(
            f"{path}: {videos.num_rows} rows, the catalogue has {len(catalogue)}; publish again"
        )
    return videos


def _popularity(path: Path, rows: int) -> dict[str, Popularity]:
    table = read_arrow(path)
    market, row, count = (table[name].to_numpy() for name in ("market", "video_row", "count"))
    if len(row) and (row.min() < 1 or row.max() >= rows):
        raise ContractError(f"{path}: rows outside the catalogue; publish again")
    names = dict.fromkeys([EVERYWHERE, *market.tolist()])
    return {name: Popularity(row[market == name], count[market == name]) for name in names}
