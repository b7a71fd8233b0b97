"""One independent random stream per noun, day and chunk, all derived from the market's seed.

Because each stream is named, changing the number of users leaves the videos as they were, and a
different logging policy meets the very same market.
"""

import numpy as np

from data.hashing import salt_of


def generator(seed: int, *words: object) -> np.random.Generator:
    """The generator of the stream named ``words`` under ``seed``."""
    return np.random.default_rng(salt_of("shopreel-simulator", seed, *words))
