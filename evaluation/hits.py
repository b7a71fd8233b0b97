"""Joining a run with the truth: where in each request's ranking did the right videos stand?

The run is streamed once in batches of whole requests, so that 100 M rows need no more memory than the
hits they contain.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from data.errors import ContractError
from evaluation.arrays import Bools, Floats, Ints, Words
from evaluation.ids import Directory, id_words, is_text, mix, segments
from evaluation.tables import BATCH_ROWS, RUN, batches, plain_ids, refuse_nulls
from evaluation.truth import Truth


@dataclass(frozen=True, slots=True)
class Hits:
    """Right videos a run ranked, ``H`` of them sorted by request and rank, over ``R`` truth requests.

    ``depth_R`` is the number of ranked rows (0 = the run does not cover this request). ``truth_H`` is
    the row of the hit in the truth. Facts about the whole file serve the protocol section.
    """

    depth_R: Ints
    request_H: Ints
    rank_H: Ints
    truth_H: Ints
    rows: int
    requests_outside_truth: int
    requests_of_equal_scores: int
    requests_out_of_score_order: int
    requests_of_tied_scores: int


class NotGroupedError(Exception):
    """A request's rows are not together in the file: sort it and start over."""


def find_hits(
    key: str, run: ds.Dataset, truth: Truth, where: ds.Expression | None = None, *, renumber: bool = False
) -> Hits:
    """Stream a run table against the truth.

    Refused, naming the request: a null or a score that is not finite, a rank gap or repeat (ranks are
    1, 2, … within a request), a video twice in a request. Rows need not be sorted. Requests that the
    truth does not know are counted and left out. ``renumber`` closes the rank gaps that ``where`` left.
    """
    name = f"{key}={run.files[0]}"

    def checked(stream: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in stream:
            refuse_nulls(key, run, batch, list(RUN))
            yield batch

    source = checked(batches(key, run, list(RUN), where))
    try:
        return _Join(name, truth, grouped=False, renumber=renumber).run(source)
    except NotGroupedError:
        source = checked(batches(key, run, list(RUN), where))
        table = pa.Table.from_batches([_decoded(batch) for batch in source])
        table = table.sort_by([("request_id", "ascending"), ("rank", "ascending")]).combine_chunks()
        return _Join(name, truth, grouped=True, renumber=renumber).run(
            iter(table.to_batches(max_chunksize=BATCH_ROWS))
        )


@dataclass(slots=True)
class _Chunk:
    """Whole requests in a row: ``row_S`` and ``length_S`` of each, then their rows flattened ``N``."""

    row_S: Ints
    length_S: Ints
    video_N: Words
    rank_N: Ints
    score_N: Floats

    def split_last(self) -> "tuple[_Chunk, _Chunk]":
        cut = len(self.video_N) - int(self.length_S[-1])
        return self._cut(slice(None, -1), slice(None, cut)), self._cut(slice(-1, None), slice(cut, None))

    def _cut(self, segments: slice, rows: slice) -> "_Chunk":
        return _Chunk(
            self.row_S[segments],
            self.length_S[segments],
            self.video_N[rows],
            self.rank_N[rows],
            self.score_N[rows],
        )

    def after(self, earlier: "_Chunk | None") -> "_Chunk":
        if earlier is None:
            return self
        row_S = np.r_[earlier.row_S, self.row_S]
        length_S = np.r_[earlier.length_S, self.length_S]
        joint = len(earlier.row_S)
        if joint < len(row_S) and row_S[joint - 1] == row_S[joint]:
            length_S[joint - 1] += length_S[joint]
            row_S, length_S = np.delete(row_S, joint), np.delete(length_S, joint)
        return _Chunk(
            row_S, length_S, np.r_[earlier.video_N, self.video_N], np.r_[earlier.rank_N, self.rank_N],
            np.r_[earlier.score_N, self.score_N],
        )  # fmt: skip


class _Join:
    def __init__(self, name: str, truth: Truth, *, grouped: bool, renumber: bool) -> None:
        self.name, self.truth, self.grouped, self.renumber = name, truth, grouped, renumber
        self.requests = Directory(truth.request_ids)
        self.video_T = id_words(truth.video_T)
        self.right_R = np.bincount(truth.request_T, minlength=truth.requests)
        self.first_R = np.cumsum(self.right_R) - self.right_R
        self.depth_R = np.zeros(truth.requests, np.int64)
        self.found: list[tuple[Ints, Ints, Ints]] = []
        self.outside: list[pa.Array] = []
        self.rows = self.equal = self.unordered = self.tied = 0

    def run(self, stream: Iterator[pa.RecordBatch]) -> Hits:
        held: _Chunk | None = None
        for batch in stream:
            self.rows += batch.num_rows
            chunk = self._known(batch)
            if len(chunk.row_S):
                whole, held = chunk.after(held).split_last()
                self._take(whole)
        if held is not None:
            self._take(held)
        request_H, rank_H, truth_H = (np.concatenate([np.zeros(0, np.int64), *p]) for p in self._parts())
        order = np.lexsort((rank_H, request_H))
        outside = len(pa.chunked_array(self.outside).unique()) if self.outside else 0
        return Hits(
            depth_R=self.depth_R, request_H=request_H[order], rank_H=rank_H[order], truth_H=truth_H[order],
            rows=self.rows, requests_outside_truth=outside, requests_of_equal_scores=self.equal,
            requests_out_of_score_order=self.unordered, requests_of_tied_scores=self.tied,
        )  # fmt: skip

    def _parts(self) -> list[list[Ints]]:
        return [[hit[part] for hit in self.found] for part in range(3)]

    def _known(self, batch: pa.RecordBatch) -> _Chunk:
        """The rows of ``batch`` whose request the truth knows, as numbers."""
        if is_text(batch.column("video_id")) != is_text(self.truth.video_T):
            mine, other = ("string", "int64") if is_text(self.truth.video_T) else ("int64", "string")
            raise ContractError(f"{self.name}: video_id is {other}, in the truth {mine}; cast one of them")
        starts, ids = segments(batch.column("request_id"))
        if is_text(ids) != is_text(self.truth.request_ids):
            mine, other = ("string", "int64") if is_text(self.truth.request_ids) else ("int64", "string")
            raise ContractError(f"{self.name}: request_id is {other}, in the truth {mine}; cast one of them")
        row_S = self.requests.rows(id_words(ids))
        length_S = np.diff(np.r_[starts, batch.num_rows])
        unknown = row_S < 0
        if unknown.any():
            self.outside.append(ids.filter(pa.array(unknown)).unique())
            keep = np.repeat(~unknown, length_S)
            batch = batch.filter(pa.array(keep))
            row_S, length_S = row_S[~unknown], length_S[~unknown]
        return _Chunk(
            row_S=row_S,
            length_S=length_S,
            video_N=id_words(batch.column("video_id")),
            rank_N=batch.column("rank").cast(pa.int64(), safe=False).to_numpy(zero_copy_only=False),
            score_N=batch.column("score").cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False),
        )

    def _take(self, chunk: _Chunk) -> None:
        if not len(chunk.row_S):
            return
        if self.depth_R[chunk.row_S].any() or len(np.unique(chunk.row_S)) != len(chunk.row_S):
            raise NotGroupedError
        self.depth_R[chunk.row_S] = chunk.length_S
        segment_N = np.repeat(np.arange(len(chunk.row_S)), chunk.length_S)
        start_S = np.r_[0, np.cumsum(chunk.length_S)[:-1]]
        self._refuse(~np.isfinite(chunk.score_N), chunk, segment_N, "has a score that is not a finite number")
        expected_N = np.arange(1, len(segment_N) + 1) - start_S[segment_N]
        if not np.array_equal(chunk.rank_N, expected_N):
            order = np.lexsort((chunk.rank_N, segment_N))
            chunk.video_N, chunk.rank_N, chunk.score_N = (
                chunk.video_N[order], chunk.rank_N[order], chunk.score_N[order],
            )  # fmt: skip
            if self.renumber:
                chunk.rank_N = expected_N
            bad_N = chunk.rank_N != expected_N
            if bad_N.any() and not self.grouped:
                raise NotGroupedError
            self._refuse(bad_N, chunk, segment_N, "has ranks that are not 1, 2, 3, … without gap or repeat")
        self._refuse_duplicates(chunk, segment_N)
        self._look_at_scores(chunk.score_N, start_S, segment_N)
        at, truth_H = self._match(chunk, segment_N)
        self.found.append((chunk.row_S[segment_N[at]], chunk.rank_N[at], truth_H))

    def _match(self, chunk: _Chunk, segment_N: Ints) -> tuple[Ints, Ints]:
        """Rows of the chunk that are right, and the truth row of each.

        A bitmap of the chunk's own right videos, small enough for the cache, sends nearly all rows away
        at once; the rest is looked up by a 64-bit hash and then compared.
        """
        right_S = self.right_R[chunk.row_S]
        segment_T = np.repeat(np.arange(len(right_S)), right_S)
        inside_T = np.arange(len(segment_T)) - np.repeat(np.cumsum(right_S) - right_S, right_S)
        truth_T = self.first_R[chunk.row_S][segment_T] + inside_T
        key_T = mix(self.video_T[truth_T], segment_T)
        order = np.argsort(key_T)
        key_T, segment_T, truth_T = key_T[order], segment_T[order], truth_T[order]
        shift = np.uint64(64 - max(10, int(len(key_T) * 16).bit_length()))
        maybe = np.zeros(1 << (64 - int(shift)), np.bool_)
        maybe[key_T >> shift] = True
        key_N = mix(chunk.video_N, segment_N)
        at = np.flatnonzero(maybe[key_N >> shift])
        place = np.searchsorted(key_T, key_N[at])
        found_at, found_truth = [], []
        while len(at):
            same = key_T[np.minimum(place, len(key_T) - 1)] == key_N[at]
            same &= place < len(key_T)
            at, place = at[same], place[same]
            video_equal = self.video_T[truth_T[place]] == chunk.video_N[at]
            match = video_equal & (segment_T[place] == segment_N[at])
            found_at.append(at[match])
            found_truth.append(truth_T[place[match]])
            at, place = at[~match], place[~match] + 1
        none = np.zeros(0, np.int64)
        rows, truth = np.concatenate([none, *found_at]), np.concatenate([none, *found_truth])
        sequence = np.argsort(rows)
        return rows[sequence], truth[sequence]

    def _refuse(self, bad_N: Bools, chunk: _Chunk, segment_N: Ints, what: str) -> None:
        if bad_N.any():
            row = chunk.row_S[segment_N[int(np.argmax(bad_N))]]
            raise ContractError(
                f"{self.name}: request_id {self.truth.request_ids[int(row)].as_py()!r} {what}"
            )

    def _refuse_duplicates(self, chunk: _Chunk, segment_N: Ints) -> None:
        lengths = chunk.length_S
        if (lengths == lengths[0]).all():
            sorted_SL = np.sort(chunk.video_N.reshape(len(lengths), -1), axis=1)
            repeated = bool((sorted_SL[:, 1:] == sorted_SL[:, :-1]).any())
        else:
            key_N = np.sort(mix(chunk.video_N, segment_N))
            repeated = bool((key_N[1:] == key_N[:-1]).any())
        if repeated:
            order = np.lexsort((chunk.video_N, segment_N))
            video, segment = chunk.video_N[order], segment_N[order]
            same = np.r_[False, (video[1:] == video[:-1]) & (segment[1:] == segment[:-1])]
            self._refuse(same, chunk, segment, "ranks a video twice; drop the duplicates")

    def _look_at_scores(self, score_N: Floats, start_S: Ints, segment_N: Ints) -> None:
        inside = segment_N[1:] == segment_N[:-1]
        several_S = np.bincount(segment_N) > 1
        flat_S = np.minimum.reduceat(score_N, start_S) == np.maximum.reduceat(score_N, start_S)
        self.equal += int((flat_S & several_S).sum())
        step_N = np.diff(score_N)
        self.unordered += len(np.unique(segment_N[1:][inside & (step_N > 0)]))
        self.tied += len(np.unique(segment_N[1:][inside & (step_N == 0)]))


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    ids = ("request_id", "video_id")
    columns = [plain_ids(batch.column(n)) if n in ids else batch.column(n) for n in batch.schema.names]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
