"""A trained two-tower model at work: the catalogue's vectors, and vectors of users from histories.

Used alike by validation in training, by publish, by replay and by the server.
Axes: N catalogue rows, B users, S steps, L learnt dimensions, K trend features, C directions.
"""

from collections.abc import Sequence

import numpy as np
import torch

from data.features import EncodedTable
from data.history import UserHistory, UserRequest
from models.co_engagement import CoEngagement
from models.embeddings import FeatureBatch
from models.sequence import Steps
from models.two_tower import VIDEO_ID, TwoTower


@torch.inference_mode()
def embed_catalogue(model: TwoTower, video_table: EncodedTable, batch: int = 8192) -> np.ndarray:
    """Learnt vectors float32 ``[N + 1, L]``; row r is catalogue row r, row 0 the unknown video."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, video_table.num_rows, batch):
        rows = np.arange(start, min(start + batch, video_table.num_rows), dtype=np.int64)
        features = FeatureBatch.of(video_table.take(rows)).to(device)
        parts.append(model.encode_videos(features).float().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros((0, model.shape.learnt), np.float32)


def final_vectors(
    model: TwoTower, video_table: EncodedTable, video_NL: np.ndarray, trend_NK: np.ndarray | None
) -> np.ndarray:
    """Final vectors ``[N + 1, L + K + C]``: :func:`embed_catalogue`'s beside what is not learnt.

    ``trend_NK`` are ``data.trend``'s features of the same rows, None for a model without a trend.
    """
    parts = [video_NL]
    if trend_NK is not None:
        parts.append(trend_NK.astype(np.float32))
    if model.co_engagement is not None:
        parts.append(co_engagement_vectors(model.co_engagement, video_table, video_NL[:, : model.shape.dim]))
    return np.concatenate(parts, axis=1) if len(parts) > 1 else video_NL


def co_engagement_vectors(
    linear: CoEngagement, video_table: EncodedTable, learnt_ND: np.ndarray
) -> np.ndarray:
    """Vectors ``[N + 1, C]`` of the linear model, of videos that nobody has seen by their learnt ones."""
    device = linear.table_RC.device
    id_row_N, learnt = torch.from_numpy(id_rows(video_table)), torch.from_numpy(learnt_ND)
    vector_NC: np.ndarray = linear.videos(id_row_N.to(device), learnt.to(device)).cpu().numpy()
    vector_NC[0] = 0.0  # row 0 is no video
    return vector_NC


def id_rows(video_table: EncodedTable) -> np.ndarray:
    """Row of each video's id in the id table, int64 ``[N + 1]``; 0 for an id that training did not know."""
    values, offsets = video_table.bags[VIDEO_ID]
    row_N = np.zeros(video_table.num_rows, np.int64)
    has_id = np.diff(offsets) > 0
    row_N[has_id] = np.asarray(values)[np.asarray(offsets)[:-1][has_id]]
    return row_N


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
        """``video_vectors`` are :func:`final_vectors`, of which histories are read too."""
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.user_table = user_table
        learnt_NL = np.asarray(video_vectors, np.float32)[:, : model.shape.learnt]
        self.video_NL = torch.from_numpy(learnt_NL).to(self.device)
        self.video_NC: torch.Tensor | None = None
        if model.shape.co_engagement:
            linear_NC = np.asarray(video_vectors, np.float32)[:, -model.shape.co_engagement :]
            self.video_NC = torch.from_numpy(linear_NC).to(self.device)

    @torch.inference_mode()
    def encode(self, requests: Sequence[UserRequest]) -> np.ndarray:
        """Final user vectors float32 ``[B, L + K + C]``; an unknown user without history gets the default."""
        if not requests:
            return np.zeros((0, self.model.shape.width), np.float32)
        steps = collate_steps([request.history for request in requests], self.model.shape.max_steps)
        rows = np.array([request.user_row for request in requests], np.int64)
        features = FeatureBatch.of(self.user_table.take(rows)).to(self.device)
        time_ms_B = torch.tensor([request.time_ms for request in requests], dtype=torch.int64)
        steps = steps.to(self.device)
        user_BD = self.model.encode_users(steps, self.video_NL, features, time_ms_B.to(self.device))
        if self.model.co_engagement is not None and self.video_NC is not None:
            user_BD = torch.cat([user_BD, self.model.co_engagement.users(steps, self.video_NC)], dim=1)
        return user_BD.float().cpu().numpy()
