"""Training loops of other people's sequence models, for benchmarks/two_tower_training.py: positives a second.

Runs in the peers' own environment on the log that shopreel's worker wrote (``user_id``, ``item_id``,
``order``). Data are brought into a peer's own tensors before the clock starts, and its own model, loss and
optimizer do the rest. A positive is a position with a target, or a sample where a peer makes samples.

    rectools                   SASRec, softmax over the catalogue, 128 users a step
    rectools_sampled           SASRec, sampled softmax, ``negatives=`` a positive (1: its default)
    recbole                    SASRec, softmax over the catalogue, 2,048 samples a step (its default)
    replay                     SASRec, softmax over the catalogue, 128 users a step
    replay_sampled             SASRec, softmax over 100 shared uniform negatives
    replay_two_tower           TwoTower of SASRec and its default video tower, softmax over the catalogue
    replay_two_tower_sampled   the same, softmax over 100 shared uniform negatives

One step of each is not counted; then come ``seconds=``, and two steps at least.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

#: Users a step, steps before the clock counts, steps it counts at least.
USERS, WARM, LEAST = 128, 1, 2


class Marks:
    """When each step began, and its positives, until enough seconds have passed."""

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.began: list[float] = []
        self.positives: list[int] = []

    def begin(self, positives: int) -> bool:
        """Note that a step begins; true if enough were measured, and none is to begin."""
        self.began.append(self.clock())
        steps = len(self.began) - 1 - WARM
        if steps >= LEAST and self.began[-1] - self.began[WARM] >= self.seconds:
            return True
        self.positives.append(positives)
        return False

    def result(self) -> dict[str, Any]:
        counted = self.positives[WARM:]
        return {
            "rate": sum(counted) / (self.began[-1] - self.began[WARM]), "step": sum(counted) / len(counted)
        }  # fmt: skip


def histories(folder: Path, length: int) -> list[np.ndarray]:
    """Videos of each user in order, from 0, the newest ``length`` + 1."""
    table = pq.read_table(folder / "log.parquet").sort_by([("user_id", "ascending"), ("order", "ascending")])
    user, video = table["user_id"].to_numpy(), np.unique(table["item_id"].to_numpy(), return_inverse=True)[1]
    parts = np.split(video, np.flatnonzero(np.diff(user)) + 1)
    return [part[-length - 1 :] for part in parts if len(part) > 1]


def padded(
    sequences: list[np.ndarray], length: int, padding: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Steps and next steps [USERS, length], padded before, and which are real, of random users, endlessly."""
    generator = np.random.default_rng(0)
    while True:
        order = generator.permutation(len(sequences))
        for begin in range(0, len(order) - USERS, USERS):
            known = np.full((USERS, length), padding, np.int64)
            target, mask = known.copy(), np.zeros((USERS, length), bool)
            for row, place in enumerate(order[begin : begin + USERS]):
                part = sequences[place]
                known[row, length - len(part) + 1 :] = part[:-1]
                target[row, length - len(part) + 1 :] = part[1:]
                mask[row, length - len(part) + 1 :] = True
            yield torch.from_numpy(known), torch.from_numpy(target), torch.from_numpy(mask)


def replay_schema(videos: int, dim: int) -> Any:
    from replay.data import FeatureHint, FeatureSource, FeatureType
    from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema

    return TensorSchema(
        [TensorFeatureInfo("video", FeatureType.CATEGORICAL, is_seq=True, feature_hint=FeatureHint.ITEM_ID,
                           cardinality=videos, padding_value=videos, embedding_dim=dim,
                           feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "video")])]
    )  # fmt: skip


def replay(shape: dict[str, int], folder: Path, marks: Marks, **loss: object) -> None:
    from replay.models.nn.sequential.sasrec import SasRec, SasRecTrainingBatch

    sequences, length = histories(folder, shape["history"]), shape["history"]
    videos = 1 + max(int(part.max()) for part in sequences)
    model = SasRec(
        replay_schema(videos, shape["dim"]), block_count=shape["layers"], head_count=shape["heads"],
        hidden_size=shape["dim"], max_seq_len=length, **loss,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for known, target, mask in padded(sequences, length, videos):
        if marks.begin(int(mask.sum())):
            return
        batch = SasRecTrainingBatch(torch.arange(USERS), mask, {"video": known}, target, mask)
        optimizer.zero_grad()
        model._compute_loss(batch).backward()
        optimizer.step()


def replay_two_tower(shape: dict[str, int], folder: Path, marks: Marks, negatives: int = 0) -> None:
    import pandas as pd
    from replay.nn.loss import CESampled
    from replay.nn.sequential.twotower import FeaturesReader, TwoTower

    sequences, length = histories(folder, shape["history"]), shape["history"]
    videos = 1 + max(int(part.max()) for part in sequences)
    schema = replay_schema(videos, shape["dim"])
    catalogue = folder / f"replay-{os.getpid()}.parquet"
    pd.DataFrame({"video": range(videos)}).to_parquet(catalogue)
    model = TwoTower.from_params(
        schema, FeaturesReader(schema, {"video": {}}, str(catalogue)), embedding_dim=shape["dim"],
        num_heads=shape["heads"], num_blocks=shape["layers"], max_sequence_length=length,
    )  # fmt: skip
    if negatives:
        model.loss = CESampled(ignore_index=videos)
        model.loss.logits_callback = model.get_logits
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for known, target, mask in padded(sequences, length, videos):
        if marks.begin(int(mask.sum())):
            return
        optimizer.zero_grad()
        model(
            {"video": known}, mask, positive_labels=target[..., None], target_padding_mask=mask[..., None],
            negative_labels=torch.randint(videos, (negatives,)),
        )["loss"].backward()  # fmt: skip
        optimizer.step()


def recbole(shape: dict[str, int], folder: Path, marks: Marks) -> None:
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.utils import init_seed

    table = pq.read_table(folder / "log.parquet")
    home = folder / f"recbole-{os.getpid()}"
    (home / "log").mkdir(parents=True)
    columns = (table[name].to_pylist() for name in ("user_id", "item_id", "order"))
    lines = "\n".join(f"{user}\t{video}\t{order}" for user, video, order in zip(*columns, strict=True))
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (home / "log" / "log.inter").write_text(f"{header}\n{lines}\n")
    os.chdir(home)
    sys.argv = sys.argv[:1]
    config = Config(
        model="SASRec", dataset="log",
        config_dict={
            "data_path": str(home), "use_gpu": False, "train_neg_sample_args": None,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": shape["history"],
            "hidden_size": shape["dim"], "inner_size": 4 * shape["dim"], "n_layers": shape["layers"],
            "n_heads": shape["heads"], "loss_type": "CE", "train_batch_size": 2048, "show_progress": False,
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
    while True:
        for interaction in train:
            if marks.begin(len(interaction)):
                return
            optimizer.zero_grad()
            model.calculate_loss(interaction).backward()
            optimizer.step()


def rectools(shape: dict[str, int], folder: Path, marks: Marks, **loss: object) -> None:
    import pandas as pd
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    frame = pq.read_table(folder / "log.parquet").to_pandas()
    frame[Columns.Datetime] = pd.Timestamp("2020-01-01") + pd.to_timedelta(frame.pop("order"), unit="s")
    frame[Columns.Weight] = 1.0
    dataset = Dataset.construct(frame)

    class Count(Callback):  # type: ignore[misc]
        def on_train_batch_start(
            self, trainer: Trainer, module: object, batch: dict[str, torch.Tensor], index: int
        ) -> int | None:
            if marks.begin(int((batch["y"] != 0).sum())):
                trainer.should_stop = True
                return -1  # Lightning's word for: no more of this epoch
            return None

    def trainer() -> Trainer:
        quiet = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        return Trainer(max_epochs=1000, accelerator="cpu", callbacks=[Count()], **quiet)

    SASRecModel(
        n_blocks=shape["layers"], n_heads=shape["heads"], n_factors=shape["dim"],
        session_max_len=shape["history"],
        batch_size=USERS, get_trainer_func=trainer, deterministic=False, **loss,
    ).fit(dataset)  # fmt: skip


def run(system: str, shape: dict[str, int], folder: Path, arguments: dict[str, str]) -> dict[str, Any]:
    """One run: positives a second, and a step."""
    torch.set_num_threads(int(arguments.get("threads", "0")) or len(os.sched_getaffinity(0)))
    clock = time.process_time if arguments.get("clock") == "cpu" else time.perf_counter
    marks = Marks(clock, float(arguments.get("seconds", "4")))
    same = (shape, folder, marks)
    match system:
        case "rectools":
            rectools(*same, loss="softmax")
        case "rectools_sampled":
            rectools(*same, loss="sampled_softmax", n_negatives=int(arguments.get("negatives", "1")))
        case "recbole":
            recbole(*same)
        case "replay":
            replay(*same)
        case "replay_sampled":
            replay(*same, loss_sample_count=100, negatives_sharing=True)
        case "replay_two_tower":
            replay_two_tower(*same)
        case "replay_two_tower_sampled":
            replay_two_tower(*same, negatives=100)
        case _:
            raise SystemExit(f"no peer {system}")
    return marks.result()
