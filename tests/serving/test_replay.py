"""Replay and recommend against the definition of a held-out request, written out over the raw log."""

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shopreel
from data.dataset import Dataset, read_info
from data.history import UserRequest, history_from_records
from models.baselines import Baseline
from models.bundle import Bundle
from serving.held_out import user_requests
from serving.pipeline import Pipeline
from tests.serving.conftest import Published
from tests.serving.test_publish import publish

DAY_MS = 86_400_000


def command(name: str, published: Published, out: Path, *further: str) -> int:
    words = [f"bundle={published.bundles}/CURRENT", f"dataset={published.market}", f"out={out}"]
    return shopreel.main([name, *words, *further])


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def ms(moment) -> int:
    return math.floor(moment.timestamp() * 1000)


@pytest.fixture(scope="module")
def bundle(published: Published) -> Bundle:
    return Bundle.open(published.bundles)


@pytest.fixture(scope="module")
def log(published: Published):
    """Events and actions as dicts with ``time_ms``, events in order of time."""
    dataset = Dataset(published.market, read_info(published.market))
    events = [row | {"time_ms": ms(row["event_time"])} for row in dataset.read("events").to_pylist()]
    actions = [row | {"time_ms": ms(row["action_time"])} for row in dataset.read("actions").to_pylist()]
    return sorted(events, key=lambda row: row["event_time"]), actions


@pytest.fixture(scope="module")
def expected(bundle: Bundle, log):
    """Per user of the test split: videos met before it, and unseen long views in it."""
    events, actions = log
    begin = bundle.manifest.split["test_ms"]
    end = bundle.manifest.split["end_ms"]
    seen, truth, users = {}, {}, set()
    for row in (*events, *actions):
        if row["time_ms"] < begin:
            seen.setdefault(row["user_id"], set()).add(row["video_id"])
    for row in events:
        if begin <= row["time_ms"] < end:
            users.add(row["user_id"])
            if row["long_view"] and row["video_id"] not in seen.get(row["user_id"], set()):
                truth.setdefault(row["user_id"], set()).add(row["video_id"])
    return seen, truth, users


@pytest.fixture(scope="module")
def replayed(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replay") / "out"
    assert command("replay", published, out, "gain=long_view", "k=50", "users_per_batch=16") == 0
    return out


def lists_of(path: Path) -> dict[str, list[dict]]:
    """Rows of a run table by request, checked to be ranks 1, 2, … with falling scores."""
    lists: dict[str, list[dict]] = {}
    for row in pq.read_table(path).to_pylist():
        lists.setdefault(row["request_id"], []).append(row)
    for rows in lists.values():
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        assert all(a["score"] >= b["score"] for a, b in itertools.pairwise(rows))
        assert len({row["video_id"] for row in rows}) == len(rows)
    return lists


def test_the_truth_is_the_definition(replayed: Path, expected, bundle: Bundle):
    seen, truth, users = expected
    table = pq.read_table(replayed / "truth.parquet")
    found: dict[int, set[int]] = {}
    for row in table.to_pylist():
        assert row["request_id"] == f"test:{row['user_id']}"
        assert row["gain"] == 1.0
        assert row["long_view"] is True
        found.setdefault(row["user_id"], set()).add(row["video_id"])
        new = bundle.video_train_count[bundle.catalogue.rows([row["video_id"]])[0]] == 0
        assert row["is_new_video"] == new
        bounds = row["history"].rstrip("+").split("-")
        assert (
            int(bounds[0])
            <= len(seen.get(row["user_id"], ()))
            <= int(bounds[1] if len(bounds) > 1 else 10**9)
        )
    assert found == truth
    assert {"market", "surface", "click"} <= set(table.column_names)
    protocol = json.loads((replayed / "protocol.json").read_text())
    assert protocol["requests_with_truth"] == len(truth)
    assert protocol["requests_without_truth"] == len(users) - len(truth)
    assert protocol["catalogue_size"] == len(bundle.catalogue) - 1
    assert protocol["split"]["hash"] == bundle.manifest.split["hash"]
    assert protocol["degraded"] == {}
    assert {"seen_mask", "tie_break", "gain"} <= set(protocol)


def test_the_exact_run_is_the_offline_score_of_every_unseen_video(
    replayed: Path, published: Published, bundle: Bundle, expected
):
    seen, truth, _ = expected
    dataset = Dataset(published.market, read_info(published.market))
    (batch,) = user_requests(bundle, dataset, "test", gain="long_view", k=1, rules=False, memory_limit_gb=1.0)
    vectors = dict(
        zip(
            batch.request_ids.to_pylist(),
            bundle.encoder.encode([r.user for r in batch.requests]),
            strict=True,
        )
    )
    lists = lists_of(replayed / "run_exact.parquet")
    assert set(lists) == set(vectors) == {f"test:{user}" for user in truth}
    rows = {video: row for row, video in enumerate(bundle.catalogue.known.to_pylist(), 1)}
    for request, answer in lists.items():
        score = bundle.video_vectors.astype(np.float64) @ vectors[request].astype(np.float64)
        met = {rows[video] for video in seen.get(int(request.removeprefix("test:")), ())}
        order = sorted(
            (row for row in rows.values() if row not in met), key=lambda row: (-np.float32(score[row]), row)
        )
        assert [rows[row["video_id"]] for row in answer] == order[:50]
        np.testing.assert_allclose([row["score"] for row in answer], score[order[:50]], atol=1e-5)


def test_without_an_approximate_index_and_rules_all_stages_agree(replayed: Path):
    exact, index, feed = (
        pq.read_table(replayed / f"run_{stage}.parquet").drop_columns("stage")
        for stage in ("exact", "index", "feed")
    )
    assert exact.equals(index)
    assert exact.equals(feed)
    assert set(pq.read_table(replayed / "run_index.parquet")["stage"].to_pylist()) == {"index"}
    assert not (replayed / "run_ranker.parquet").exists()
    assert not list(replayed.glob(".*"))


def test_popularity_is_the_count_before_the_split_and_the_best_window_is_kept(
    replayed: Path, expected, bundle, log
):
    events, actions = log
    seen, truth, _ = expected
    begin = bundle.manifest.split["test_ms"]
    rows = {video: row for row, video in enumerate(bundle.catalogue.known.to_pylist(), 1)}
    recalls, best = {}, {}
    for days in (1, 3, 7, 14, 0):
        counts = dict.fromkeys(rows, 0)
        for row in events:
            if (
                row["long_view"]
                and (days == 0 or row["time_ms"] >= begin - days * DAY_MS)
                and row["time_ms"] < begin
            ):
                counts[row["video_id"]] += 1
        for row in actions:
            if row["action"] == "long_view" and begin - (days or 999) * DAY_MS <= row["time_ms"] < begin:
                counts[row["video_id"]] += 1
        order = sorted(
            (video for video in rows if counts[video]), key=lambda video: (-counts[video], rows[video])
        )
        total = 0.0
        for user, right in truth.items():
            answer = [video for video in order if video not in seen.get(user, set())][:50]
            best.setdefault(days, {})[f"test:{user}"] = [(video, counts[video]) for video in answer]
            total += len(right & set(answer[:20])) / len(right)
        recalls[str(days or "all")] = total / len(truth)
    stated = json.loads((replayed / "protocol.json").read_text())["popularity"]
    assert stated["recall@20_by_window_days"] == pytest.approx(recalls)
    chosen = stated["window_days"]
    assert recalls[str(chosen)] == max(recalls.values())
    lists = lists_of(replayed / "run_popularity.parquet")
    found = {name: [(row["video_id"], row["score"]) for row in rows] for name, rows in lists.items()}
    assert found == best[0 if chosen == "all" else chosen]


def test_the_report_of_evaluate_agrees_with_counting_by_hand(replayed: Path, expected, tmp_path: Path):
    _, truth, _ = expected
    assert shopreel.main(["evaluate", f"run={replayed}", f"out={tmp_path / 'report'}", "replicates=100"]) == 0
    text = (tmp_path / "report" / "report.json").read_text()
    lists = lists_of(replayed / "run_feed.parquet")
    recall = np.mean(
        [
            len({row["video_id"] for row in lists[f"test:{user}"][:20]} & right) / len(right)
            for user, right in truth.items()
        ]
    )
    values = [value for value in numbers(json.loads(text), "recall@20")]
    assert any(value == pytest.approx(recall, abs=1e-9) for value in values), (recall, values)


def numbers(value, name):
    """Every ``value`` under a key called ``name``, wherever it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == name and isinstance(inner, dict) and "value" in inner:
                yield inner["value"]
            yield from numbers(inner, name)


def test_rules_leave_out_of_the_feed_what_the_market_forbids(
    published: Published, tmp_path: Path, bundle: Bundle
):
    assert command("replay", published, tmp_path / "out", "gain=long_view", "rules=on", "baseline=none") == 0
    exact, feed = (lists_of(tmp_path / "out" / f"run_{stage}.parquet") for stage in ("exact", "feed"))
    facts = Pipeline(bundle).facts
    market = {
        row["request_id"]: row["market"]
        for row in pq.read_table(tmp_path / "out" / "truth.parquet").to_pylist()
    }
    rows = {video: row for row, video in enumerate(bundle.catalogue.known.to_pylist(), 1)}
    assert not (tmp_path / "out" / "run_popularity.parquet").exists()
    changed = 0
    for request, answer in feed.items():
        allowed = facts.eligible(market[request])
        assert all(allowed[rows[row["video_id"]]] for row in answer)
        kept = [row["video_id"] for row in exact[request] if allowed[rows[row["video_id"]]]]
        assert [row["video_id"] for row in answer][: len(kept)] == kept
        changed += len(kept) < len(exact[request])
    assert changed > 0


def test_slates_are_ranked_by_what_was_known_when_they_were_shown(
    published: Published, tmp_path: Path, bundle: Bundle, log
):
    events, actions = log
    out = tmp_path / "out"
    assert command("replay", published, out, "gain=click", "requests=slate") == 0
    begin, end = (bundle.manifest.split[name] for name in ("test_ms", "end_ms"))
    slates: dict[str, list[dict]] = {}
    for row in events:
        if begin <= row["time_ms"] < end and row["request_id"] is not None:
            slates.setdefault(row["request_id"], []).append(row)
    clicked = {name: {row["video_id"] for row in rows if row["click"]} for name, rows in slates.items()}
    lists = lists_of(out / "run_feed.parquet")
    assert set(lists) == {name for name, right in clicked.items() if right}
    found: dict[str, set] = {}
    for row in pq.read_table(out / "truth.parquet").to_pylist():
        found.setdefault(row["request_id"], set()).add(row["video_id"])
    assert found == {name: right for name, right in clicked.items() if right}
    rows = {video: row for row, video in enumerate(bundle.catalogue.known.to_pylist(), 1)}
    steps = bundle.encoder.model.shape.max_steps
    surfaces = {name: row for row, name in enumerate(bundle.surfaces.known.to_pylist(), 1)}
    for name in sorted(lists)[:25]:
        shown, answer = slates[name], lists[name]
        assert {row["video_id"] for row in answer} == {row["video_id"] for row in shown}
        user, moment = shown[0]["user_id"], min(row["time_ms"] for row in shown)
        earlier = [row for row in (*events, *actions) if row["user_id"] == user and row["time_ms"] < moment]
        known = history_from_records(
            [{key: value for key, value in row.items() if not key.endswith("_time")} for row in earlier],
            bundle.catalogue, bundle.surfaces,
        )  # fmt: skip
        request = UserRequest(
            int(bundle.users.rows([user])[0]), known.last(steps), moment, surfaces.get(shown[0]["surface"], 0)
        )
        videos = [row["video_id"] for row in answer]
        scores = Pipeline(bundle).score(request, np.array([rows[video] for video in videos]))
        np.testing.assert_allclose([row["score"] for row in answer], scores, atol=1e-5)
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["requests_without_truth"] == sum(not right for right in clicked.values())


def test_recommend_gives_every_user_of_the_split_the_feed_of_replay(
    published: Published, tmp_path: Path, replayed: Path, expected
):
    _, truth, users = expected
    run = tmp_path / "run.parquet"
    assert command("recommend", published, run, "k=50", 'rules="off"') == 0
    lists, feed = lists_of(run), lists_of(replayed / "run_feed.parquet")
    assert set(lists) == {f"test:{user}" for user in users}
    assert len(users) > len(truth)
    for name, rows in feed.items():
        assert [row["video_id"] for row in lists[name]] == [row["video_id"] for row in rows]
        np.testing.assert_allclose([r["score"] for r in lists[name]], [r["score"] for r in rows], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["run.parquet"]


def test_validation_is_replayed_without_knowing_the_test_day(
    published: Published, tmp_path: Path, bundle, log
):
    events, actions = log
    early = Published(published.market, published.run, tmp_path / "bundles", "")
    assert publish(early, early.bundles, "as_of=validation") == 0
    assert command("replay", early, tmp_path / "out", "gain=any", "split=validation", "baseline=none") == 0
    begin, end = (bundle.manifest.split[name] for name in ("validation_ms", "test_ms"))
    users = {row["user_id"] for row in events if begin <= row["time_ms"] < end}
    table = pq.read_table(tmp_path / "out" / "truth.parquet")
    assert {row["user_id"] for row in table.to_pylist()} <= users
    assert table["request_id"][0].as_py().startswith("validation:")
    met: dict[int, set] = {}
    for row in (*events, *actions):
        if row["time_ms"] < begin:
            met.setdefault(row["user_id"], set()).add(row["video_id"])
    for name, rows in lists_of(tmp_path / "out" / "run_exact.parquet").items():
        assert not {row["video_id"] for row in rows} & met.get(int(name.removeprefix("validation:")), set())


def test_towers_that_have_learnt_from_validation_are_not_asked_about_it(
    published: Published, tmp_path: Path, capsys
):
    run = shutil.copytree(published.run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    assert record["splits"] == 1
    (run / "run.json").write_text(json.dumps(record | {"splits": 2}))
    refit = Published(published.market, run, tmp_path / "bundles", "")
    assert publish(refit, refit.bundles, "as_of=validation") == 0
    capsys.readouterr()
    assert command("replay", refit, tmp_path / "out", "split=validation", "baseline=none") == 2
    assert "towers have learnt from the validation split" in capsys.readouterr().err
    assert command("replay", refit, tmp_path / "out", "split=test", "baseline=none") == 0


REPLAY_REFUSALS = {
    "gain=purchases": "choose auto, any or one of",
    "k=0": "k=0 must be at least 1",
    "popularity_days=[]": "popularity_days must list",
    "split=train": "split",
    "bundle=nowhere": "make one with shopreel publish",
    "dataset=nowhere": "no such directory",
}


@pytest.mark.parametrize("word", REPLAY_REFUSALS)
def test_replay_refuses_in_one_line_and_leaves_nothing(
    published: Published, tmp_path: Path, capsys, word: str
):
    code = command("replay", published, tmp_path / "out", "gain=long_view", word)
    assert REPLAY_REFUSALS[word] in refusal(capsys, code)
    assert not list(tmp_path.iterdir())


def test_a_log_without_any_truth_is_refused(published: Published, tmp_path: Path, capsys):
    quiet = tmp_path / "quiet"
    (quiet / "events").mkdir(parents=True)
    (quiet / "dataset.json").write_text((published.market / "dataset.json").read_text())
    table = Dataset(published.market, read_info(published.market)).read("events")
    nothing = pa.array([False] * table.num_rows)
    index = table.column_names.index("long_view")
    pq.write_table(table.set_column(index, "long_view", nothing), quiet / "events" / "part.parquet")
    code = command("replay", published, tmp_path / "out", "gain=long_view", f"dataset={quiet}")
    assert "no request of the test split has an unseen video with long_view true" in refusal(capsys, code)
    assert not (tmp_path / "out").exists()
    code = command(
        "replay", published, tmp_path / "out", f"dataset={quiet}", "requests=slate", "gain=long_view"
    )
    assert "no request of the test split" in refusal(capsys, code)


def test_what_is_there_is_not_overwritten(published: Published, tmp_path: Path, replayed: Path, capsys):
    assert "overwrite=true" in refusal(capsys, command("replay", published, replayed, "gain=long_view"))
    run = tmp_path / "run.parquet"
    run.write_bytes(b"mine")
    assert "overwrite=true" in refusal(capsys, command("recommend", published, run))
    assert run.read_bytes() == b"mine"
    assert "is a directory" in refusal(capsys, command("recommend", published, tmp_path))


@pytest.fixture(scope="module")
def counting(published: Published, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of the counting models on the prepared data of the bundle."""
    root, prepared = tmp_path_factory.mktemp("counting"), published.run.parent / "prepared"
    for kind in ("item_knn", "ease", "ials", "popularity"):
        shopreel.run_command("train", [f"model={kind}", f"prepared={prepared}", f"out={root / kind}"])
    return {path.name: path for path in root.iterdir()}


def test_trained_baselines_rank_the_same_requests_by_what_they_learnt(
    published: Published, tmp_path: Path, counting, log, bundle
):
    runs = f"baselines=[{counting['ease']},{counting['item_knn']},{counting['ials']}]"
    assert command("replay", published, tmp_path / "with", "gain=any", "k=10", runs) == 0
    assert command("replay", published, tmp_path / "without", "gain=any", "k=10") == 0
    feed = lists_of(tmp_path / "with" / "run_feed.parquet")
    assert feed == lists_of(tmp_path / "without" / "run_feed.parquet")
    events, actions = log
    met: dict[int, set] = {}
    for row in (*events, *actions):
        if row["time_ms"] < bundle.manifest.split["test_ms"]:
            met.setdefault(row["user_id"], set()).add(row["video_id"])
    weights = Baseline.load(counting["ease"] / "model")
    for kind in ("ease", "item_knn", "ials"):
        lists = lists_of(tmp_path / "with" / f"run_{kind}.parquet")
        assert lists.keys() == feed.keys()
        assert len({tuple(row["video_id"] for row in rows) for rows in lists.values()}) > 10
        for name, rows in lists.items():
            assert not {row["video_id"] for row in rows} & met.get(int(name.removeprefix("test:")), set())
            scores = [row["score"] for row in rows]
            assert scores == sorted(scores, reverse=True)
    dataset = Dataset(published.market, read_info(published.market))
    (batch,) = user_requests(
        bundle, dataset, "test", gain="any", k=10, rules=False, memory_limit_gb=1.0, history_steps=10**6
    )
    user = batch.requests[0]
    (score_N,) = weights.scores([weights.engaged(user.user.history)])
    score_N[[0, *batch.seen[0]]] = -np.inf
    best = bundle.catalogue.ids(np.argsort(-score_N, kind="stable")[:10]).to_pylist()
    rows = lists_of(tmp_path / "with" / "run_ease.parquet")[batch.request_ids[0].as_py()]
    assert [row["video_id"] for row in rows] == best


def test_training_names_only_baselines_that_replay_ranks(published: Published, tmp_path: Path, capsys):
    prepared = published.run.parent / "prepared"
    for kind, told in (("popularity", False), ("item_knn", True)):
        out = tmp_path / kind
        shopreel.run_command("train", [f"model={kind}", f"prepared={prepared}", f"out={out}"])
        assert (f"baselines=[{out}]" in capsys.readouterr().out) is told


def test_baselines_of_other_data_or_kind_are_refused(published: Published, tmp_path: Path, counting, capsys):
    def refused(path: Path) -> str:
        assert command("replay", published, tmp_path / "out", f"baselines=[{path}]") == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "replay ranks item_knn, ease, ials" in refused(counting["popularity"])
    assert "no " in refused(tmp_path / "nowhere")
    other = Path(shutil.copytree(counting["ease"], tmp_path / "ease"))
    record = (other / "run.json").read_text()
    (other / "run.json").write_text(record.replace(bundle_hash(published), "0" * 64))
    assert "other prepared data" in refused(other)


def bundle_hash(published: Published) -> str:
    return str(Bundle.open(published.bundles).manifest.models["two_tower"]["prepared"])
