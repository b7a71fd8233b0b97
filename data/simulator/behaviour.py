"""What people do with a shown video: the true probability of each step given the one before.

The user looks at it (position bias), clicks, watches, reacts; from a clicked video with products the
funnel of ``shopping`` follows. Given the click, watching, reactions and shopping are independent.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.simulator import watch
from data.simulator.taste import F32, F64, I64
from data.simulator.users import drift_weight
from data.simulator.world import World

SURFACES = ("feed", "shop", "discover")
#: P(looks at position k) = 1 / (1 + slope * k): a full-screen feed, a grid of offers, a grid of finds.
EXAMINATION_SLOPE = np.array([0.05, 0.22, 0.12])
CLICK_BIAS, CLICK_SURFACE = -1.25, np.array([0.0, -0.25, 0.1])
CLICK_QUALITY, CLICK_FOREIGN = 0.6, -0.9
#: Reactions after a click: bias, weight of affinity, of the video's social trait, of the creator's charisma.
REACTIONS = {
    "like": (-2.9, 2.2, 0.6, 0.2),
    "comment": (-4.6, 1.4, 0.8, 0.2),
    "share": (-4.8, 1.6, 0.8, 0.0),
    "follow": (-5.0, 2.0, 0.2, 0.8),
    "save": (-4.2, 2.0, 0.3, 0.0),
    "profile_view": (-3.6, 1.2, 0.1, 0.8),
}
HIDE_BIAS, HIDE_AFFINITY, HIDE_QUALITY = -4.2, -1.8, -0.5


@dataclass(frozen=True, slots=True)
class Exposure:
    """Videos shown to users: rows, days of the log, surface rows and positions, each int64 [n]."""

    user: I64
    video: I64
    day: I64
    surface: I64
    position: I64

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: I64) -> "Exposure":
        """The exposures at ``rows``."""
        return Exposure(
            self.user[rows], self.video[rows], self.day[rows], self.surface[rows], self.position[rows]
        )


def user_taste(world: World, user: I64, day: I64) -> F32:
    """Taste of each user on each day, float32 [n, D]."""
    first = world.users.taste_UD[user]
    return np.asarray(first + drift_weight(day)[:, None] * (world.users.later_taste_UD[user] - first))


def examination(exposure: Exposure) -> F64:
    """P(the user looks at the shown video)."""
    return np.asarray(1.0 / (1.0 + EXAMINATION_SLOPE[exposure.surface] * exposure.position))


def video_affinity(world: World, exposure: Exposure, taste: F32) -> F32:
    """Cosine-like fit of video and taste, about -1 … 1."""
    return np.asarray(np.einsum("nd,nd->n", taste, world.videos.vector_ND[exposure.video]))


def click_probability(world: World, exposure: Exposure, affinity: F32) -> F64:
    """P(click | looked at)."""
    users, videos = world.users, world.videos
    foreign = users.language[exposure.user] != videos.language[exposure.video]
    logit = (
        (CLICK_BIAS + CLICK_SURFACE)[exposure.surface]
        + world.settings.taste_strength * affinity
        + CLICK_QUALITY * videos.quality[exposure.video]
        + users.click_bias[exposure.user]
        + CLICK_FOREIGN * foreign
    )
    return sigmoid(logit)


def hide_probability(world: World, exposure: Exposure, affinity: F32) -> F64:
    """P(hide | looked at, not clicked)."""
    quality = world.videos.quality[exposure.video]
    return sigmoid(HIDE_BIAS + HIDE_AFFINITY * affinity + HIDE_QUALITY * quality)


def reaction_probability(world: World, label: str, exposure: Exposure, affinity: F32) -> F64:
    """P(label | click) for a label of ``REACTIONS``."""
    bias, by_affinity, by_social, by_charisma = REACTIONS[label]
    logit = bias + by_affinity * affinity + world.users.social_bias[exposure.user]
    logit += by_social * world.videos.social[exposure.video]
    if by_charisma:
        logit += by_charisma * world.creators.charisma[world.videos.creator[exposure.video]]
    return sigmoid(logit)


def watch_log_median(world: World, exposure: Exposure, affinity: F32) -> F64:
    """Log median of the attention span in ms after a click; see ``watch``."""
    videos = world.videos
    return watch.log_median_ms(
        videos.duration_ms[exposure.video], affinity, videos.watchability[exposure.video]
    )


def sigmoid(logit: npt.ArrayLike) -> F64:
    """1 / (1 + exp(-logit)), float64."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(logit, dtype=np.float64))))
