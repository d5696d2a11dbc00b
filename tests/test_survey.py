"""From a sample and a model's pace to what a job comes to: the numbers, what is short, what is not known."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console
from samples import SMALL, embed_spec

import models
from jobs import cluster
from jobs.embed import Encoder
from jobs.model import Model
from jobs.outlook import Outlook
from jobs.pace import Pace, embeddings_bytes, noise, pace
from jobs.room import Node, Room
from jobs.sample import Part, Sample
from jobs.spec import EmbedSpec, ShardSpec, load
from jobs.survey import START_SECONDS, survey
from pipeline.commits import Run
from pipeline.sampling import Sampling

META = pa.table({"uri": ["a"] * 4, "view_index": [0, 1, 0, 1]})
CPU = Pace("cpu", 192, 2.0, {"video": 4, "image": 4}, dict.fromkeys(("video", "image"), 3.0),
           dict.fromkeys(("video", "image"), 6.0), 1 << 30)  # fmt: skip
GPU = Pace("cuda", 192, 2.0, {"video": 4, "image": 4}, dict.fromkeys(("video", "image"), 0.5),
           dict.fromkeys(("video", "image"), 0.1), 1 << 30)  # fmt: skip


class Answers:
    """In place of a process apart: what the model was found to take."""

    pace = CPU
    asked = 0

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None: ...

    def end(self) -> None: ...

    def ask(self, timeout_seconds: float, function: Any, *args: Any) -> Any:
        Answers.asked += 1
        return Answers.pace


@pytest.fixture
def told(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is said of 13 videos, of which a sample has one that fails, and of one image."""
    good = Part(
        2, 1.0, 2, {}, seconds=2.0, cpu_seconds=1.0, file_bytes=1000, meta=META, peak_memory_bytes=500
    )
    bad = Part(2, 1.0, 0, {"corrupt": 1})
    still = Part(1, 1.0, 1, {}, 0.2, 0.1, 500, META, 400)
    samples = {"video": Sample(13, [good, good, good, bad]), "image": Sample(1, [still])}

    def tell(room: Room, pace: Pace = CPU, kind: str = "embed", **changes: Any) -> Outlook:
        Answers.pace, Answers.asked = pace, 0
        monkeypatch.setattr("jobs.survey.measure", lambda *_: samples)
        monkeypatch.setattr("jobs.survey.Apart", Answers)
        monkeypatch.setattr(cluster, "room", lambda address, with_gpus: room)
        monkeypatch.setattr(cluster, "gpus", lambda: 1 if pace.device == "cuda" else 0)
        values = embed_spec(clips, tmp_path / "out", **changes)
        if kind == "shard":
            values = {**values, "kind": kind, "models": [{"name": "tubevit-tiny"}]}
            del values["model"]
        spec = load(values)
        assert isinstance(spec, ShardSpec | EmbedSpec)
        return survey(spec, 8.0)

    return tell


def said(found: Outlook) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(found.table())
    file = console.file
    assert isinstance(file, io.StringIO)
    return " ".join(file.getvalue().replace("│", " ").split())


def test_a_sample_stands_for_all(told: Any) -> None:
    """Three of four videos give two views each; a core second and two of a worker's time a good one."""
    found = told(Room(1, 4, 0))
    assert (found.sampled, found.failed, found.reasons) == (5, 1, {"corrupt": 1})
    assert found.clips.value == pytest.approx(26 * 3 / 4 + 1)
    assert found.clips.low < 20 < found.clips.high == 27  # no more than is planned
    assert found.decode_cpu_seconds.value == pytest.approx(13 * 3 / 4 + 0.1)
    assert found.decode_seconds.value == pytest.approx(13 * 6 / 4 + 0.2)
    assert found.model_seconds.value == pytest.approx(3 * found.clips.value)
    assert found.values()["clips"] == 20
    assert found.values()["cpu_seconds"] == pytest.approx(13 * 3 / 4 + 0.1 + 6 * found.clips.value)
    assert "1 of 5 sampled inputs fail (1 corrupt)" in said(found)
    assert found.gpu_seconds is None


def test_on_shared_cores_the_model_is_short_of_them(told: Any) -> None:
    found = told(Room(1, 4, 0))
    assert (found.forecast.bottleneck, found.forecast.cores_decide) == (
        "model",
        False,
    )  # 3 s a view, one by one
    assert found.wall_seconds.value > START_SECONDS + 2.0 + 3 * found.clips.value
    assert found.wall_seconds.low < found.wall_seconds.value < found.wall_seconds.high
    assert "bottleneck the model (" in said(found)
    assert "a GPU helps" in said(found)
    alone = told(Room(1, 1, 0))
    assert alone.forecast.cores_decide
    assert "core-seconds, on 1 core that all share" in said(alone)


def test_a_gpu_that_is_there_is_measured_and_decoding_falls_short(told: Any) -> None:
    found = told(Room(1, 1, 1), GPU)
    assert found.gpu_seconds.value == pytest.approx(0.5 * found.clips.value)
    assert found.forecast.bottleneck == "decode"
    assert "GPU-hours" in said(found)
    assert "more cores for decoders help" in said(found)


def test_of_a_gpu_that_is_not_there_nothing_is_claimed(told: Any) -> None:
    """Neither hours of it nor a time; but how fast it has to be, and what decoding takes."""
    nodes = [Node(8, 0, {}), Node(8, 2, {})]
    found = told(Room.of(nodes, may_grow=False))
    assert Answers.asked == 0
    assert (found.gpu_seconds, found.wall_seconds, found.model_seconds, found.forecast) == (None,) * 4
    assert "the model would run on GPUs, and there is none here: it was not measured" in found.notes
    assert "measured on this machine: the cluster's may be faster, or slower" in found.notes
    assert "GPU-hours" not in said(found)
    assert "for decoding" in said(found)
    assert "the model, if a worker of it does less than" in said(found)
    assert found.values()["bottleneck"] is None


def test_a_shard_job_has_no_model(told: Any) -> None:
    found = told(Room(1, 4, 0), kind="shard")
    assert Answers.asked == 0
    assert found.output_bytes.value == pytest.approx(13 * 3 / 4 * 1000 + 500)
    assert (found.model_seconds, found.object_store_bytes, found.forecast.bottleneck) == (None, 0, "decode")
    assert found.workers == {"shard": 4}
    assert found.peak_memory_bytes == {"shard": 500}


def test_more_units_than_one_lie_in_memory(told: Any) -> None:
    found = told(Room(1, 4, 0))
    unit = found.extent.largest_unit_bytes
    assert unit > 0
    assert found.peak_memory_bytes == {"decode": 500 + 2 * unit, "embed": (1 << 30) + unit}
    assert found.object_store_bytes == (2 * found.workers["decode"] + 3) * unit


def test_a_view_of_noise_goes_through_a_workers_own_stage(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no weights: the file that is named is not there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("jobs.pace.ENOUGH_SECONDS", 0.1)
    sampling = Sampling(**SMALL)
    encoder = Encoder(Model(name="tubevit-tiny", checkpoint="/no/where", batch_views=3), sampling, blank=True)
    found = pace(encoder, 1, {"video": 3, "image": 2}, 60.0, on_gpu=False)
    assert (found.device, found.dim, found.batch_views) == ("cpu", 192, {"video": 3, "image": 2})
    assert found.seconds["video"] > 0 < found.cpu_seconds["image"]
    hurried = pace(encoder, 1, {"video": 3}, 0.0, on_gpu=False)
    assert hurried.batch_views == {"video": 1}


def test_a_blank_model_reads_no_weights() -> None:
    init = models.InitConfig(weights="/no/where.pt")
    assert not models.blank("tubevit-tiny", init=init).training
    with pytest.raises(FileNotFoundError, match="no/where"):
        models.create("tubevit-tiny", init=init)


def test_what_rows_of_embeddings_take(tmp_path: Path) -> None:
    """A file as large as is said, whatever it is large of."""
    import numpy as np

    meta = pa.table({"uri": [f"{n}.mp4" for n in range(200)], "n": range(200)})
    each, empty = embeddings_bytes(meta, 64)
    values = np.random.default_rng(7).standard_normal(200 * 64, np.float32)
    table = meta.append_column("embedding", pa.FixedSizeListArray.from_arrays(pa.array(values), 64))
    written = Run(str(tmp_path), "f00d").write_table("x.parquet", table)
    assert written.bytes == pytest.approx(200 * each + empty, rel=0.01)
    assert 0.8 * 4 * 64 < each < 1.5 * 4 * 64


def test_noise_is_what_decoders_send() -> None:
    sampling = Sampling(**SMALL)
    plan = models.plan("tubevit-tiny", frames=20, size=(64, 96))
    batch = noise(plan, sampling, 5)
    assert batch.num_rows == 5
    assert {tube.name for tube in plan.tubes} <= set(batch.schema.names)
