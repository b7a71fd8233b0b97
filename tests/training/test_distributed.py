"""Ranks: shares, agreement, and what ends a job (several processes are in test_parity)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import ConfigError
from training.distributed import ALONE, RankLostError, Ranks, open_ranks


def test_shares_of_the_docstring():
    assert [Ranks(rank, 2).share(5).tolist() for rank in range(2)] == [[0, 2, 4], [1, 3, 4]]


@given(count=st.integers(1, 50), world=st.integers(1, 9))
def test_shares_are_equally_long_and_cover_everything(count, world):
    shares = [Ranks(rank, world).share(count) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    owned = [share[: Ranks(rank, world).owned(count)] for rank, share in enumerate(shares)]
    assert sorted(np.concatenate(owned).tolist()) == list(range(count))


@given(count=st.integers(1, 50), world=st.integers(1, 9))
def test_joining_undoes_sharing(count, world):
    class Together(Ranks):
        """What every rank would gather."""

        def gather(self, array):
            return np.stack([rows[Ranks(rank, world).share(count)] for rank in range(world)])

    rows = np.random.default_rng(0).normal(size=(count, 3))
    np.testing.assert_array_equal(Together(0, world).joined(rows[:1], count), rows)


def test_one_process_agrees_with_itself():
    assert ALONE.sum([1, 0.5]) == [1.0, 0.5]
    assert ALONE.gather(np.arange(3)).tolist() == [[0, 1, 2]]
    assert ALONE.lead
    done = []
    ALONE.on_lead(lambda: done.append(1))
    assert done == [1]


def test_an_error_of_the_lead_is_its_own():
    def fail():
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        ALONE.on_lead(fail)


def opened(monkeypatch, rank: int, world: int):
    monkeypatch.setattr("training.distributed._connect", lambda *_: None)
    for name, value in {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    return open_ranks(connect=False, cuda=False, timeout_minutes=1.0)


def test_without_torchrun_nothing_is_connected(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with open_ranks(connect=False, cuda=False, timeout_minutes=1.0) as ranks:
        assert ranks == ALONE


@pytest.mark.parametrize(("rank", "expected"), [(0, ConfigError), (1, SystemExit)])
def test_a_mistake_that_all_ranks_meet_is_told_once(monkeypatch, rank, expected):
    with pytest.raises(expected), opened(monkeypatch, rank, 2):
        raise ConfigError("model.dim=3")


@pytest.mark.parametrize(
    "message",
    [
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:123\nmore",
        "Timed out waiting 600000ms for recv operation to complete",
    ],
)
def test_a_lost_peer_is_told_in_one_line(monkeypatch, message):
    with pytest.raises(RankLostError, match=r"process 1 of 2 lost.*resume=true") as error:  # noqa: SIM117
        with opened(monkeypatch, 1, 2):
            raise RuntimeError(message)
    assert "\n" not in str(error.value)


def test_other_errors_pass(monkeypatch):
    with pytest.raises(RuntimeError, match="shape"), opened(monkeypatch, 0, 2):
        raise RuntimeError("shape mismatch")
