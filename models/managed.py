"""Tables whose rows belong to one id each, for id spaces that never stop growing.

An id comes as its *key*, a positive hash of 63 bits; which keys have a row is state of the model, stored with
its weights, so that a server maps ids exactly as training did. A key without a row reads row 0, as every
unknown value does. Who gets a row, and who loses it, is decided by ``training.admission``.

Axes: L looked-up keys, K rows that ids can have (1 … K).
"""

import torch
from torch import Tensor, nn

from data.features import key_name
from models.embeddings import UNKNOWN_ROW, FeatureBatch

#: Stands where a row has no id yet.
FREE = torch.iinfo(torch.int64).max


class ManagedRows(nn.Module):
    """Which row of a table each key has: ``key_K`` ascends, free ones last, and ``row_K`` are their rows."""

    key_K: Tensor
    row_K: Tensor

    def __init__(self, rows: int) -> None:
        """``rows`` of the table, row 0 included."""
        super().__init__()
        self.register_buffer("key_K", torch.full((rows - 1,), FREE))
        self.register_buffer("row_K", torch.arange(1, rows))

    def forward(self, key_L: Tensor) -> Tensor:
        """Row of each key, 0 for one without: int64 ``[L]``."""
        place_L = torch.searchsorted(self.key_K, key_L).clamp_max(len(self.key_K) - 1)
        return torch.where(self.key_K[place_L] == key_L, self.row_K[place_L], UNKNOWN_ROW)


class ManagedFeatures(nn.Module):
    """The managed features of one side; the others pass as they are."""

    def __init__(self, rows: dict[str, int]) -> None:
        """``rows`` of the table of each managed feature."""
        super().__init__()
        self.maps = nn.ModuleDict({name: ManagedRows(count) for name, count in rows.items()})

    def forward(self, features: FeatureBatch) -> FeatureBatch:
        """The same features with rows in place of keys."""
        if not self.maps:
            return features
        bags = dict(features.bags)
        for name, rows in self.maps.items():
            key_L, offsets = features.bags[key_name(name)]
            bags[name] = (rows(key_L), offsets)
        return FeatureBatch(bags, features.dense, features.size)


def managed_rows(model: nn.Module) -> dict[str, tuple[str, ManagedRows]]:
    """Of every managed feature in a model: the portable name of its table, and its map."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, ManagedFeatures):
            side = path.rpartition(".")[0]
            for name, rows in module.maps.items():
                assert isinstance(rows, ManagedRows)
                found[name] = (f"{side}.tables.weights.{name}", rows)
    return found
