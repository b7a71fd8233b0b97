"""Training loops of other people's sequence models, for benchmarks/two_tower_training.py: positives a second.

Runs in the peers' own environment on the log that shopreel's worker wrote (``user_id``, ``item_id``,
``order``). Data are brought into a peer's own tensors before the clock starts, and its own model, loss and
optimizer do the rest. A positive is a position with a target, or a sample where a peer makes samples.

    rectools             SASRec, softmax over the catalogue, 128 users a step
    rectools_sampled     SASRec, sampled softmax, ``negatives=`` a positive (1: its default)
    recbole              SASRec, softmax over the catalogue, 2,048 samples a step (its default)
    replay               SASRec, softmax over the catalogue, 128 users a step
    replay_sampled       SASRec, softmax over 100 shared uniform negatives
"""

import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

#: (time, positives of the step that begins there); the last one marks the end.
Marks = list[tuple[float, int]]


def histories(folder: Path, length: int) -> list[np.ndarray]:
    """Videos of each user in order, from 0, the newest ``length`` + 1."""
    table = pq.read_table(folder / "log.parquet").sort_by([("user_id", "ascending"), ("order", "ascending")])
    user, video = table["user_id"].to_numpy(), np.unique(table["item_id"].to_numpy(), return_inverse=True)[1]
    parts = np.split(video, np.flatnonzero(np.diff(user)) + 1)
    return [part[-length - 1 :] for part in parts if len(part) > 1]


def replay(
    shape: dict[str, int], folder: Path, clock: Callable[[], float], steps: int, batch: int, **loss: object
) -> Marks:
    from replay.data import FeatureHint, FeatureType
    from replay.data.nn import TensorFeatureInfo, TensorSchema
    from replay.models.nn.sequential.sasrec import SasRec, SasRecTrainingBatch

    sequences, length = histories(folder, shape["history"]), shape["history"]
    videos = 1 + max(int(part.max()) for part in sequences)
    schema = TensorSchema(
        [TensorFeatureInfo("video", FeatureType.CATEGORICAL, is_seq=True, feature_hint=FeatureHint.ITEM_ID,
                           cardinality=videos, embedding_dim=shape["dim"])]
    )  # fmt: skip
    model = SasRec(
        schema, block_count=shape["layers"], head_count=shape["heads"], hidden_size=shape["dim"],
        max_seq_len=length, **loss,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def batches() -> Iterator[tuple[SasRecTrainingBatch, int]]:
        generator = np.random.default_rng(0)
        while True:
            order = generator.permutation(len(sequences))
            for begin in range(0, len(order) - batch, batch):
                known = np.full((batch, length), videos, np.int64)
                target, mask = known.copy(), np.zeros((batch, length), bool)
                for row, place in enumerate(order[begin : begin + batch]):
                    part = sequences[place]
                    known[row, length - len(part) + 1 :] = part[:-1]
                    target[row, length - len(part) + 1 :] = part[1:]
                    mask[row, length - len(part) + 1 :] = True
                padding = torch.from_numpy(mask)
                yield (
                    SasRecTrainingBatch(
                        torch.arange(batch), padding, {"video": torch.from_numpy(known)},
                        torch.from_numpy(target), padding,
                    ),
                    int(mask.sum()),
                )  # fmt: skip

    stream, marks = batches(), []
    for _ in range(steps):
        one, positives = next(stream)
        marks.append((clock(), positives))
        optimizer.zero_grad()
        model._compute_loss(one).backward()
        optimizer.step()
    return [*marks, (clock(), 0)]


def recbole(shape: dict[str, int], folder: Path, clock: Callable[[], float], steps: int, batch: int) -> Marks:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.utils import init_seed

    table = pq.read_table(folder / "log.parquet")
    (folder / "recbole" / "log").mkdir(parents=True)
    columns = (table[name].to_pylist() for name in ("user_id", "item_id", "order"))
    lines = "\n".join(f"{user}\t{video}\t{order}" for user, video, order in zip(*columns, strict=True))
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / "recbole" / "log" / "log.inter").write_text(f"{header}\n{lines}\n")
    os.chdir(folder)
    sys.argv = sys.argv[:1]
    config = Config(
        model="SASRec", dataset="log",
        config_dict={
            "data_path": str(folder / "recbole"), "use_gpu": False, "train_neg_sample_args": None,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": shape["history"],
            "hidden_size": shape["dim"], "inner_size": 4 * shape["dim"], "n_layers": shape["layers"],
            "n_heads": shape["heads"], "loss_type": "CE", "train_batch_size": batch, "show_progress": False,
            "eval_args": {
                "split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full",
            },
        },
    )  # fmt: skip
    init_seed(0, True)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    model = SASRec(config, train.dataset)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    marks: Marks = []
    while True:
        for interaction in train:
            if len(marks) == steps:
                return [*marks, (clock(), 0)]
            marks.append((clock(), len(interaction)))
            optimizer.zero_grad()
            model.calculate_loss(interaction).backward()
            optimizer.step()


def rectools(
    shape: dict[str, int], folder: Path, clock: Callable[[], float], steps: int, batch: int, **loss: object
) -> Marks:
    import pandas as pd
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    frame = pq.read_table(folder / "log.parquet").to_pandas()
    frame[Columns.Datetime] = pd.Timestamp("2020-01-01") + pd.to_timedelta(frame.pop("order"), unit="s")
    frame[Columns.Weight] = 1.0
    dataset, marks = Dataset.construct(frame), []

    class Count(Callback):  # type: ignore[misc]
        def on_train_batch_start(
            self, trainer: object, module: object, batch: dict[str, torch.Tensor], index: int
        ) -> None:
            marks.append((clock(), int((batch["y"] != 0).sum())))

        def on_train_end(self, trainer: object, module: object) -> None:
            marks.append((clock(), 0))

    def trainer() -> Trainer:
        quiet = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        return Trainer(max_steps=steps, max_epochs=1000, accelerator="cpu", callbacks=[Count()], **quiet)

    SASRecModel(
        n_blocks=shape["layers"], n_heads=shape["heads"], n_factors=shape["dim"],
        session_max_len=shape["history"],
        batch_size=batch, get_trainer_func=trainer, deterministic=False, **loss,
    ).fit(dataset)  # fmt: skip
    return marks


def run(
    system: str, shape: dict[str, int], folder: Path, clock: Callable[[], float], arguments: dict[str, str]
) -> list[float]:
    """Positives a second in each of the rounds, the first steps left out."""
    torch.set_num_threads(int(arguments.get("threads", "0")) or len(os.sched_getaffinity(0)))
    steps, rounds, warm = int(arguments.get("peer_steps", "33")), int(arguments.get("rounds", "5")), 3
    same = (shape, folder, clock, steps)
    match system:
        case "rectools":
            marks = rectools(*same, 128, loss="softmax")
        case "rectools_sampled":
            marks = rectools(
                *same, 128, loss="sampled_softmax", n_negatives=int(arguments.get("negatives", "1"))
            )
        case "recbole":
            marks = recbole(*same, 2048)
        case "replay":
            marks = replay(*same, 128)
        case "replay_sampled":
            marks = replay(*same, 128, loss_sample_count=100, negatives_sharing=True)
        case _:
            raise SystemExit(f"no peer {system}")
    cut = np.linspace(warm, len(marks) - 1, rounds + 1).astype(int)
    return [sum(n for _, n in marks[a:b]) / (marks[b][0] - marks[a][0]) for a, b in pairwise(cut)]
