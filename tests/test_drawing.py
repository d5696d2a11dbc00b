"""A drawing shows the frames that are cut, footprints where the tubes are, and what is special of a frame."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import dense, plans, read_stamp, tubelet

import models
from jobs.drawing import COLOURS, FILL, draw, paint
from jobs.scene import OUTLINE, WHOLE_PX, Scene, read_scene
from pipeline.errors import MediaError
from pipeline.plan import Canvas, Plan, Tube
from pipeline.sampling import Sampling
from pipeline.storage import locate

CANVAS = Canvas(frames=4, height_px=96, width_px=128)
FULL = Sampling(frames=4, stride=3, clips=1, height_px=96, width_px=128)
SPARSE = Tube(name="a", kernel=(1, 20, 30), stride=(2, 40, 50), offset=(0, 5, 7), canvas=CANVAS)
PLAN = Plan(tubes=(SPARSE,))


def scene_of(path: Path, sampling: Sampling = FULL, plan: Plan = PLAN, **options) -> Scene:
    return read_scene(locate(str(path)), sampling, plan, **options)


def covered(tube: Tube, at: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of image `at` lie in a place of the tube, which on the rim of one: bool (H, W) each."""
    _, height, width = tube.canvas.shape
    (k_t, k_h, k_w), (s_t, s_h, s_w), (o_t, o_h, o_w) = tube.kernel, tube.stride, tube.offset
    inside, rim = np.zeros((2, height, width), bool)
    for t in range(o_t, tube.canvas.shape[0] - k_t + 1, s_t):
        for top in range(o_h, height - k_h + 1, s_h):
            for left in range(o_w, width - k_w + 1, s_w):
                for y in range(top, top + k_h):
                    for x in range(left, left + k_w):
                        if t <= at < t + k_t:
                            inside[y, x] = True
                            rim[y, x] |= y in (top, top + k_h - 1) or x in (left, left + k_w - 1)
    return inside, rim


@settings(max_examples=60, deadline=None)
@given(plan=plans(), data=st.data())
def test_footprints_are_where_the_tubes_are_and_nowhere_else(plan: Plan, data: st.DataObject) -> None:
    (canvas,) = plan.canvases
    at = data.draw(st.integers(0, canvas.shape[0] - 1))
    before = np.random.default_rng(0).integers(0, 256, (*canvas.shape[1:], 3), np.uint8)
    colours = dict(zip(plan.tubes, COLOURS, strict=False))
    for tube, colour in colours.items():
        inside, rim = covered(tube, at)
        drawn = paint(before, at, {tube: colour})
        np.testing.assert_array_equal(drawn[~inside], before[~inside])
        assert (drawn[rim] == colour).all()
        blend = (1 - FILL) * before + FILL * np.array(colour)
        np.testing.assert_allclose(drawn[inside & ~rim], blend[inside & ~rim], atol=0.5)
    anywhere = np.any([covered(tube, at)[0] for tube in plan.tubes], axis=0)
    np.testing.assert_array_equal(paint(before, at, colours)[~anywhere], before[~anywhere])


@given(plan=plans(), scale=st.integers(2, 4))
def test_an_enlarged_footprint_covers_the_same_pixels(plan: Plan, scale: int) -> None:
    (canvas,) = plan.canvases
    tube = plan.tubes[0]
    drawn = paint(np.zeros((*canvas.shape[1:], 3), np.uint8), 0, {tube: COLOURS[0]}, scale)
    inside = covered(tube, 0)[0].repeat(scale, axis=0).repeat(scale, axis=1)
    np.testing.assert_array_equal(drawn.any(axis=-1), inside)


def test_small_tubes_are_drawn_over_large_ones() -> None:
    large, small = (dense(CANVAS, (1, n, n), f"n{n}").tubes[0] for n in (16, 4))
    black = np.zeros((96, 128, 3), np.uint8)
    for colours in ({large: COLOURS[0], small: COLOURS[1]}, {small: COLOURS[1], large: COLOURS[0]}):
        assert tuple(paint(black, 0, colours)[0, 0]) == COLOURS[1]


def test_a_panel_shows_the_frame_it_names(clips: Path) -> None:
    panels = scene_of(clips / "h264_bframes.mp4").panels[CANVAS]
    assert [read_stamp(panel.image) for panel in panels] == [25, 28, 31, 34]
    assert panels[1].label.split() == ["1", "1.120", "s", "frame", "28"]
    assert [panel.touched for panel in panels] == [True, False, True, False]
    assert [panel.note for panel in panels] == ["", "not decoded to pixels"] * 2


def test_times_and_numbers_count_from_the_start_of_the_video(clips: Path) -> None:
    """And not from its first timestamp, nor from the part of it that was asked for."""
    scene = scene_of(clips / "h264_variable.mp4", span_seconds=(1.0, 3.0))
    for panel in scene.panels[CANVAS]:
        number = int(panel.label.split()[-1])
        assert read_stamp(panel.image) == number
        assert panel.label.split()[1] == f"{number * 0.04 + (number + 2) // 3 * 0.16:.3f}"


@pytest.mark.parametrize(("end", "word"), [("repeat", "repeated"), ("loop", "looped")])
def test_frames_past_the_end_are_marked(clips: Path, end: str, word: str) -> None:
    sampling = FULL.model_copy(update={"stride": 30, "end": end})
    panels = scene_of(clips / "h264_bframes.mp4", sampling, dense(CANVAS, (1, 8, 8))).panels[CANVAS]
    assert [panel.note for panel in panels] == ["", "", *[f"past the end, {word}"] * 2]
    assert [panel.label.split()[-1] for panel in panels] == [
        "0",
        "30",
        *(["59"] * 2 if end == "repeat" else "0 30".split()),
    ]


def test_a_tiled_canvas_is_shown_as_its_images(clips: Path) -> None:
    canvas = Canvas(frames=8, height_px=192, width_px=256, tiles=(2, 2))
    sampling = FULL.model_copy(update={"frames": 8, "stride": 11})
    panels = scene_of(clips / "h264_bframes.mp4", sampling, dense(canvas, (1, 16, 16))).panels[canvas]
    tiles = [
        [read_stamp(panel.image[y : y + 96, x : x + 128]) for y in (0, 96) for x in (0, 128)]
        for panel in panels
    ]
    assert tiles == [[0, 11, 22, 33], [44, 55, 59, 59]]
    assert panels[1].label.split() == "4 to 7 1.760 to 2.360 s frame 44 to 59".split()
    assert [panel.note for panel in panels] == ["", "2 of 4 past the end, repeated"]


def test_damage_where_no_tube_looks_does_not_matter(clips: Path, tmp_path: Path) -> None:
    with av.open(str(clips / "h264_bframes.mp4")) as container:
        keys = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.is_keyframe]
    data = bytearray((clips / "h264_bframes.mp4").read_bytes())
    at, size = keys[1]
    data[at + 4 : at + size] = bytes(size - 4)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    sampling = FULL.model_copy(
        update={"frames": 2, "stride": 20, "clips": 2}
    )  # frames 0 and 20: one is broken
    canvas = Canvas(frames=2, height_px=96, width_px=128)
    whole = (1, 96, 128)
    first = Plan(tubes=(Tube(name="first", kernel=whole, stride=(2, 96, 128), canvas=canvas),))
    panels = scene_of(path, sampling, first).panels[canvas]
    assert read_stamp(panels[0].image) == 0
    assert not panels[1].touched
    assert not panels[1].image.any()
    with pytest.raises(MediaError, match="cannot be decoded"):
        scene_of(path, sampling, dense(canvas, whole))


@pytest.mark.parametrize(("name", "upright"), [("h264_bframes.mp4", False), ("turned_90.mp4", True)])
def test_the_crop_is_outlined_on_the_whole_frame(clips: Path, name: str, upright: bool) -> None:
    sampling = FULL.model_copy(update={"height_px": 96, "width_px": 96})
    canvas = Canvas(frames=4, height_px=96, width_px=96)
    whole = scene_of(clips / name, sampling, dense(canvas, (1, 96, 96))).whole
    assert whole.size == ((360, WHOLE_PX) if upright else (WHOLE_PX, 360))
    rows, columns = np.nonzero((np.asarray(whole) == OUTLINE).all(axis=-1))
    long, short = (rows, columns) if upright else (columns, rows)
    assert (short.min(), short.max()) == (0, 359)
    assert (long.min(), long.max()) == (60, 419)  # 16 to 112 of 128


def test_a_page_has_each_tubes_colour_and_fits(clips: Path) -> None:
    plan = models.plan("gated-b16", frames=20, size=(64, 96))
    sampling = Sampling(frames=20, height_px=64, width_px=96)
    page = draw(scene_of(clips / "h264_bframes.mp4", sampling, plan), plan, "a \udcff title")
    assert page.width < 4000
    pixels = {tuple(colour) for colour in np.unique(np.asarray(page).reshape(-1, 3), axis=0)}
    assert pixels >= set(COLOURS[: len(plan.tubes)])


def inspect(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `tubelet inspect`; gives its exit code."""
    return tubelet(monkeypatch, "inspect", *arguments)


SMALL = ("--frames", "20", "--size", "64x96")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264_bframes.mp4", ("--clips", "3", "--clip", "2", "--fps", "12.5", "--start-seconds", "0.5")),
        ("one_frame.mp4", ("--end", "loop", "--filter", "bicubic")),
        ("still.jpg", ()),
    ],
)
@pytest.mark.parametrize("model", ["tubevit-tiny", "gated-b16", "clip"])
def test_every_kind_of_input_is_drawn(
    clips: Path, tmp_path: Path, name: str, options: tuple, model: str, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    output = tmp_path / "new" / "x.png"
    assert inspect(monkeypatch, clips / name, "--model", model, "--output", output, *SMALL, *options) == 0
    with Image.open(output) as drawn:
        assert capfd.readouterr().out == f"{output}: {drawn.width} x {drawn.height} px\n"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"VIDEO": "/no/where.mp4"}, "VIDEO = '/no/where.mp4': no such file"),
        ({"VIDEO": "BROKEN"}, "InvalidDataError"),
        ({"VIDEO": "foo://bucket/x.mp4"}, "VIDEO = 'foo://bucket/x.mp4': no filesystem for it"),
        ({"--model": "tubevit-b61"}, "--model = 'tubevit-b61': no such model; did you mean 'tubevit-b16'?"),
        ({"--output": "x.pdf"}, "--output = 'x.pdf': its name must end with one of .png, .jpg, .jpeg"),
        ({"--output": "/dev/null/x.png"}, "--output = '/dev/null/x.png': cannot be written to"),
        ({"--frames": "0"}, "--frames = 0: input should be greater than 0"),
        ({"--frames": "8"}, "--frames = 8: the model's tubes need at least 20 frames"),
        ({"--frames": "5000"}, "--frames = 5000: too many"),
        ({"--size": "224"}, "--size = '224': write it as HEIGHTxWIDTH"),
        ({"--size": "16x224"}, "--size = (16, 224): the model's tubes need at least 28x28 pixels"),
        ({"--filter": "cubic"}, "--filter = 'cubic': input should be 'area'"),
        ({"--stride": "2", "--fps": "5"}, "--stride and fps exclude each other"),
        ({"--clip": "1"}, "--clip = 1: clips are numbered 0 to 0"),
        ({"--start-seconds": "nan"}, "--start-seconds = nan: must be 0 or later"),
        ({"--start-seconds": "2", "--end-seconds": "1"}, "--end-seconds = 1.0: must be later than 2 s"),
        ({"--start-seconds": "90"}, "no frame is shown from 90 s on"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(
    clips: Path, tmp_path: Path, changes: dict, line: str, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video at all")
    asked = {"VIDEO": clips / "h264_bframes.mp4", "--model": "tubevit-tiny", "--output": tmp_path / "x.png"}
    asked |= changes
    video = str(asked.pop("VIDEO")).replace("BROKEN", str(tmp_path / "broken.mp4"))
    assert inspect(monkeypatch, video, *(text for option in asked.items() for text in option)) == 2
    output = capfd.readouterr()
    (said,) = output.err.splitlines()
    assert line in said
    assert not output.out
    assert not (tmp_path / "x.png").exists()


def test_an_input_is_not_drawn_over(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes((clips / "still.jpg").read_bytes())
    assert inspect(monkeypatch, photo, "--model", "clip", "--output", photo) == 2
    assert "this is the input" in capfd.readouterr().err
    assert photo.read_bytes() == (clips / "still.jpg").read_bytes()


def test_an_image_needs_an_image_plan(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    asked = ("--model", "dualpath-b16", "--output", tmp_path / "x.png")
    assert inspect(monkeypatch, clips / "still.jpg", *asked) == 2
    assert "--model = 'dualpath-b16': it has no plan for images" in capfd.readouterr().err


def test_nothing_of_it_needs_torch() -> None:
    script = "import sys, jobs.drawing; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], cwd=Path(__file__).parent.parent, check=False
        ).returncode
        == 0
    )
