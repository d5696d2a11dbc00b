"""The command line: one line per mistake, exit codes that scripts can use, no traceback."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from samples import tubelet

from pipeline import generations
from pipeline.commits import Receipt, Run
from pipeline.errors import Failure
from pipeline.units import REDOES

SPEC = {
    "version": 1, "kind": "embed", "sampling": {"frames": 20, "height_px": 64, "width_px": 96},
    "model": {"name": "tubevit-tiny"},
}  # fmt: skip


@pytest.fixture
def spec(clips: Path, tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    values = {**SPEC, "input": {"path": str(clips)}, "output": {"path": str(tmp_path / "out")}}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sampling.frmes=3", "sampling.frmes = 3: unknown key; did you mean 'frames'?"),
        ("sampling.frames=many", "sampling.frames = 'many': input should be a valid integer"),
        ("model.name=tubvit-b16", "model.name = 'tubvit-b16': no such model; did you mean 'tubevit-b16'?"),
        ("model.checkpoint=/no/where", "model.checkpoint = '/no/where'"),
        ("model={name: clip, clip: {arch: ViT-B-61}}", "model.clip.arch = 'ViT-B-61'"),
        ("model={name: clip, clip: {pretrained: laion}}", "model.clip.pretrained = 'laion'"),
        ("model={name: clip, clip: {arch: ViT-B-32-quickgelu, pretrained: openai}}", "could not load it"),
        ("input.path=EMPTY", "no video or image in it"),
        ("input.path=/no/where", "input.path = '/no/where': no such file or folder"),
        ("input={shards: EMPTY}", "sampled already"),
        ("sampling.frames=8", "sampling.frames = 8: the model's tubes need at least 20 frames"),
        ("output.path=/dev/null/out", "output.path = '/dev/null/out': cannot be written to"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    spec: Path, tmp_path: Path, override: str, line: str, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    # No network in tests: a download fails at once.
    monkeypatch.setattr(
        "open_clip.download_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("no net"))
    )
    (tmp_path / "empty").mkdir()
    override = override.replace("EMPTY", str(tmp_path / "empty"))
    assert tubelet(monkeypatch, "run", spec, "--set", override) == 2
    output = capfd.readouterr()
    lines = [text for text in output.err.splitlines() if text]
    assert len(lines) == 1
    assert line in lines[0]
    assert not output.out
    assert not list((tmp_path / "out").glob("commits/*"))


def test_shards_of_an_empty_folder(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    (tmp_path / "empty").mkdir()
    changes = (f"input={{shards: {tmp_path}/empty}}", "sampling=null")
    code = tubelet(monkeypatch, "run", spec, *(text for change in changes for text in ("--set", change)))
    assert code == 2
    assert "no shards in it" in capfd.readouterr().err


def test_a_plan_by_headers_says_what_a_run_would_do_and_writes_nothing(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    headers = ("plan", spec, "--seconds", "0")
    assert tubelet(monkeypatch, *headers, "--set", "sampling.crops=3", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["inputs"], found["planned_views"]) == (14, {"video": 39, "image": 3})
    assert found["tube_bytes"] == sum(
        count * found["bytes_per_view"][media] for media, count in found["planned_views"].items()
    )
    assert (found["clips"], found["clips_low"], found["clips_high"]) == (42, 42, 42)
    assert found["workers"].keys() == {"decode", "embed"}
    assert [found[name] for name in ("wall_seconds", "decode_seconds", "gpu_seconds")] == [None] * 3
    assert not (tmp_path / "out").exists()
    assert tubelet(monkeypatch, *headers, "--set", "sampling.every_seconds=0.5") == 0
    assert "by 13 headers about" in " ".join(capfd.readouterr().out.split())
    assert not (tmp_path / "out").exists()


def test_a_plan_measures_a_sample_and_keeps_what_it_says(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """Its own folder then holds what it said, which keeps no run, and no other plan, from it."""
    assert tubelet(monkeypatch, "plan", spec, "--seconds", "10", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert 1 <= found["sampled_inputs"] <= 14
    assert found["sampled_failed_inputs"] == 0
    assert found["clips_low"] <= found["clips"] == 14 == found["clips_high"]
    for name in ("decode_cpu_seconds", "model_seconds", "output_bytes", "wall_seconds"):
        assert found[name] > 0, name
    assert (found["bottleneck"] in {"decode", "model", "driver"}, found["model_device"]) == (True, "cpu")
    assert found["gpu_seconds"] is None
    assert found["peak_memory_bytes"].keys() == {"decode", "embed"}
    assert found["object_store_bytes"] == found["largest_unit_bytes"] * (
        2 * found["workers"]["decode"] + 3 * found["workers"]["embed"]
    )
    kept = json.loads((tmp_path / "out" / "estimate.json").read_text())
    assert kept["wall_seconds"] == found["wall_seconds"]
    assert tubelet(monkeypatch, "plan", spec, "--seconds", "0") == 0
    said = capfd.readouterr().out
    assert "nothing: clips, work and time are not known" in " ".join(said.split())


def test_a_plan_for_a_cluster_asks_it(spec: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    assert tubelet(monkeypatch, "plan", spec, "--set", "ray.address='127.0.0.1:1'") == 2
    assert "ray.address = '127.0.0.1:1': no cluster answers there" in capfd.readouterr().err


@pytest.mark.parametrize("resources", ["{embed: {gpus: 1.0}}", "{decode: {actors: 1000}}"])
def test_a_plan_refuses_workers_that_can_never_start_as_a_run_does(
    spec: Path, resources: str, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """Before anything is measured."""
    monkeypatch.setattr("jobs.sample.measure", None)
    assert tubelet(monkeypatch, "plan", spec, "--set", f"resources={resources}") == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if text]
    assert re.search(r"resources \(actors x [cg]pus\) = .*this machine has \d; ask for fewer actors", line)


def test_a_plan_refuses_the_folder_of_another_job(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert tubelet(monkeypatch, "plan", spec) == 2
    assert "holds other files (thesis.txt)" in capfd.readouterr().err


def test_a_model_is_described_and_a_misspelt_one_is_guessed(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    assert tubelet(monkeypatch, "models", "tubevit-b16", "--json") == 0
    (summary,) = json.loads(capfd.readouterr().out)
    assert (summary["tokens"], summary["bytes_per_clip"]) == (539, 583_296)
    assert tubelet(monkeypatch, "models", "tubevit-b61") == 2
    assert "did you mean" in capfd.readouterr().err


def test_schema_is_json(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    assert tubelet(monkeypatch, "schema") == 0
    assert "EmbedSpec" in json.loads(capfd.readouterr().out)["$defs"]


def test_verify_of_what_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    assert tubelet(monkeypatch, "verify", tmp_path) == 2
    assert "not a run's output folder" in capfd.readouterr().err


def test_failures_are_summed_up_by_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    place = tmp_path / "out"
    run = Run(str(place), "f00d")
    row = {"media": "video", "clips": 1, "items": [{"uri": "x", "first_clip": 0, **dict.fromkeys(REDOES)}]}
    kinds = [("uri", pa.string()), ("first_clip", pa.int64()), *REDOES.items()]
    schema = pa.schema([("media", pa.string()), ("clips", pa.int64()), ("items", pa.list_(pa.struct(kinds)))])
    generations.write(run, (), [pa.Table.from_pylist([row], schema=schema)], {"fingerprint": "f00d"})
    lost = [Failure(f"{n}.mp4", "decode", "corrupt", "broken [red]", item=n, rows=n % 2) for n in range(3)]
    run.commit(Receipt(0), [*lost, Failure("z.mp4", "open", "unreadable", "no such file", item=3)])
    assert tubelet(monkeypatch, "failures", place) == 0
    said = capfd.readouterr().out
    assert re.search(r"corrupt\s+│ decode │\s+3 │\s+2 │ 0.mp4: broken \[red\]", said)
    assert re.search(r"unreadable\s+│ open\s+│\s+1 │\s+1 │ z.mp4: no such file", said)
    assert "--retry-failed" in said
    assert tubelet(monkeypatch, "failures", place, "--json") == 0
    assert [row["uri"] for row in json.loads(capfd.readouterr().out)] == ["0.mp4", "1.mp4", "2.mp4", "z.mp4"]
    assert tubelet(monkeypatch, "failures", tmp_path) == 2
    assert "not a run's output folder" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert tubelet(monkeypatch, "run", spec, "--output", tmp_path / "locked" / "out") == 2
    assert "cannot be written to" in capfd.readouterr().err
