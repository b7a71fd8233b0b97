"""Tests that stay valid however often one looks: normal-mixture confidence sequences.

The experimenter may peek after every user and stop at will; the chance of ever rejecting a true null
stays below the level (asymptotically in the first look). The price is an interval about 1.5 to 2 times
as wide. Sources: Robbins 1970; Johari et al., Always valid inference (mSPRT), Operations Research 2022;
Waudby-Smith et al., Time-uniform central limit theory, Annals of Statistics 2024.
"""

import numpy as np


def mixture_scale(planned_users: int, alpha: float = 0.05) -> float:
    """The mixture parameter ρ that makes the interval shortest after ``planned_users`` users.

    It must be fixed before the data are seen; a wrong plan costs width, never validity.
    """
    loss = -2.0 * np.log(alpha)
    return float(np.sqrt((loss + np.log(loss + 1.0)) / planned_users))


def sequence_half_width(error: float, users: int, rho: float, alpha: float = 0.05) -> float:
    """Half the width of the confidence sequence after ``users`` users, given the usual standard error.

    error · √(2 (nρ² + 1) / (nρ²) · ln(√(nρ² + 1) / α)); NaN below two users.
    """
    if users < 2:
        return float("nan")
    mass = users * rho**2
    return float(error * np.sqrt(2.0 * (mass + 1.0) / mass * np.log(np.sqrt(mass + 1.0) / alpha)))


def always_valid_p(difference: float, error: float, users: int, rho: float) -> float:
    """The p-value that matches the sequence: √(nρ² + 1) · exp(−z² nρ² / (2 (nρ² + 1))), at most 1.

    ``z`` = difference / error; 1 where the error is 0 or unknown.
    """
    if not error > 0:
        return 1.0
    mass = users * rho**2
    exponent = -((difference / error) ** 2) * mass / (2.0 * (mass + 1.0))
    return float(min(1.0, np.sqrt(mass + 1.0) * np.exp(exponent)))
