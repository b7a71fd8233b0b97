"""A sample of real users, as they stood before a held-out split: on whom a bundle is measured."""

from dataclasses import dataclass

from data.dataset import Dataset
from data.errors import ContractError
from data.held_out import HeldOutRules, held_out_requests
from data.history import UserRequest
from data.prepared import Prepared
from data.records import Rows as RowsOf
from serving.exact import Rows


@dataclass(slots=True)
class SampledUsers:
    """At least one request; ``seen[i]`` are the catalogue rows that its user had met."""

    requests: list[UserRequest]
    seen: list[Rows]


def sample_users(
    dataset: Dataset, prepared: Prepared, *, count: int, max_steps: int, memory_limit_gb: float
) -> SampledUsers:
    """The first ``count`` users of the test split, else of validation, in the log's hashed order.

    Raises :class:`ContractError` where neither split has an impression.
    """
    rows = rows_of(prepared)
    for split in ("test", "validation"):
        sample = SampledUsers([], [])
        for batch in held_out_requests(
            dataset, split, gain=None, rules=HeldOutRules.of(prepared.manifest), rows=rows, limit=max_steps,
            memory_limit_gb=memory_limit_gb,
        ):  # fmt: skip
            sample.requests += batch.requests
            sample.seen += batch.seen
            if len(sample.requests) >= count:
                break
        if sample.requests:
            return SampledUsers(sample.requests[:count], sample.seen[:count])
    raise ContractError(
        f"{dataset.path}: no impression in the validation or test split, so nothing to measure the model on; "
        "prepare and train with other split dates"
    )


def rows_of(prepared: Prepared) -> RowsOf:
    """The vocabularies under which the log of a dataset is read for this model."""
    seed = int(prepared.manifest["settings"]["seed"])
    return RowsOf(prepared.users, prepared.catalogue, prepared.surfaces, prepared.markets, seed)
