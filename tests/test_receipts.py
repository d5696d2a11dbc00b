"""Receipts: what a worker knows of a unit is in its commit record; earlier records still count."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pytest
from samples import CROPPED, cutting_of, unit_of

import models
from jobs.embed import Embed, Encoder
from jobs.model import Model
from pipeline.commits import Receipt, Run
from pipeline.rows import Covered
from pipeline.sampling import Sampling
from pipeline.stages import Decode, Shard


def committed(run: Run) -> Receipt:
    (receipt,) = run.receipts()
    return receipt


@pytest.mark.parametrize("clips_of_each", [3, 5])
def test_a_unit_is_measured_from_decoding_to_its_commit(
    clips: Path, tmp_path: Path, clips_of_each: int
) -> None:
    sampling, run = Sampling(**{**CROPPED, "clips": clips_of_each}), Run(str(tmp_path), "f00d")
    before = time.time()
    decoded = Decode(run, cutting_of(clips, sampling), "session")(
        unit_of("vp9.webm", "mpeg4_bframes.avi", "no")
    )
    encoder = Encoder(Model(name="tubevit-tiny", batch_views=4), sampling)
    embed = Embed(run, encoder, 1, "", gpus=0.5)
    time.sleep(0.3)
    returned = Receipt.from_json(embed(decoded)["receipt"][0].as_py())
    receipt = committed(run)
    assert receipt == returned
    assert (receipt.clips, receipt.inputs, receipt.failed_inputs) == (6 * clips_of_each, 3, 1)
    assert receipt.reasons == {"unreadable": 1}
    assert receipt.frames == 60 + 40
    assert receipt.video_seconds == pytest.approx(2.4 + 1.6, abs=0.041)  # a frame is 0.04; views of one, once
    plan = models.plan("tubevit-tiny", frames=20, size=(64, 96))
    assert receipt.tube_bytes == receipt.clips * plan.bytes_per_clip
    assert 0 < receipt.decode_seconds < 60
    assert 0 < receipt.decode_cpu_seconds < 60
    assert 0.3 <= receipt.wait_seconds < 60
    assert receipt.gpu_seconds == pytest.approx(receipt.model_seconds / 2)
    decode, embedding = receipt.work
    assert (decode.stage, embedding.stage) == ("decode", "embed")
    assert before <= decode.begun_at <= decode.ended_at <= embedding.begun_at <= embedding.ended_at
    assert embedding.begun_at - decode.ended_at >= 0.3  # to wait is not to work
    assert embedding.ended_at - embedding.begun_at >= receipt.model_seconds > 0
    for work in receipt.work:
        assert 50e6 < work.peak_memory_bytes < 50e9
        assert work.worker.rpartition(":")[2].isdigit()


def test_a_shard_and_what_is_embedded_from_it_cover_the_same_video(clips: Path, tmp_path: Path) -> None:
    sampling = Sampling(**CROPPED)
    run = Run(str(tmp_path / "shards"), "f00d")
    Shard(run, cutting_of(clips, sampling), "session")(unit_of("vp9.webm"))
    sharded = committed(run)
    assert (sharded.frames, sharded.clips, sharded.model_seconds, sharded.wait_seconds) == (60, 9, 0, 0)
    assert [work.stage for work in sharded.work] == ["shard"]
    (file,) = sharded.files
    item = {"uri": file.path, "first_row": 0, "stop_row": 9}
    encoder = Encoder(Model(name="tubevit-tiny", batch_views=4), sampling)
    embed = Embed(Run(str(tmp_path / "out"), "f00d"), encoder, 1, str(tmp_path / "shards"))
    embed(pa.Table.from_pylist([{"unit": 0, "media": "video", "clips": 9, "items": [item]}]))
    embedded = committed(Run(str(tmp_path / "out"), "f00d"))
    assert embedded.video_seconds == pytest.approx(sharded.video_seconds)
    assert embedded.tube_bytes == sharded.tube_bytes
    assert (embedded.frames, embedded.decode_seconds, embedded.gpu_seconds) == (0, 0, 0)
    assert embedded.wait_seconds > 0


def test_images_are_no_seconds_of_video(clips: Path, tmp_path: Path) -> None:
    run = Run(str(tmp_path), "f00d")
    Shard(run, cutting_of(clips, Sampling(**CROPPED)), "session")(unit_of("still.jpg", media="image"))
    assert (committed(run).clips, committed(run).frames, committed(run).video_seconds) == (3, 1, 0)


@pytest.mark.parametrize(
    ("views", "seconds"),
    [
        ([("a#0-9/0", 0, 2), ("a#0-9/1", 0, 2), ("a#5-14/2", 1, 3)], 3),  # crops, and windows that overlap
        ([("a#0-9/0", 0, 2), ("b#0-9/0", 0, 2)], 4),
        ([("a#1@0-2#0-9/0", 0, 2), ("a#1@1-3#5-14/0", 1, 3)], 4),  # of two spans each counts for itself
        ([("a#0-9/0", 0, 2), ("a#0-4/1", 0, 1), ("a#8-12/2", 1.5, 2.5)], 2.5),
        ([("a#0-9/0", 0, 1), ("a#20-29/1", 4, 5)], 2),
    ],
)
def test_each_moment_counts_once(views: list[tuple[str, float, float]], seconds: float) -> None:
    covered = Covered()
    names = ("clip_id", "start_seconds", "end_seconds")
    for view in views:  # a batch each, as clips may be split over batches
        covered.add(pa.RecordBatch.from_pylist([dict(zip(names, view, strict=True))]))
    assert covered.seconds == pytest.approx(seconds)


def test_a_record_of_an_earlier_version_still_counts() -> None:
    old = (
        '{"unit": 3, "inputs": 2, "failed_inputs": 0, "clips": 4, "failures": 1, "decode_seconds": 1.5,'
        ' "model_seconds": 0.5, "batch_views": null,'
        ' "files": [{"path": "units/x.parquet", "rows": 4, "bytes": 10, "sha256": "ab"}]}'
    )
    receipt = Receipt.from_json(old)
    assert (receipt.clips, receipt.failures, receipt.decode_seconds, receipt.files[0].rows) == (4, 1, 1.5, 4)
    assert (receipt.work, receipt.reasons, receipt.frames, receipt.gpu_seconds) == ([], {}, 0, 0)
    assert Receipt.from_json(receipt.to_json()) == receipt
