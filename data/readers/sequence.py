"""Sequence text, ``user video video …`` a line, as the sequential and the graph literature share it.

One file is ordered in time (S3-Rec; also SASRec's ``user video`` a line): the last video of a user is for
test, the one before for validation. A ``train.txt`` and ``test.txt`` pair is unordered (LightGCN, UltraGCN).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from data.dataset import DatasetInfo
from data.errors import ConfigError, ContractError
from data.readers.draft import Draft, ReaderOptions
from data.readers.expressions import DAY_US, PLACED_FROM_US, SECOND_US, ids_of, without_duplicates
from data.readers.files import find
from data.readers.report import ImportReport
from data.readers.staging import Staging

TRAIN = ("train.txt",)
VALIDATION = ("valid.txt", "validation.txt", "val.txt")
TEST = ("test.txt",)
#: Users with fewer videos than this have nothing to hold out.
LEAVE_ONE_OUT_FROM = 3


def read(staging: Staging, raw: Path, options: ReaderOptions) -> Draft:
    """Read one text file, or a directory with a train and test pair (and maybe a validation file)."""
    train, validation, test = (
        find(raw, names) if raw.is_dir() else [] for names in (TRAIN, VALIDATION, TEST)
    )
    if train or test:
        if not (train and test):
            raise ConfigError(f"raw={raw}: has only one of train.txt and test.txt; add the other")
        return _read_sets(staging, raw, (train, validation, test), options)
    return read_sequences(staging, _only_file(raw))


def _only_file(raw: Path) -> Path:
    if raw.is_file():
        return raw
    found = find(raw, ("*.txt",))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"raw={raw}: found neither train.txt with test.txt nor one *.txt (plain or .gz)")
    names = ", ".join(file.name for file in found[:5])
    raise ConfigError(f"raw={raw}: holds several texts ({names}); name one, as raw={found[0]}")


def read_sequences(staging: Staging, file: Path) -> Draft:
    """Read one ordered text, leave-one-out; attributes in ``NAME_item2attributes.json`` become tags."""
    report = ImportReport()
    rows, kind = _videos_of_users(staging, [[file]], report)
    place = ibis.window(group_by=rows.user_id, order_by=[rows.line, rows.step])
    rows = rows.mutate(
        first=ibis.row_number().over(place), count=rows.count().over(ibis.window(group_by=rows.user_id))
    )
    left = rows["count"] - rows["first"]
    held_out = rows["count"] >= LEAVE_ONE_OUT_FROM
    events = rows.select(
        user_id=rows.user_id,
        video_id=rows.video_id,
        event_time=rows["first"] * SECOND_US + PLACED_FROM_US,
        click=ibis.literal(True),
        split=ibis.cases(
            (held_out & (left == 1), "test"), (held_out & (left == 2), "validation"), else_="train"
        ),
    )
    stem = file.name.removesuffix(".gz").removesuffix(".txt")
    info = _info(stem, ordered=True)
    info.notes = [
        "only the order of a user's events is real: they are placed one second apart from 2000-01-01",
        "split: a user's last event is test and the one before validation; users with fewer than "
        f"{LEAVE_ONE_OUT_FROM} are train only",
        "the log tells only what happened: click is true or unknown, never false",
    ]
    tables = {"events": events}
    attributes = file.with_name(f"{stem}_item2attributes.json")
    if attributes.exists():
        tables["videos"] = _tagged(staging, attributes, rows, kind, report)
    return Draft(info, tables, report)


def _read_sets(
    staging: Staging, raw: Path, parts: tuple[list[Path], list[Path], list[Path]], options: ReaderOptions
) -> Draft:
    report = ImportReport()
    rows, _ = _videos_of_users(staging, parts, report)
    rows = without_duplicates(rows.select("user_id", "video_id", "part"))
    info = _info(raw.resolve().name, ordered=False)
    info.notes = [
        "sets without order: all events of a split share one placed time, and nothing may be learnt from it",
        "the log tells only what happened: click is true or unknown, never false",
    ]
    if not parts[1] and options.validation_share > 0:
        rows = _hold_out(rows, options)
        info.notes.append(
            f"no validation file: {options.validation_share:g} of each user's train rows, rounded down, is "
            f"validation, chosen by MD5 of seed {options.seed}, user and video"
        )
    names = ibis.cases((rows.part == 0, "train"), (rows.part == 1, "validation"), else_="test")
    events = rows.select(
        user_id=rows.user_id,
        video_id=rows.video_id,
        event_time=rows.part * DAY_US + PLACED_FROM_US,
        click=ibis.literal(True),
        split=names,
    )
    return Draft(info, {"events": events}, report)


def _videos_of_users(
    staging: Staging, parts: Sequence[list[Path]], report: ImportReport
) -> tuple[ir.Table, str]:
    """One row per user and video, with its ``part``, ``line`` and ``step`` in the line; and the id type."""
    texts = [staging.read_lines(files).mutate(part=number) for number, files in enumerate(parts) if files]
    lines = ibis.union(*texts) if len(texts) > 1 else texts[0]
    words = lines.text.re_replace(r"\s+", " ").split(" ")
    rows = lines.select("line", "part", words=words, user=words[0]).unnest("words", offset="step")
    rows = rows.filter(rows.step > 0).select("user", "line", "part", "step", video=rows.words)
    rows = staging.stage(rows, "splitting lines")
    report.table("events").read = staging.count(rows)
    kinds = {name: ids_of(staging, rows[name]) for name in ("user", "video")}
    ids = {f"{name}_id": rows[name].cast(kind) for name, kind in kinds.items()}
    return rows.select("line", part=rows.part.cast("int64"), step=rows.step.cast("int64"), **ids), kinds[
        "video"
    ]


def _hold_out(rows: ir.Table, options: ReaderOptions) -> ir.Table:
    key = f"{options.seed}:" + rows.user_id.cast("string") + ":" + rows.video_id.cast("string")
    rows = rows.mutate(key=key.hexdigest("md5"))
    of_user = ibis.window(group_by=[rows.user_id, rows.part])
    by_hash = ibis.window(group_by=[rows.user_id, rows.part], order_by=rows.key)
    rows = rows.mutate(size=rows.count().over(of_user), place=ibis.row_number().over(by_hash))
    chosen = (rows.part == 0) & (rows.place < (rows["size"] * options.validation_share).floor().cast("int64"))
    return rows.mutate(part=ibis.cases((chosen, 1), else_=rows.part)).drop("key", "size", "place")


def _tagged(staging: Staging, file: Path, rows: ir.Table, kind: str, report: ImportReport) -> ir.Table:
    """Videos of the log with the attribute ids of ``file`` (``{"video": [attribute, …]}``) as tags."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        tags = {video: [str(tag) for tag in content[video]] for video in sorted(content)}
        ids = pa.array([int(video) if kind == "int64" else video for video in tags], kind)
    except (ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ContractError(
            f"{file}: not JSON of the form {{video: [attribute, …]}} ({error}); mend it, or take it away to "
            "import without tags"
        ) from None
    table = staging.table(pa.table({"video_id": ids, "tags": pa.array(tags.values(), pa.list_(pa.string()))}))
    counted = report.table("videos")
    counted.read, counted.remainder = len(tags), "videos that no event names"
    return table.semi_join(rows, "video_id")


def _info(name: str, *, ordered: bool) -> DatasetInfo:
    return DatasetInfo(
        name=name.lower(),
        source="sequence text (user video video … a line)",
        licence="that of the text's publisher; the text itself states none",
        ordered=ordered,
        real_time=False,
    )
