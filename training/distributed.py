"""The processes of one training job: who they are, how they agree, and what ends them.

``torchrun`` starts the processes (*ranks*) and names them through the environment; without it there is
one, and nothing here communicates.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from data.errors import ShopreelError

#: What gloo writes when another process is gone or silent (others have an exception of their own).
_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|tim(ed|e) ?out", re.IGNORECASE)


class RankLostError(Exception):
    """Another process of the job died or fell silent; one line with the mend."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among the ``world`` processes of the job; ``grouped`` says that they are connected.

    Every method but :meth:`share` and :meth:`owned` is collective: all ranks call it alike.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    grouped: bool = False

    @property
    def lead(self) -> bool:
        """Whether this rank logs and writes for all."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over ranks in float64, the same bits on every rank."""
        if self.world == 1:
            return [float(value) for value in values]
        return [float(total) for total in self.gather(np.array(values, np.float64)).sum(axis=0)]

    def largest(self, value: int) -> int:
        """The largest ``value`` of any rank."""
        return value if self.world == 1 else int(self.gather(np.array(value)).max())

    def gather(self, array: np.ndarray) -> np.ndarray:
        """Equal-shaped arrays of all ranks ``[world, …]`` on every rank."""
        if self.world == 1:
            return array[None]
        own = torch.from_numpy(np.ascontiguousarray(array))
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own)
        return torch.stack(parts).numpy()

    def share(self, count: int) -> np.ndarray:
        """Positions of this rank among ``count`` > 0, int64: every ``world``-th.

        All ranks get equally many, so that they make the same collective calls: where ``count`` does not
        divide, later ranks repeat the last position. ``share(5)`` of two ranks: 0 2 4, and 1 3 4. The first
        :meth:`owned` positions are this rank's alone.
        """
        each = -(-count // self.world)
        return np.minimum(np.arange(self.rank, each * self.world, self.world), count - 1)

    def owned(self, count: int) -> int:
        """How many positions of :meth:`share` are no repetition; the sum over ranks is ``count``."""
        return len(range(self.rank, count, self.world))

    def joined(self, parts: np.ndarray, count: int) -> np.ndarray:
        """Undo :meth:`share`: every rank's rows ``[M, …]`` → all ``[count, …]`` in order, on every rank."""
        gathered = self.gather(parts)
        return gathered.swapaxes(0, 1).reshape(-1, *gathered.shape[2:])[:count]

    def on_lead(self, action: Callable[[], object]) -> None:
        """Run ``action`` on the lead while the others wait; where it raises, all ranks stop."""
        error: Exception | None = None
        if self.lead:
            try:
                action()
            except Exception as raised:
                error = raised
        failed = self.sum([error is not None])[0] > 0
        if error is not None:
            raise error
        if failed:
            raise SystemExit(2)  # the lead says why


#: A process without company.
ALONE = Ranks()


@contextmanager
def open_ranks(*, connect: bool, cuda: bool, timeout_minutes: float) -> Iterator[Ranks]:
    """Join the processes that torchrun started; ``connect`` opens a process group even for one.

    A rank that waits longer than ``timeout_minutes`` for another gives up with :class:`RankLostError`. An
    error that all ranks meet alike is told once per machine.
    """
    rank, world = _environ("RANK", 0), _environ("WORLD_SIZE", 1)
    local_rank, local_world = _environ("LOCAL_RANK", rank), _environ("LOCAL_WORLD_SIZE", world)
    ranks = Ranks(rank, world, local_rank, local_world, grouped=connect or world > 1)
    try:
        if ranks.grouped:
            _connect(ranks, cuda, timedelta(minutes=timeout_minutes))
        yield ranks
    except ShopreelError:
        if ranks.local_rank == 0:
            raise
        raise SystemExit(2) from None
    except RuntimeError as error:
        if world == 1 or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        reason = re.sub(r"\[\S*/gloo/\S*\] ", "", str(error)).partition("\n")[0].partition(". ")[0]
        raise RankLostError(
            f"process {rank} of {world} lost another one ({reason[:160]}); see what it printed (killed "
            "without a word: out of memory?), then start again with resume=true"
        ) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _environ(name: str, default: int) -> int:
    return int(os.environ.get(name, str(default)))


def _connect(ranks: Ranks, cuda: bool, timeout: timedelta) -> None:
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if ranks.world == 1:
        store: Store = HashStore()
    else:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        if ranks.local_world == ranks.world:
            # torchrun may keep its store over restarts, with the addresses of processes that are gone
            store = PrefixStore(f"restart {_environ('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=timeout)
