"""A trained two-tower model at work: the catalogue's vectors, and vectors of users from histories.

Used alike by validation in training, by publish, by replay and by the server.
Axes: N catalogue rows, B users, S steps, D dimensions.
"""

from collections.abc import Sequence

import numpy as np
import torch

from data.features import EncodedTable
from data.history import UserHistory, UserRequest
from models.embeddings import FeatureBatch
from models.sequence import Steps
from models.two_tower import TwoTower


@torch.inference_mode()
def embed_catalogue(model: TwoTower, video_table: EncodedTable, batch: int = 8192) -> np.ndarray:
    """Vectors float32 ``[N + 1, D]`` without a trend; row r is catalogue row r, row 0 the unknown video."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, video_table.num_rows, batch):
        rows = np.arange(start, min(start + batch, video_table.num_rows), dtype=np.int64)
        features = FeatureBatch.of(video_table.take(rows)).to(device)
        parts.append(model.encode_videos(features).float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, model.shape.dim), np.float32)


def with_trend(video_ND: np.ndarray, trend_NK: np.ndarray | None) -> np.ndarray:
    """Final vectors ``[N + 1, D + K]``: the learnt ones beside ``data.trend``'s features of the same rows."""
    if trend_NK is None:
        return video_ND
    return np.concatenate([video_ND, trend_NK.astype(np.float32)], axis=1)


def collate_steps(histories: Sequence[UserHistory], max_steps: int) -> Steps:
    """Pad the last ``max_steps`` steps of each history at the end; an empty history has length 0."""
    lasts = [history.last(max_steps) for history in histories]
    lengths = np.array([len(history.video_row) for history in lasts], np.int64)
    steps = int(lengths.max(initial=0))

    def pad(name: str, dtype: type) -> torch.Tensor:
        out: np.ndarray = np.zeros((len(lasts), steps), dtype)
        for row, history in enumerate(lasts):
            out[row, : lengths[row]] = getattr(history, name)
        return torch.from_numpy(out)

    return Steps(
        video_BS=pad("video_row", np.int64),
        actions_BS=pad("actions", np.int64),
        known_BS=pad("known", np.int64),
        watch_ms_BS=pad("watch_ms", np.int64),
        surface_BS=pad("surface_row", np.int64),
        time_ms_BS=pad("time_ms", np.int64),
        length_B=torch.from_numpy(lengths),
    )


class UserEncoder:
    """Turns requests into user vectors with one forward pass per call; safe to call from threads."""

    def __init__(
        self, model: TwoTower, user_table: EncodedTable, video_vectors: np.ndarray, device: str = "cpu"
    ) -> None:
        """``video_vectors`` ``[N + 1, ≥ D]``: history steps read :func:`embed_catalogue`'s D dimensions."""
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.user_table = user_table
        learnt_ND = np.asarray(video_vectors, np.float32)[:, : model.shape.dim]
        self.video_ND = torch.from_numpy(learnt_ND).to(self.device)

    @torch.inference_mode()
    def encode(self, requests: Sequence[UserRequest]) -> np.ndarray:
        """Final user vectors float32 ``[B, D + K]``; an unknown user without history gets the default."""
        if not requests:
            return np.zeros((0, self.model.shape.width), np.float32)
        steps = collate_steps([request.history for request in requests], self.model.shape.max_steps)
        rows = np.array([request.user_row for request in requests], np.int64)
        features = FeatureBatch.of(self.user_table.take(rows)).to(self.device)
        time_ms_B = torch.tensor([request.time_ms for request in requests], dtype=torch.int64)
        user_BD = self.model.encode_users(
            steps.to(self.device), self.video_ND, features, time_ms_B.to(self.device)
        )
        return user_BD.float().cpu().numpy()
