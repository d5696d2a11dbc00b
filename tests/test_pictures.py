"""Pictures of weights: kernels as they are, heat where tokens are, `tubelet inspect` of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import plans, read_stamp, tubelet

import models
from jobs import pictures
from jobs.pictures import HEAT, SHADE, draw_attention, draw_kernels, heat, kernel_image, overlay, strongest
from jobs.scene import read_scene
from models import ClipConfig, weights
from models.attention import Map
from pipeline.cut import cut
from pipeline.plan import Canvas, Plan, Tube
from pipeline.sampling import Sampling
from pipeline.storage import locate

TINY: models.Options = {
    "frames": 8,
    "size": (48, 64),
    "tubes": (models.TubeConfig(kernel=(4, 8, 6), stride=(4, 16, 16)),),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    weights.save(models.create("tubevit-tiny", **TINY), folder)
    return folder


def test_a_kernel_is_drawn_frame_by_frame_from_its_least_to_its_greatest() -> None:
    kernel = np.full((3, 4, 5, 3), 0.5, np.float32)  # halfway
    kernel[1, 2, 3] = (-1, 2, 0.5)
    drawn = kernel_image(kernel, scale=2, gap=1)
    assert drawn.shape == (8, 3 * 10 + 2, 3)
    expected = np.full(drawn.shape, 128, np.uint8)
    expected[:, [10, 21]] = 255
    expected[4:6, 11 + 6 : 11 + 8] = (0, 255, 128)
    np.testing.assert_array_equal(drawn, expected)


def test_a_kernel_of_one_value_is_grey() -> None:
    assert (kernel_image(np.full((1, 2, 2, 3), 7.0), scale=1) == 128).all()


def test_the_strongest_kernels_are_shown_with_their_channels() -> None:
    model = models.create("tubevit-tiny", **TINY)
    tokenizer: Any = model.get_submodule("trunk.tokenizer")
    rigged = torch.zeros(4, 8, 6, 3)
    rigged[1, 2, 3, 0] = 1.0
    with torch.no_grad():
        tokenizer.weight["tube_4x8x6"].mul_(1e-3)
        tokenizer.weight["tube_4x8x6"][[7, 3]] = rigged.flatten()
        tokenizer.weight["tube_4x8x6"][100] = 2 * rigged.flatten()
    (found,) = strongest(model, 5)
    assert found.channels[:3] == (100, 3, 7)  # of equals, the first
    assert (len(found.channels), found.total) == (5, 192)
    np.testing.assert_array_equal(found.weights[1], rigged)
    page = np.asarray(draw_kernels(model, "title"))
    image = kernel_image(found.weights[0], 12)
    assert image.shape[:2] == (96, 4 * 72 + 3 * 4)
    windows = np.lib.stride_tricks.sliding_window_view((page == (255, 0, 0)).all(-1), (12, 12))
    red = np.argwhere(windows.all((2, 3)))
    assert len(red) == 3  # a pixel of 12 x 12, of each rigged kernel
    (top, left), *_ = red
    drawn = page[top - 24 : top + 72, left - 112 : left + 188]
    np.testing.assert_array_equal(drawn, image)


def test_every_tokenizers_tubes_are_shown() -> None:
    model = models.create("gated-tiny", frames=20, size=(64, 96), clip=ClipConfig(arch="ViT-S-32-alt"))
    names = [found.name for found in strongest(model, 2)]
    assert names[0] == "clip.patch tube_1x32x32"
    assert names[1:] == [f"trunk.tokenizer tube_{size}" for size in ("8x8x8", "16x4x4", "4x12x12", "1x16x16")]


@given(plan=plans(), data=st.data())
def test_heat_lies_where_the_cut_takes_its_pixels(plan: Plan, data: st.DataObject) -> None:
    """Frames that hold their own numbers, cut: what each token saw is where its weight must lie."""
    (canvas,) = plan.canvases
    shares = {
        tube.name: np.array(
            data.draw(st.lists(st.integers(0, 5), min_size=tube.tokens, max_size=tube.tokens))
        )
        for tube in plan.tubes
    }
    size = (canvas.frames, *canvas.frame_size)
    parts = [np.arange(np.prod(size)).reshape(size) // 256**k % 256 for k in range(3)]
    tubes = cut(np.stack(parts, axis=-1).astype(np.uint8), plan)
    expected = np.zeros(size)
    for tube in plan.tubes:
        pixels = (tubes[tube.name].astype(int) * (1, 256, 256**2)).sum(-1).reshape(tube.tokens, -1)
        for weight, seen in zip(shares[tube.name], pixels, strict=True):
            expected.reshape(-1)[seen] += weight
    grids = {tube.name: shares[tube.name].reshape(tube.grid) for tube in plan.tubes}
    total, covered = heat(plan, grids, canvas)
    np.testing.assert_array_equal(total, expected)
    np.testing.assert_array_equal(covered, expected > 0)


def test_heat_is_coloured_and_what_no_token_sees_is_grey() -> None:
    frame = np.full((1, 3, 3), (30, 60, 90), np.uint8)
    drawn = overlay(frame, np.array([[0.0, 0.0, 9.0]]), np.array([[False, True, True]]), most=4.0)
    grey = round(60 * SHADE)
    assert (drawn[0, 0] == grey).all()
    for at, colour, opacity in ((1, HEAT[0], pictures.FAINT), (2, HEAT[-1], pictures.STRONG)):
        np.testing.assert_allclose(drawn[0, at], (1 - opacity) * grey + opacity * colour, atol=1)


def test_a_framesets_heat_is_drawn_on_the_frame_of_its_time(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canvas = Canvas(frames=8, height_px=192, width_px=256, tiles=(2, 2))
    tube = Tube(name="grid", kernel=(1, 96, 128), stride=(1, 96, 128), canvas=canvas)
    plan = Plan(tubes=(tube,))
    sampling = Sampling(frames=8, stride=3, clips=1, height_px=192, width_px=256)
    scene = read_scene(locate(str(clips / "h264_bframes.mp4")), sampling, plan)
    share = torch.zeros(2, 2, 2)
    share[1, 0, 1] = 1.0  # the second small frame of the second image: frame 5
    monkeypatch.setattr("models.attention.attention", lambda *_: {"one": Map("of a test", {"grid": share})})
    drawn: list[np.ndarray] = []

    def note(frame: np.ndarray, *arguments: Any) -> np.ndarray:
        drawn.append(frame)
        return overlay(frame, *arguments)

    monkeypatch.setattr(pictures, "overlay", note)
    draw_attention(scene, plan, torch.nn.Identity(), "title")  # type: ignore[arg-type]
    (frame,) = drawn
    first = int(scene.labels[0].split()[-1])
    assert read_stamp(frame) == first + 15 == int(scene.labels[5].split()[-1])


def inspect(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `tubelet inspect`; gives its exit code."""
    return tubelet(monkeypatch, "inspect", *arguments)


@pytest.mark.parametrize("options", [(), ("--model", "tubevit-tiny", "--frames", "12", "--size", "32x32")])
def test_a_checkpoint_is_drawn_on_three_pages(
    clips: Path, tmp_path: Path, checkpoint: Path, options: tuple, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    output, video = tmp_path / "x.png", clips / "h264_bframes.mp4"
    assert inspect(monkeypatch, video, "--checkpoint", checkpoint, "--output", output, *options) == 0
    said = capfd.readouterr().out.splitlines()
    for line, page in zip(said, ("x.png", "x-kernels.png", "x-attention.png"), strict=True):
        with Image.open(tmp_path / page) as drawn:
            assert line == f"{tmp_path / page}: {drawn.width} x {drawn.height} px"


def test_an_image_is_drawn_too(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = ClipConfig(arch="ViT-S-32-alt")
    weights.save(models.create("clip", frames=8, size=(64, 96), clip=clip), tmp_path)
    asked = ("--checkpoint", tmp_path, "--output", tmp_path / "x.jpg")
    assert inspect(monkeypatch, clips / "still.jpg", *asked) == 0
    assert {path.name for path in tmp_path.glob("*.jpg")} == {"x.jpg", "x-kernels.jpg", "x-attention.jpg"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "--model = None: name a model"),
        (("--checkpoint", "/no/where"), "--checkpoint = '/no/where': no config.json there"),
        (("--checkpoint", "EMPTY"), "config.json there; give a folder that training wrote"),
        (("--checkpoint", "BROKEN"), "bad config.json"),
        (("--checkpoint", "HERE", "--model", "clip"), "--model = 'clip': "),
        (("--checkpoint", "HERE", "--frames", "2"), "--frames = 2: the model's tubes need at least 4"),
        (("--checkpoint", "WEIGHTLESS"), "no model.safetensors there; give a saved folder"),
        (("--checkpoint", "VIVIT", "--frames", "16"), "--frames = 16: checkpoint"),
        (("--checkpoint", "VIVIT", "--size", "64x32"), "--size = (64, 32): checkpoint"),
        (("--checkpoint", "OTHER"), "does not fit the model"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(
    clips: Path,
    tmp_path: Path,
    checkpoint: Path,
    options: tuple,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd,
) -> None:
    folders = {name: tmp_path / name for name in ("EMPTY", "BROKEN", "WEIGHTLESS", "VIVIT", "OTHER")}
    for folder in folders.values():
        folder.mkdir()
    (folders["BROKEN"] / "config.json").write_text("{")
    (folders["WEIGHTLESS"] / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    if "VIVIT" in options:
        weights.save(models.create("vivit-tiny", frames=8, size=(32, 64)), folders["VIVIT"])
    if "OTHER" in options:
        weights.save(models.create("vivit-tiny", frames=8, size=(32, 64)), folders["OTHER"])
        (folders["OTHER"] / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    places = {**folders, "HERE": checkpoint}
    asked = [str(places.get(option, option)) for option in options]
    output = tmp_path / "x.png"
    assert inspect(monkeypatch, clips / "h264_bframes.mp4", "--output", output, *asked) == 2
    said = capfd.readouterr()
    (error,) = said.err.splitlines()
    assert line in error
    assert error.startswith("--")
    assert not said.out
    assert not list(tmp_path.glob("*.png"))


def test_no_page_is_drawn_over_the_input(
    clips: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    photo = tmp_path / "x-kernels.jpg"
    photo.write_bytes((clips / "still.jpg").read_bytes())
    asked = ("--checkpoint", checkpoint, "--output", tmp_path / "x.jpg")
    assert inspect(monkeypatch, photo, *asked) == 2
    assert "this is the input" in capfd.readouterr().err
    assert photo.read_bytes() == (clips / "still.jpg").read_bytes()
