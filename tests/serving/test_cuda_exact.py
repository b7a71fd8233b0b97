"""Brute force on a CUDA device against brute force on the CPU: the same rows, the same scores."""

import numpy as np
import pytest
import torch

from serving.exact import ExactSearch
from serving.exact_device import DeviceExactSearch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_cuda_finds_what_the_cpu_finds(scale):
    g = np.random.default_rng(0)
    vectors = (scale * g.standard_normal((50_001, 64))).astype(np.float32)
    vectors[100:400] = vectors[100]  # more equal videos than are fetched beyond k
    users = np.concatenate([vectors[[100]], g.standard_normal((300, 64)).astype(np.float32)])
    exclude = [g.integers(-1, 50_010, 200) for _ in users]
    eligible = g.random(50_001) < 0.5
    on_cpu, on_cuda = ExactSearch(vectors), DeviceExactSearch(vectors, torch.device("cuda"))
    for options in ({}, {"exclude": exclude}, {"exclude": exclude, "eligible": eligible}):
        wanted, found = on_cpu.search(users, 100, **options), on_cuda.search(users, 100, **options)
        for a, b in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(a.video_row, b.video_row)
            np.testing.assert_array_equal(a.score, b.score)
