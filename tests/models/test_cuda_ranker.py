"""The ranker on a CUDA device: recorded graphs against the eager model, and that against the CPU."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from models.ranker import Ranker, RankerShape, UserState
from models.ranker_graph import GraphedScorer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPE = RankerShape(
    video_rows={"video_id": 20}, video_dense={}, user_rows={"user_age": 5}, user_dense={}, surfaces=3,
    markets=2, tasks=("click", "product_click", "purchase"), parents=(-1, 0, 1), watch_bins=4,
    watch_groups=2, order_value=True, positions=3, user_statistics=6, candidate_statistics=5, field_dim=4,
    dim=8, width=16, heads=2, tastes=3, cross_layers=2, cross_rank=4, experts=2, hidden=8, dropout=0.3,
    attention_steps=64, use_time=True, order_columns=(1, 3),
)  # fmt: skip


def world(**changes):
    """A model on the CPU whose weights are far from 0, and a maker of requests for it."""
    torch.manual_seed(2)
    model = Ranker(replace(SHAPE, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def request(candidates, steps):
        user = UserState(
            torch.randn(1, 8), torch.randn(1, 16), torch.randn(1, 3), torch.randn(1, steps + 1, 16),
            torch.rand(1, steps) < 0.8, torch.randn(1, 3, 8),
            torch.randn(int(model.shape.order_value)),
        )  # fmt: skip
        return user, torch.randn(1, candidates, model.videos.width + 8), torch.randn(1, candidates, 5)

    return model, request


def on_cuda(user, video, statistics):
    fields = (getattr(user, name) for name in UserState.__slots__)
    return UserState(*(t.cuda() for t in fields)), video.cuda(), statistics.cuda()


def assert_same(scores, wanted):
    for name in ("task_BKT", "watch_BKE", "order_BK2"):
        got, want = getattr(scores, name), getattr(wanted, name)
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got.cpu(), want.cpu(), atol=1e-4, rtol=1e-4)


SIZES = [(500, 100), (2, 2), (1, 9), (7, 0), (64, 16), (65, 17), (500, 100), (3, 1), (20_000, 4), (0, 3)]


@pytest.mark.parametrize("heads", [{}, {"watch_bins": 0, "watch_groups": 0, "order_value": False}])
def test_recorded_graphs_say_what_the_cpu_says(heads):
    model, request = world(**heads)
    with torch.inference_mode():
        asked = [request(candidates, steps) for candidates, steps in SIZES]
        wanted = [model.score(*one) for one in asked]
        graphed = GraphedScorer(model.cuda())
        for one, want in zip(asked, wanted, strict=True):
            assert_same(graphed.score(*on_cuda(*one)), want)


def test_requests_of_several_threads_do_not_mix():
    model, request = world()
    with torch.inference_mode():
        asked = [request(1 + 37 * n % 300, n % 40) for n in range(64)]
        wanted = [model.score(*one) for one in asked]
    graphed = GraphedScorer(model.cuda())

    def score(one):
        with torch.inference_mode():
            found = graphed.score(*on_cuda(*one))
            torch.cuda.synchronize()
            return found

    with ThreadPoolExecutor(8) as pool:
        for found, want in zip(pool.map(score, asked), wanted, strict=True):
            assert_same(found, want)
