"""What a ranking does besides being right: to the catalogue, to creators and merchants, to taste.

Every metric looks at the top ``k`` of the requests in the truth. Those of a list (novelty, diversity,
taste, repeats) have intervals over users. Those of the whole (coverage, Gini, shares) have none: they
count distinct things over all users, and a resample of users always finds fewer.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow.dataset as ds

from evaluation.arrays import Floats, Ints, ratio, stack, sum_by
from evaluation.bootstrap import Estimate, estimates
from evaluation.catalogue import Catalogue, codes, merchant_weights, row_per_video, size_classes
from evaluation.ids import Directory, id_words, segments
from evaluation.inputs import RunSource
from evaluation.tables import batches
from evaluation.truth import Truth

#: Weight of the user's own taste mixed into the list's, so that the divergence stays finite.
TASTE_SMOOTHING = 0.01


@dataclass(frozen=True, slots=True)
class Shown:
    """The top-k rows ``N`` of a run: request row, catalogue row of the video, user row."""

    request_N: Ints
    video_N: Ints
    user_N: Ints
    requests: int


def top_videos(source: RunSource, truth: Truth, catalogue: Catalogue, k: int) -> Shown:
    """Read the top ``k`` of a run for the requests of the truth; videos outside the catalogue drop out."""
    where = ds.field("rank") <= k
    if source.where is not None:
        where = where & source.where
    rows_of = Directory(truth.request_ids)
    requests, videos = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in batches("run", source.table, ["request_id", "video_id"], where):
        starts, ids = segments(batch.column("request_id"))
        row_N = np.repeat(rows_of.rows(id_words(ids)), np.diff(np.r_[starts, batch.num_rows]))
        video_N = catalogue.video_rows.rows(id_words(batch.column("video_id")))
        kept = (row_N >= 0) & (video_N >= 0)
        requests.append(row_N[kept])
        videos.append(video_N[kept])
    request_N = np.concatenate(requests)
    return Shown(request_N, np.concatenate(videos), truth.user_R[request_N], truth.requests)


def beyond_accuracy(
    source: RunSource, truth: Truth, catalogue: Catalogue, k: int, *, replicates: int, seed: int
) -> dict[str, Estimate]:
    """Every metric that the catalogue allows, named ``<metric>@k``."""
    shown = top_videos(source, truth, catalogue, k)
    lists = {"novelty": novelty(shown, catalogue), "repeat_rate": repeat_rate(shown, catalogue)}
    diversity = intra_list_diversity(shown, catalogue)
    taste = taste_divergence(shown, catalogue, truth)
    lists |= {n: v for n, v in (("diversity", diversity), ("taste_divergence", taste)) if v is not None}
    value_RM = stack(list(lists.values()), truth.requests)
    found = estimates(value_RM, truth.user_R, replicates=replicates, seed=seed)
    result = {f"{name}@{k}": estimate for name, estimate in zip(lists, found, strict=True)}
    whole = {"coverage": coverage(shown, catalogue), **exposure(shown, catalogue)}
    nothing = float("nan")
    users = len(np.unique(shown.user_N))
    return result | {f"{name}@{k}": Estimate(value, nothing, nothing, users) for name, value in whole.items()}


def novelty(shown: Shown, catalogue: Catalogue) -> Floats:
    """Mean self-information −log₂ p(video) of a list in bits, ≥ 0; more = less known videos [R].

    p is the video's share of impressions before the requests, with one added to each video. NaN for an
    empty list. Source: Zhou et al., PNAS 2010; Vargas and Castells, RecSys 2011.
    """
    share_V = (catalogue.shown_V + 1) / (catalogue.shown_V.sum() + catalogue.size)
    return _mean(shown, -np.log2(share_V)[shown.video_N])


def repeat_rate(shown: Shown, catalogue: Catalogue) -> Floats:
    """Share of a list that its user had been shown before, in [0, 1] [R]; 0 where seen videos are masked.

    NaN for an empty list.
    """
    pair_N = shown.user_N * catalogue.size + shown.video_N
    seen = np.unique(catalogue.history_user * catalogue.size + catalogue.history_video)
    return _mean(shown, np.isin(pair_N, seen).astype(np.float64))


def intra_list_diversity(shown: Shown, catalogue: Catalogue) -> Floats | None:
    """Mean distance of two videos of a list [R]: 1 − cosine of content embeddings, in [0, 2].

    Without embeddings the share of pairs with different categories, in [0, 1]. NaN for lists of fewer
    than two known videos; None where the catalogue has neither column.
    Source: Ziegler et al., Improving recommendation lists through topic diversification, WWW 2005.
    """
    embeddings = row_per_video(catalogue, "content_embedding")
    if embeddings is not None:
        flat = embeddings.combine_chunks()
        known_V = flat.is_valid().to_numpy(zero_copy_only=False)
        unit_VD = np.zeros((catalogue.size, flat.type.list_size))
        unit_VD[known_V] = np.asarray(flat.drop_null().flatten(), np.float64).reshape(-1, flat.type.list_size)
        norm_V = np.linalg.norm(unit_VD, axis=1)
        known_V &= norm_V > 0
        unit_VD[known_V] /= norm_V[known_V, None]
        kept = known_V[shown.video_N]
        row_N, vector_ND = shown.request_N[kept], unit_VD[shown.video_N[kept]]
        total_RD = np.stack([sum_by(row_N, column, shown.requests) for column in vector_ND.T], axis=1)
        alike_R = (total_RD**2).sum(axis=1)
        size_R = sum_by(row_N, np.ones(len(row_N)), shown.requests)
        return 1.0 - ratio(alike_R - size_R, size_R * (size_R - 1))
    categories = row_per_video(catalogue, "category")
    if categories is None:
        return None
    code_V, count = codes(categories)
    kept = code_V[shown.video_N] >= 0
    row_N = shown.request_N[kept]
    cell, pairs = np.unique(row_N * count + code_V[shown.video_N[kept]], return_counts=True)
    same_R = sum_by(cell // count, pairs * (pairs - 1.0), shown.requests)
    size_R = sum_by(row_N, np.ones(len(row_N)), shown.requests)
    return 1.0 - ratio(same_R, size_R * (size_R - 1))


def taste_divergence(shown: Shown, catalogue: Catalogue, truth: Truth) -> Floats | None:
    """Kullback-Leibler divergence of a list's categories from its user's history, in nats, 0 = alike [R].

    KL(p ‖ .99 q + .01 p) with p the categories of what the user was shown before, q those of the list.
    NaN for a user without history or an empty list; None without a category column.
    Source: Steck, Calibrated recommendations, RecSys 2018.
    """
    categories = row_per_video(catalogue, "category")
    if categories is None:
        return None
    code_V, count = codes(categories)

    def shares(group_N: Ints, video_N: Ints, groups: int) -> tuple[Ints, Floats]:
        kept = code_V[video_N] >= 0
        cell, rows = np.unique(group_N[kept] * count + code_V[video_N[kept]], return_counts=True)
        total = sum_by(cell // count, rows, groups)
        return cell, rows / total[cell // count]

    taste, p_of_taste = shares(catalogue.history_user, catalogue.history_video, truth.users)
    listed, q_of_listed = shares(shown.request_N, shown.video_N, shown.requests)
    begin_U = np.searchsorted(taste, np.arange(truth.users) * count)
    end_U = np.searchsorted(taste, (np.arange(truth.users) + 1) * count)
    width_R = (end_U - begin_U)[truth.user_R]
    row_N = np.repeat(np.arange(shown.requests), width_R)
    inside_N = np.arange(len(row_N)) - np.repeat(np.cumsum(width_R) - width_R, width_R)
    at_N = begin_U[truth.user_R[row_N]] + inside_N
    p_N = p_of_taste[at_N]
    cell_N = row_N * count + taste[at_N] % count
    place_N = np.minimum(np.searchsorted(listed, cell_N), max(len(listed) - 1, 0))
    hit_N = listed[place_N] == cell_N if len(listed) else np.zeros(len(cell_N), np.bool_)
    q_N = np.where(hit_N, q_of_listed[place_N] if len(listed) else 0.0, 0.0)
    mixed_N = (1 - TASTE_SMOOTHING) * q_N + TASTE_SMOOTHING * p_N
    divergence_R = sum_by(row_N, p_N * np.log(p_N / mixed_N), shown.requests)
    listed_R = np.bincount(listed // count, minlength=shown.requests) > 0
    return np.where((width_R > 0) & listed_R, divergence_R, np.nan)


def coverage(shown: Shown, catalogue: Catalogue) -> float:
    """Distinct videos in anybody's top ``k`` over the size of the catalogue, in [0, 1].

    NaN for an empty catalogue. Source: Ge, Delgado-Battenfeld and Jannach, Beyond accuracy, RecSys 2010.
    """
    return len(np.unique(shown.video_N)) / catalogue.size if catalogue.size else float("nan")


def exposure(shown: Shown, catalogue: Catalogue) -> dict[str, float]:
    """How evenly exposure falls on creators and merchants; only what the catalogue knows.

    ``creator_gini`` and ``merchant_gini``: see :func:`gini`, a video's exposure being split evenly over
    its tags' merchants. ``small_merchant_share``: the part of merchant exposure that goes to small
    merchants, the ones that together had the last 20 % of impressions before; .2 keeps things as they are.
    """
    found = {}
    exposed_V = np.bincount(shown.video_N, minlength=catalogue.size).astype(np.float64)
    creators = row_per_video(catalogue, "creator_id")
    if creators is not None:
        creator_V, count = codes(creators)
        known_V = creator_V >= 0
        found["creator_gini"] = gini(sum_by(creator_V[known_V], exposed_V[known_V], count))
    video_P, merchant_P, share_P, merchants = merchant_weights(catalogue)
    if merchants:
        exposed_M = sum_by(merchant_P, share_P * exposed_V[video_P], merchants)
        before_M = sum_by(merchant_P, share_P * catalogue.shown_V[video_P], merchants)
        found["merchant_gini"] = gini(exposed_M)
        small_M = size_classes(before_M) == "small"
        total = exposed_M.sum()
        found["small_merchant_share"] = float(exposed_M[small_M].sum() / total) if total else float("nan")
    return found


def gini(exposure_X: Floats) -> float:
    """Gini coefficient of exposure over all ``X``, those without any included: 0 = even, 1 = all on one.

    NaN where nothing was exposed. Source: Gini 1912; Fleder and Hosanagar, Management Science 2009.
    """
    total, count = float(exposure_X.sum()), len(exposure_X)
    if not total:
        return float("nan")
    rank = np.arange(1, count + 1)
    return float((2 * rank - count - 1) @ np.sort(exposure_X) / (count * total))


def _mean(shown: Shown, weight_N: Floats) -> Floats:
    size_R = sum_by(shown.request_N, np.ones(len(shown.request_N)), shown.requests)
    return ratio(sum_by(shown.request_N, weight_N, shown.requests), size_R)
