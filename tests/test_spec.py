"""A spec that is wrong says where, what it found and what would be right: a line for each thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jobs.spec import EmbedSpec, dump, load, schema
from pipeline.errors import SpecError

GOOD = {
    "version": 1, "kind": "embed", "input": {"path": "videos"}, "model": {"name": "gated-b16"},
    "output": {"path": "out"},
}  # fmt: skip


def test_defaults_are_filled_in_and_survive_a_round_trip() -> None:
    spec = load(GOOD)
    assert isinstance(spec, EmbedSpec)
    assert spec.sampling is not None
    assert (spec.sampling.stride, spec.sampling.clips) == (2, 1)
    assert load(yaml.safe_load(dump(spec))) == spec


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sampling.frmes=3", "sampling.frmes = 3: unknown key; did you mean 'frames'?"),
        ("modle=3", "modle = 3: unknown key; did you mean 'model'?"),
        ("model.clip.arc=x", "model.clip.arc = 'x': unknown key; did you mean 'arch'?"),
        ("sampling.frames=many", "sampling.frames = 'many': input should be a valid integer"),
        ("sampling.frames='32'", "sampling.frames = '32': input should be a valid integer"),
        ("sampling.fps=-1", "sampling.fps = -1: input should be greater than or equal to 0.001"),
        ("sampling={stride: 1, fps: 2}", "sampling: stride and fps exclude each other; keep one"),
        ("limits.max_pixel=1", "limits.max_pixel = 1: unknown key; did you mean 'max_pixels'?"),
        ("limits.timeout_seconds=0", "limits.timeout_seconds = 0: input should be greater than 0"),
        ("resources.decode.hardware=tpu", "resources.decode.hardware = 'tpu': input should be 'cuda'"),
        ("sampling={corrupt: hide}", "sampling.corrupt = 'hide': input should be 'drop_clip', 'keep' or"),
        ("kind=foo", "kind = 'foo': unknown; choose 'shard' or 'embed' or 'train' or 'evaluate'"),
        ("input.path=null", "input: give either path (videos and images) or shards (a run's output folder)"),
        ("model=null", "model = None: input should be"),
        ("input.path=3", "input.path = 3: input should be a valid string or input should be a valid array"),
        ("input.path=''", "input: path is empty"),
        ("resources.embed.gpu=1", "resources.embed.gpu = 1: unknown key; did you mean 'gpus'?"),
        ("models=[]", "models: unknown key; did you mean 'model'?"),
        ("sampling.every_seconds=.inf", "sampling.every_seconds = inf: input should be a finite number"),
        ("output.path", "--set = 'output.path': write it as a.b=value"),
    ],
)
def test_one_mistake_is_one_line(override: str, line: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(GOOD, (override,))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        load({"version": 2, "kind": "shard", "input": {}, "output": {"pth": 1}})
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert any(line.startswith("models: missing") for line in lines)


@pytest.mark.parametrize("path", ["/data/my #1 videos", "a: b", "&x y", "2024-01-01", "it's", "[x"])
def test_a_bare_word_is_taken_as_it_is(path: str) -> None:
    assert load(GOOD, (f"output.path={path}",)).output.path == path


def test_overrides_win_and_may_be_structured() -> None:
    spec = load(GOOD, ("sampling={frames: 64, fps: 15}", "model.clip.every=8", "input.path=[a, b]"))
    assert isinstance(spec, EmbedSpec)
    assert spec.sampling is not None
    assert spec.sampling.fps == 15
    assert spec.model.clip is not None
    assert spec.model.clip.every == 8
    assert spec.input.path == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not YAML"), ("- 1", "holds no keys"), (None, "No such file")]
)
def test_files_that_are_no_spec(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "spec.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_the_schema_accepts_what_load_accepts() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(GOOD, schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**GOOD, "modle": 3}, schema())


def test_shipped_specs_load() -> None:
    specs = sorted((Path(__file__).parent.parent / "jobs" / "specs").glob("*.yaml"))
    assert specs
    for spec in specs:
        load(spec)
        assert spec.read_text().startswith("#")  # each opens with its command and what to expect


def test_where_work_is_done_does_not_change_what_is_made() -> None:
    a = load(GOOD)
    b = load(GOOD, ("output.path=elsewhere", "resources.decode.actors=3", "ray.address=auto"))
    assert a.identity() == b.identity()
    assert a.identity() != load(GOOD, ("sampling.frames=64",)).identity()


def test_the_readmes_specs_are_specs() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    kinds = [load(yaml.safe_load(block)).kind for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert kinds == ["shard", "embed", "embed", "train", "evaluate", "probe"]


def test_limits_are_no_part_of_what_a_folder_was_made_with() -> None:
    """They decide which inputs give rows, and nothing of what is in a row."""
    assert load(GOOD).identity() == load(GOOD, ("limits.max_pixels=1000",)).identity()
    assert load(GOOD).identity() != load(GOOD, ("sampling={corrupt: keep}",)).identity()
