"""Whole jobs on a local Ray: what they leave behind, again and again, whatever they are fed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from samples import SMALL, embed_spec, rows

import jobs
from jobs.hindsight import keep
from jobs.spec import EmbedSpec, load
from jobs.survey import survey
from pipeline.errors import SpecError
from pipeline.storage import locate
from pipeline.verify import verify

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def embedded(corpus: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "embedded"
    spec = load(embed_spec(corpus, output))
    assert isinstance(spec, EmbedSpec)
    keep(survey(spec, 20.0))
    report = jobs.run(spec)
    assert (report.inputs, report.clips, report.failed_inputs) == (17, 27, 3)
    return output


def test_every_decodable_file_is_embedded_and_every_other_one_named(embedded: Path) -> None:
    found = rows(embedded)
    assert len(found) == 27
    assert all(vector.shape == (192,) and np.isfinite(vector).all() for vector in found.values())
    failures = {row["uri"]: row for row in pq.read_table(embedded / "failures").to_pylist()}
    assert failures.keys() == {"empty.mp4", "text.mkv", "cut.mp4"}
    assert all(row["reason"] == "unreadable" and row["message"] for row in failures.values())
    assert verify(str(embedded)).problems == []


def test_real_files_are_all_accounted_for(shared: Path, local_ray: None, tmp_path: Path) -> None:
    folders = [str(shared / name) for name in ("codecs", "mixed_clips", "asl_words", "bad")]
    spec = embed_spec(Path("x"), tmp_path / "out", input={"path": folders}, sampling={**SMALL, "clips": 1})
    report = jobs.run(spec)
    files = {str(path.relative_to(shared)) for folder in folders for path in Path(folder).iterdir()}
    embedded = {name.rpartition("#")[0] for name in rows(tmp_path / "out")}
    failed = set(pq.read_table(tmp_path / "out" / "failures")["uri"].to_pylist())
    assert report.inputs == len(files) == 54
    assert embedded | failed == files
    assert not embedded & failed
    # One of the bad ones is not bad: a video of a single frame.
    assert failed == {name for name in files if name.startswith("bad/")} - {"bad/minimal.mp4"}
    assert verify(str(tmp_path / "out")).problems == []


def test_a_run_leaves_its_spec_and_its_report(embedded: Path) -> None:
    report = json.loads((embedded / "report.json").read_text())
    assert (report["clips"], report["failures"], report["failures_by_reason"]) == (27, 3, {"unreadable": 3})
    assert report["decode_seconds"] > 0
    assert report["model_seconds"] > 0
    assert "randomly initialised" in report["notes"][0]
    assert (report["format"], report["new_clips"], report["workers"].keys()) == (2, 27, {"decode", "embed"})
    assert report["frames_per_second_per_core"] > 1
    assert report["video_hours_per_wall_hour"] > 0
    assert sum(report["split"].values()) == pytest.approx(1)
    assert set(report["peak_memory_bytes"]) == {"decode", "embed"}
    page = (embedded / "report.html").read_text()
    assert page.count('src="data:image/jpeg') == 12
    for words in ("clips/s over", "Who had a unit when", "<title>unit", "unreadable", "name: tubevit-tiny"):
        assert words in page
    assert "tubevit-tiny" in (embedded / "spec.yaml").read_text()


def test_a_report_says_how_far_off_the_estimate_was(embedded: Path) -> None:
    found = json.loads((embedded / "report.json").read_text())
    estimate = found["estimate"]
    assert estimate.keys() == {
        "clips", "output_bytes", "decode_cpu_seconds", "model_seconds", "wall_seconds",
    }  # fmt: skip
    for name, one in estimate.items():
        assert one["actual"] == found[name]
        assert one["ratio"] == pytest.approx(one["actual"] / one["estimated"])
    # The sample may have been all there is, or half of it; counts and bytes do not depend on the machine.
    assert 0.6 < estimate["clips"]["ratio"] < 1.6
    assert 0.3 < estimate["output_bytes"]["ratio"] < 3
    assert "clips: estimated" in (embedded / "report.html").read_text()


def test_the_same_command_again_does_nothing(embedded: Path, corpus: Path) -> None:
    """And leaves the report that tells how fast the work was done."""
    files = [*(embedded / "embeddings").iterdir(), embedded / "report.json", embedded / "report.html"]
    before = {path: path.stat().st_mtime_ns for path in files}
    report = jobs.run(embed_spec(corpus, embedded))
    assert (report.clips, report.new_clips) == (27, 0)
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_two_runs_give_identical_embeddings(
    embedded: Path, corpus: Path, local_ray: None, tmp_path: Path
) -> None:
    jobs.run(embed_spec(corpus, tmp_path / "again"))
    first, second = rows(embedded), rows(tmp_path / "again")
    assert first.keys() == second.keys()
    for name, vector in first.items():
        np.testing.assert_array_equal(vector, second[name])


def test_another_spec_is_refused_with_the_difference(embedded: Path, corpus: Path) -> None:
    changed = embed_spec(corpus, embedded, sampling={**SMALL, "clips": 3})
    with pytest.raises(SpecError, match=r"belongs to another spec \(sampling.clips: 2 there, 3 now\)"):
        jobs.run(changed)
    assert verify(str(embedded)).problems == []


def test_a_folder_of_other_files_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SpecError, match=r"holds other files \(thesis.txt\); choose a new folder"):
        jobs.run(embed_spec(corpus, tmp_path))


@pytest.fixture(scope="module")
def sharded(corpus: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "sharded"
    spec = embed_spec(corpus, output, kind="shard", models=[{"name": "tubevit-tiny"}, {"name": "clip"}])
    del spec["model"]
    report = jobs.run(spec)
    assert (report.clips, report.failed_inputs) == (27, 3)
    assert (report.model_seconds, report.split["decode"], report.workers.keys()) == (0, 1, {"shard"})
    assert (output / "report.html").read_text().count('src="data:image/jpeg') == 12
    return output


def test_shards_hold_the_same_rows_and_verify(sharded: Path, embedded: Path) -> None:
    assert verify(str(sharded)).problems == []
    ids = [
        name
        for path in sorted((sharded / "shards").rglob("*.arrow"))
        for name in pa.ipc.open_file(str(path)).read_all()["clip_id"].to_pylist()
    ]
    assert sorted(ids) == sorted(rows(embedded))
    assert {path.name for path in (sharded / "shards").iterdir()} == {"video", "image"}


def test_embedding_from_shards_equals_embedding_from_videos(
    sharded: Path, embedded: Path, local_ray: None, tmp_path: Path
) -> None:
    """Batches differ, and with them the order of sums; nothing else may."""
    spec = embed_spec(sharded, tmp_path / "out", input={"shards": str(sharded)})
    del spec["sampling"]
    checked = load(spec)
    assert isinstance(checked, EmbedSpec)
    keep(survey(checked, 1.0))
    report = jobs.run(spec)
    assert (report.clips, report.failures) == (27, 0)
    assert report.estimate is not None  # nothing is decoded, and every row is known beforehand
    assert report.estimate.keys() == {"clips", "output_bytes", "model_seconds", "wall_seconds"}
    assert report.estimate["clips"]["ratio"] == 1
    assert verify(str(tmp_path / "out")).problems == []
    from_shards, from_videos = rows(tmp_path / "out"), rows(embedded)
    assert from_shards.keys() == from_videos.keys()
    for name, vector in from_videos.items():
        np.testing.assert_allclose(from_shards[name], vector, atol=1e-5)


def test_a_model_whose_plan_the_shards_do_not_hold_is_refused(sharded: Path, tmp_path: Path) -> None:
    model = {"name": "clip", "clip": {"arch": "ViT-B-32"}}
    spec = embed_spec(sharded, tmp_path / "out", input={"shards": str(sharded)}, model=model)
    del spec["sampling"]
    with pytest.raises(SpecError, match=r"holds plan .*1x16x16.*but the model wants .*1x32x32"):
        jobs.run(spec)


def test_workers_that_can_never_start_are_refused(corpus: Path, local_ray: None, tmp_path: Path) -> None:
    for resources in ({"embed": {"gpus": 1.0}}, {"decode": {"actors": 1000}}):
        with pytest.raises(SpecError, match=r"resources \(actors x .*this machine has"):
            jobs.run(embed_spec(corpus, tmp_path / "out", resources=resources))


def test_whatever_a_file_makes_the_libraries_do_is_its_row(
    clips: Path, local_ray: None, tmp_path: Path
) -> None:
    """Names that no filesystem takes, and a column that changes its type on its way through Parquet."""
    names = [
        "http://nowhere/x.mp4",
        "x" * 300 + ".mp4",
        str(clips / "vp9.webm"),
        str(clips / "one_frame.mp4/x.mp4"),
    ]
    table = pa.table({"uri": names, "when": pa.array([0, 1, 2, 3], pa.timestamp("s"))})
    pq.write_table(table, tmp_path / "list.parquet")
    output = tmp_path / "out? [bold]"
    report = jobs.run(embed_spec(tmp_path / "list.parquet", output))
    assert (report.inputs, report.clips, report.failed_inputs) == (4, 2, 3)
    assert {row["reason"] for row in pq.read_table(output / "failures").to_pylist()} == {"unreadable"}
    assert verify(str(output)).problems == []
    (output / "manifest.json").unlink()
    assert jobs.run(embed_spec(tmp_path / "list.parquet", output)).clips == 2
    assert verify(str(output)).problems == []


def test_too_many_failures_end_the_job(corpus: Path, local_ray: None, tmp_path: Path) -> None:
    for name in ("empty.mp4", "text.mkv", "h264.ts"):
        shutil.copy(corpus / name, tmp_path)
    spec = embed_spec(tmp_path, tmp_path / "out", failure={"max_failed_fraction": 0.5})
    for _ in range(2):  # the second time there is nothing left to do, and it is still too many
        with pytest.raises(
            RuntimeError, match=r"2 of 3 inputs failed, more than failure.max_failed_fraction = 0.5"
        ):
            jobs.run(spec)
    assert not (tmp_path / "out" / "manifest.json").exists()
    spec["failure"]["max_failed_fraction"] = 0.7
    assert jobs.run(spec).clips == 2


def test_relative_paths_and_leftovers_of_killed_workers(
    clips: Path, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have working directories of their own, so a relative path must not reach them."""
    (tmp_path / "in").mkdir()
    shutil.copy(clips / "vp9.webm", tmp_path / "in")
    for folder in ("commits", "units"):
        (tmp_path / "out" / folder).mkdir(parents=True)
        (tmp_path / "out" / folder / ".x.abc.tmp").write_text("half")
    monkeypatch.chdir(tmp_path)
    report = jobs.run(embed_spec(Path("in"), Path("out")))
    assert report.clips == 2
    assert len(rows(tmp_path / "out")) == 2
    assert verify("out").problems == []


def test_windows_of_long_videos_are_split_over_units(clips: Path, local_ray: None, tmp_path: Path) -> None:
    names = ["h264_bframes.mp4", "vp9.webm"]
    (tmp_path / "list.txt").write_text("\n".join(str(clips / name) for name in names))
    spec = embed_spec(tmp_path / "list.txt", tmp_path / "whole")
    spec["sampling"] = {**SMALL, "clips": None, "every_seconds": 0.1}
    jobs.run(spec)
    spec["output"] = {"path": str(tmp_path / "split"), "unit_bytes": 400_000}
    report = jobs.run(spec)
    assert report.units > 4
    assert report.inputs == 2
    whole, split = rows(tmp_path / "whole"), rows(tmp_path / "split")
    assert whole.keys() == split.keys()
    assert len(whole) > 20
    for name, vector in whole.items():
        np.testing.assert_allclose(split[name], vector, atol=1e-5)


def test_the_callers_columns_come_along(clips: Path, local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "uri,start_seconds,end_seconds,label,split,speaker\n"
        "vp9.webm,0.5,1.5,run;jump,test,7\n"
        "vp9.webm,1.5,2.0,sit,train,8\n"
    )
    spec = embed_spec(tmp_path, tmp_path / "out")
    spec["input"] = {"path": str(tmp_path / "list.csv"), "root": str(clips)}
    spec["sampling"] = {**SMALL, "clips": 1}
    jobs.run(spec)
    first, second = pq.read_table(tmp_path / "out" / "embeddings").to_pylist()
    assert first["clip_id"].startswith("vp9.webm@0.5-1.5#")
    assert (first["labels"], first["split"], first["speaker"]) == (["run", "jump"], "test", 7)
    assert (second["labels"], second["speaker"]) == (["sit"], 8)
    assert 0.5 <= first["start_seconds"] < first["end_seconds"] <= 1.5


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_gives_the_same(embedded: Path, corpus: Path, tmp_path: Path) -> None:
    """SIGKILL to the driver and everything it started, as soon as some clips are committed."""
    output = tmp_path / "out"
    (tmp_path / "spec.json").write_text(json.dumps(embed_spec(corpus, output)))
    command = [sys.executable, "-m", "jobs", "run", str(tmp_path / "spec.json")]
    first = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(json.loads(path.read_text())["clips"] for path in output.glob("commits/*.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    report = json.loads((output / "report.json").read_text())
    assert report["new_clips"] < 27
    assert (report["clips"], report["frames"]) == (
        27,
        json.loads((embedded / "report.json").read_text())["frames"],
    )
    assert verify(str(output)).problems == []
    first_rows, second_rows = rows(embedded), rows(output)
    assert first_rows.keys() == second_rows.keys()
    for name, vector in first_rows.items():
        np.testing.assert_array_equal(vector, second_rows[name])


@pytest.mark.slow
def test_videos_in_s3_and_output_in_s3(clips: Path, tmp_path: Path) -> None:
    """By way of a real S3 protocol server on loopback; the run is verified there, too."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        query = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in keys.items():
                patch.setenv(name, value)
            bucket = locate(f"s3://bucket?{query}").filesystem
            bucket.create_dir("bucket")
            for name in ("vp9.webm", "h264_bframes.mp4", "still.jpg"):
                with bucket.open_output_stream(f"bucket/in/{name}") as stream:
                    stream.write((clips / name).read_bytes())
            spec = embed_spec(Path("x"), Path("y"))
            spec["input"] = {"path": f"s3://bucket/in?{query}"}
            spec["output"] = {"path": f"s3://bucket/out?{query}"}
            (tmp_path / "spec.json").write_text(json.dumps(spec))
            command = [sys.executable, "-m", "jobs", "run", str(tmp_path / "spec.json")]
            for _ in range(2):  # the second one has nothing to do
                subprocess.run(command, cwd=ROOT, env={**os.environ, **keys}, check=True, timeout=200)
            verdict = verify(spec["output"]["path"])
            assert (verdict.problems, verdict.rows) == ([], 5)
            table = pq.read_table("bucket/out/embeddings", filesystem=bucket)
            assert {uri.partition("#")[0] for uri in table["clip_id"].to_pylist()} == {
                "vp9.webm", "h264_bframes.mp4", "still.jpg",
            }  # fmt: skip
    finally:
        server.stop()


def test_ray_is_left_as_it_was(local_ray: None) -> None:
    assert ray.is_initialized()
