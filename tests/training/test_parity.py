"""One process, one process on TorchRec's tables, and two ranks: the same losses and the same model."""

import signal

import numpy as np
import pytest

from data.prepared import Prepared
from models.inference import embed_catalogue
from models.managed import FREE
from models.portable import load_two_tower
from tests.training.running import finish, records, spawn, spawn_job, train, wait_for
from tests.training.worlds import checkerboard
from training.checkpoint import save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

#: Without dropout, since ranks draw their own; ids and markets are large tables (cut, row-wise Adagrad), and
#: that of markets is managed, with rows for ten of twelve.
EXACT = (
    "model.dropout=0", "model.id_dropout=0", "model.optimizer.dense_table_rows=10", "model.max_epochs=4",
    "model.managed.admission=3",
)  # fmt: skip
WHOLE, HALF = "model.tokens=400", "model.tokens=200"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    checkerboard(
        folder / "prepared", users=61, managed={"user_market": 11}
    )  # two ranks cannot share them evenly
    assert train(f"prepared={folder}/prepared", f"out={folder}/one", *EXACT, WHOLE) == 0
    return folder


def check_equal(world, name: str) -> None:
    expected, found = records(world / "one"), records(world / name)
    assert len(expected) >= 16
    assert found == pytest.approx(expected, abs=1e-5)
    for metric in ("train/gradient_norm", "validation/ndcg@20"):
        assert records(world / name, metric) == pytest.approx(records(world / "one", metric), abs=1e-4)
    one, other = (load_two_tower(world / run / "model") for run in ("one", name))
    assert int(one.user_token.managed.maps["user_market"].key_K.max()) < FREE, "the table is full"
    for key, weight in one.state_dict().items():
        np.testing.assert_allclose(other.state_dict()[key], weight, atol=1e-5, err_msg=key)
    table = Prepared.open(world / "prepared").video_table
    np.testing.assert_allclose(embed_catalogue(other, table), embed_catalogue(one, table), atol=1e-5)


def test_torchrec_tables_in_one_process(world):
    words = (f"prepared={world}/prepared", f"out={world}/torchrec", *EXACT, WHOLE, "tables=torchrec")
    ((code, _out, err),) = finish([spawn(*words)])
    assert code == 0, err
    assert "row wise" in err
    assert "data parallel" in err
    assert "Warning" not in err
    check_equal(world, "torchrec")


def test_two_ranks(world):
    words = (f"prepared={world}/prepared", f"out={world}/two", *EXACT, HALF)
    (lead, other) = finish(spawn_job(*words, world=2))
    assert lead[0] == other[0] == 0, lead[2] + other[2]
    assert "best ndcg@20" in lead[1]
    assert other[1] == ""
    assert "Warning" not in lead[2] + other[2]
    check_equal(world, "two")


def test_a_lost_rank_ends_the_job_and_one_process_goes_on(world):
    """Rank 1 is killed; its peer ends with one line; the two ranks' checkpoint is resumed by one."""
    words = (f"prepared={world}/prepared", f"out={world}/lost", *EXACT, "checkpoint_steps=3", "resume=true")
    job = spawn_job(*words, HALF, world=2)
    wait_for(lambda: list((world / "lost" / "checkpoints").glob("step-*")), job[1])
    job[1].send_signal(signal.SIGKILL)
    (lead, _) = finish(job, timeout_s=60)
    assert lead[0] == 1
    last = lead[2].strip().splitlines()[-1]
    assert last.startswith("shopreel train: process 0 of 2 lost another one")
    assert "resume=true" in last
    assert "Traceback" not in lead[2]
    assert train(*words, WHOLE) == 0
    check_equal(world, "lost")


def test_two_ranks_go_on_where_one_process_stopped(world, monkeypatch):
    words = (f"prepared={world}/prepared", f"out={world}/grown", *EXACT, "checkpoint_steps=3", "resume=true")
    saved = []

    def save_twice(*arguments):
        save_checkpoint(*arguments)
        saved.append(arguments)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("training.loop.save_checkpoint", save_twice)
    assert train(*words, WHOLE) == 130
    (lead, other) = finish(spawn_job(*words, HALF, world=2))
    assert lead[0] == other[0] == 0, lead[2]
    assert "resumed at step" in lead[2]
    check_equal(world, "grown")
