"""A bundle: one immutable directory with all that serving needs, named by the hash of its content."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data.features import EncodedTable, FeatureSpec
from data.vocabulary import Vocabulary
from models.inference import UserEncoder
from models.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened and checked bundle. ``N`` videos: arrays over the catalogue have N + 1 rows, row 0 unknown."""

    path: Path
    manifest: Manifest
    catalogue: Vocabulary
    users: Vocabulary
    surfaces: Vocabulary
    markets: Vocabulary
    spec: FeatureSpec
    vocabularies: dict[str, Vocabulary]
    video_table: EncodedTable
    user_table: EncodedTable
    video_vectors: "np.ndarray"  # float32[N + 1, D], memory-mapped
    encoder: UserEncoder
    videos: pa.Table  # raw, N + 1 rows in catalogue row order, row 0 all null
    products: pa.Table | None
    popularity: "dict[str, Popularity]"  # by market; "" over all markets

    @property
    def name(self) -> str:
        """The directory name: ``bundle-`` and 16 hex digits of the content hash."""
        return self.manifest.name

    @classmethod
    def open(cls, path: str | Path, *, device: str = "cpu") -> "Bundle":
        """Open and check a bundle directory, ``BUNDLES/CURRENT``, or ``BUNDLES``. Raises ContractError."""
        raise NotImplementedError
