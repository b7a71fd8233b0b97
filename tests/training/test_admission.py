"""Managed tables: who has a row, whose row is as new, what is saved; serving maps as training did."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from data.encoding import encode
from data.features import BagFeature, Encoder, FeatureSpec, Side, key_name
from data.prepared import Prepared
from models.embeddings import FeatureBatch, PlainTables
from models.inference import embed_catalogue
from models.managed import ManagedFeatures, ManagedRows
from models.portable import load_two_tower
from tests.training.running import records, train
from tests.training.worlds import checkerboard
from training.admission import Admission, Eviction, RowKeeper, Sightings
from training.placement import OneProcess, Task, UpdateRule


def keeper_of(rows: int, admission: int, eviction: Eviction = Eviction.lru) -> RowKeeper:
    return RowKeeper(ManagedRows(rows), admission=admission, eviction=eviction)


def seen(*keys: int) -> Sightings:
    return Sightings.of(np.array(keys, np.int64), np.ones(len(keys), np.int64))


def rows_of(keeper: RowKeeper, *keys: int) -> list[int]:
    return keeper.rows(torch.tensor(keys)).tolist()


class Reference:
    """The rules one id at a time, with dicts."""

    def __init__(self, rows: int, admission: int, eviction: Eviction) -> None:
        self.free, self.admission, self.eviction = list(range(1, rows)), admission, eviction
        self.row, self.count, self.last, self.waiting, self.now, self.epoch = {}, {}, {}, {}, 0, 0

    def see(self, keys: list[int], epoch: int) -> list[int]:
        self.now, changed = self.now + 1, []
        if epoch != self.epoch:
            self.waiting, self.epoch = {}, epoch
        for key in keys:
            counts = self.count if key in self.row else self.waiting
            counts[key] = counts.get(key, 0) + 1
            self.last[key] = self.now
        ready = sorted((-n, key) for key, n in self.waiting.items() if n >= self.admission and key in keys)
        for minus, key in ready:
            old = sorted(
                (self.last[k] if self.eviction is Eviction.lru else self.count[k], k)
                for k in self.row
                if self.last[k] < self.now
            )
            if self.free:
                row = self.free.pop(0)
            elif old and (self.eviction is Eviction.lru or old[0][0] < -minus):
                row = self.row.pop(old[0][1])
            else:
                continue
            self.row[key], self.count[key] = row, self.waiting.pop(key)
            changed.append(row)
        return changed


@pytest.mark.parametrize("eviction", list(Eviction))
@pytest.mark.parametrize("admission", [1, 3])
def test_the_rules_one_id_at_a_time(eviction: Eviction, admission: int) -> None:
    g = np.random.default_rng(admission)
    keeper, reference = keeper_of(9, admission, eviction), Reference(9, admission, eviction)
    evictions = 0
    for step in range(400):
        keys = (1 + g.zipf(1.4, g.integers(1, 6)) + step // 40).tolist()
        changed = keeper.see(seen(*keys), epoch=step // 150).tolist()
        known = sorted(reference.row)
        assert changed == sorted(reference.see(keys, step // 150))
        evictions += len(set(known) - set(reference.row))
        live = sorted(reference.row)
        rows = rows_of(keeper, *live)
        assert rows == [reference.row[key] for key in live]
        assert len(set(rows)) == len(rows), "two live ids share a row"
        assert 0 not in rows
        assert not any(rows_of(keeper, *(key for key in reference.waiting)))
    assert evictions > (20 if eviction is Eviction.lru else 2)


def test_ids_seen_too_seldom_keep_to_the_shared_row() -> None:
    keeper = keeper_of(5, 3)
    for _ in range(2):
        assert not len(keeper.see(seen(7, 8), epoch=0))
    assert rows_of(keeper, 7, 8) == [0, 0]
    assert keeper.see(seen(7), epoch=0).tolist() == [1]
    assert rows_of(keeper, 7, 8) == [1, 0]
    keeper.see(seen(8), epoch=1)  # another pass over the log: the two of the first one do not count
    assert rows_of(keeper, 8) == [0]


def test_only_so_many_that_wait_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.admission.WAITING", 2)
    keeper = keeper_of(5, 2)
    for keys in ((7,), (8,), (9,)):
        keeper.see(seen(*keys), epoch=0)
    keeper.see(seen(7), epoch=0)
    assert rows_of(keeper, 7) == [0], "forgotten, and counted anew"
    keeper.see(seen(9), epoch=0)
    assert rows_of(keeper, 9) == [1]


class OneTable(torch.nn.Module):
    """A managed table as a tower has it."""

    def __init__(self, rows: int, dense_rows: int | None) -> None:
        super().__init__()
        self.managed = ManagedFeatures({"video_id": rows})
        self.tables = PlainTables({"video_id": rows}, 4, dense_rows=dense_rows)


def placed(dense_rows: int | None) -> OneProcess:
    torch.manual_seed(0)
    model = OneTable(6, dense_rows)
    rule = UpdateRule(
        learning_rate=0.1, weight_decay=0.0, dense_table_rows=dense_rows or 100, table_learning_rate=0.1,
        average=0.9,
    )  # fmt: skip
    placement = OneProcess(
        Task(model, lambda rows: model.tables.weights["video_id"][rows].square().sum()), rule
    )
    for step in range(3):
        placement.optimizers.begin_step(1.0)
        weight = model.tables.weights["video_id"]
        F.embedding(torch.tensor([1, 2, 3]), weight, sparse=dense_rows is not None).square().sum().backward()
        placement.optimizers.step()
        placement.optimizers.follow(step + 1)
    return placement


@pytest.mark.parametrize("dense_rows", [None, 2], ids=["adamw", "row-wise adagrad"])
def test_a_row_with_a_new_owner_is_as_new(dense_rows: int | None) -> None:
    placement = placed(dense_rows)
    before = {name: tensor.clone() for name, tensor in placement.state().items()}
    placement.renew_rows("tables.weights.video_id", torch.tensor([2]), torch.Generator().manual_seed(1))
    after = placement.state()
    drawn = torch.randn(1, 4, generator=torch.Generator().manual_seed(1))[0] * 0.02
    names = ("exp_avg", "exp_avg_sq") if dense_rows is None else ("sum",)
    for name in (f"optimizer.tables.weights.video_id.{state}" for state in names):
        assert before[name][2].abs().sum() > 0
        assert after[name][2].abs().sum() == 0
    for name in ("model.tables.weights.video_id", "average.tables.weights.video_id"):
        if name in after:
            assert torch.equal(after[name][2], drawn)
    for name, tensor in after.items():
        others = [row for row in range(len(tensor) if tensor.dim() else 0) if row != 2]
        assert (
            torch.equal(tensor[others], before[name][others]) if others else torch.equal(tensor, before[name])
        )


#: Half of the ids fill the table; dropouts are on.
WORDS = ("model.max_epochs=3", "model.managed.admission=3", "checkpoint_steps=3")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("managed")
    checkerboard(folder / "prepared", managed={"video_id": 21})
    assert train(f"prepared={folder}/prepared", f"out={folder}/straight", *WORDS) == 0
    return folder


def test_a_broken_off_run_goes_on_to_the_same_bits(world, monkeypatch):
    see, calls = Admission.see, []

    def breaking_off(self, batch):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        see(self, batch)

    words = (f"prepared={world}/prepared", f"out={world}/broken", *WORDS, "resume=true")
    monkeypatch.setattr(Admission, "see", breaking_off)
    assert train(*words) == 130
    monkeypatch.undo()
    assert train(*words) == 0
    assert records(world / "broken") == records(world / "straight")
    weights = [world / run / "model" / "model.safetensors" for run in ("straight", "broken")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_loaded_model_maps_ids_as_training_did(world):
    table = Prepared.open(world / "prepared").video_table
    model = load_two_tower(world / "straight" / "model")
    key_V = torch.from_numpy(table.bags[key_name("video_id")][0])
    row_V = model.video_tower.managed.maps["video_id"](key_V)
    live = row_V[row_V > 0]
    assert len(live) == 20 == len(set(live.tolist()))
    vectors = embed_catalogue(model, table)
    weight = model.video_tower.tables.weights["video_id"]
    for video in (1, 2, 3, 39, 40):
        features = FeatureBatch.of(table.take([video]))
        features.bags["video_id"] = (row_V[video - 1 : video], torch.tensor([0, 1]))
        with torch.no_grad():
            sides = model.video_tower
            own = F.embedding(row_V[video - 1], weight)
            tags, offsets = features.bags["video_tags"]
            if len(tags):
                own = own + F.embedding_bag(tags, sides.tables.weights["video_tags"], offsets[:-1])[0]
            expected = own + sides.refine(own)
        np.testing.assert_allclose(vectors[video, : model.shape.dim], expected, atol=1e-6)


def test_keys_do_not_depend_on_what_training_saw():
    bag = BagFeature(
        name="creator_id", side=Side.video, table="videos", column="creator_id", encoder=Encoder.vocabulary,
        rows=2, managed_rows=4,
    )  # fmt: skip
    from data.vocabulary import Vocabulary

    spec, known = FeatureSpec((bag,)), {"creator_id": Vocabulary.build(["a"])}
    first = encode(spec, "video", pa.table({"creator_id": ["a", "b", None]}), None, known)
    later = encode(spec, "video", pa.table({"creator_id": ["new", "b", "a"]}), None, known)
    a, b, unknown = first.bags[key_name("creator_id")][0]
    assert unknown == 0
    assert len({a, b, 0}) == 3
    assert later.bags[key_name("creator_id")][0][1:].tolist() == [b, a]
    assert first.bags["creator_id"][0].tolist() == [1, 0, 0], "other models read the vocabulary"
    assert FeatureSpec.from_json(spec.to_json()) == spec
