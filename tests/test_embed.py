"""The embedding stage: what a GPU's memory cannot hold is done in halves; what a model cannot do is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from samples import SMALL, embed_spec, rows

import jobs
import jobs.embed
from jobs.embed import Embed, Encoder
from jobs.model import Model
from pipeline.commits import Run
from pipeline.errors import SpecError
from pipeline.sampling import Sampling
from pipeline.verify import failures, verify

SAMPLING = Sampling(frames=20, stride=1, height_px=64, width_px=96)


def test_out_of_memory_halves_the_batch_and_says_so(
    clips: Path, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that takes two views at a time, though four are asked for."""

    class Small(Embed):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            whole = self._model.embed

            def embed(views):
                if len(next(iter(views.values()))) > 2:
                    raise self._torch.OutOfMemoryError("CUDA out of memory")
                return whole(views)

            self._model.embed = embed

    (tmp_path / "list.txt").write_text("vp9.webm\nh264.ts\n")
    spec = embed_spec(tmp_path / "list.txt", tmp_path / "whole")
    spec["input"]["root"] = str(clips)
    spec["sampling"] = {**SMALL, "clips": 8}
    jobs.run(spec)
    monkeypatch.setattr(jobs.embed, "Embed", Small)
    spec["output"] = {"path": str(tmp_path / "halves")}
    report = jobs.run(spec)
    assert "out of memory on a GPU: batches of 2 views from now on" in report.notes
    whole, halves = rows(tmp_path / "whole"), rows(tmp_path / "halves")
    assert len(whole) == 16
    assert whole.keys() == halves.keys()
    for name, vector in whole.items():
        np.testing.assert_allclose(halves[name], vector, atol=1e-5)
    assert verify(str(tmp_path / "halves")).problems == []


def test_one_view_that_does_not_fit_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(Model(name="tubevit-tiny", batch_views=3), SAMPLING)
    stage = Embed(Run(str(tmp_path), "f00d"), encoder, 1, "")
    tried = []

    def full(views: dict[str, torch.Tensor]) -> torch.Tensor:
        tried.append(len(next(iter(views.values()))))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage._model, "embed", full)
    with pytest.raises(SpecError, match="model.batch_views = 1: one view alone is more than the GPU has"):
        stage.embed(views_of(stage, 4), "video")
    assert tried == [3, 1]


def views_of(stage: Embed, count: int) -> pa.RecordBatch:
    """Views of a plan's size, gray."""
    from pipeline.shards import shard_schema

    plan = stage._plans["video"]
    schema = shard_schema(plan, SAMPLING)
    tubes = {t.name: np.full((count, *t.shape), 128, np.uint8) for t in plan.tubes}
    columns = [
        pa.FixedShapeTensorArray.from_numpy_ndarray(tubes[field.name])
        if field.name in tubes
        else pa.nulls(count, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def test_an_embedding_that_is_not_finite_is_a_failure_and_can_be_retried(
    clips: Path, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Embed):
        def embed(self, batch, media):
            embeddings = super().embed(batch, media).copy()
            embeddings[0] = np.nan
            return embeddings

    (tmp_path / "list.txt").write_text("vp9.webm\n")
    spec = embed_spec(tmp_path / "list.txt", tmp_path / "out")
    spec["input"]["root"] = str(clips)
    with monkeypatch.context() as patch:
        patch.setattr(jobs.embed, "Embed", Broken)
        assert jobs.run(spec).clips == 1
    (lost,) = failures(str(tmp_path / "out")).to_pylist()
    assert (lost["stage"], lost["reason"], lost["uri"]) == ("embed", "model_error", "vp9.webm")
    report = jobs.run(spec, retry_failed=True)
    assert (report.clips, report.failures) == (2, 0)
    assert verify(str(tmp_path / "out")).problems == []
