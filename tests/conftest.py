"""What all tests share: one thread per process, deterministic property tests, the folder of real logs."""

import os

# Before torch, numpy or a BLAS is imported: tests are small, and two cores share all processes.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("deterministic")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real logs (``SHOPREEL_REAL_DATA``, default ``../shared/data``); skips without it."""
    folder = Path(os.environ.get("SHOPREEL_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real logs at {folder}; set SHOPREEL_REAL_DATA to their folder")
    return folder
