"""Pictures come out as a viewer sees them: colours, turns, shapes, and what cameras and files do to them."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from make_clips import HEIGHT, WIDTH, scene, stamped, write
from samples import dense, read_stamp

from pipeline.errors import MediaError
from pipeline.limits import Limits
from pipeline.plan import Canvas
from pipeline.sampling import Sampling
from pipeline.storage import locate
from pipeline.video import Lost, Pixels, Video, read_clips

TICK = Fraction(1, 12800)
FINE = {"crf": "4", "preset": "veryfast"}
BT709, BT601, BT2020 = 1, 5, 9
LIMITED, FULL = 1, 2


def steady(frames: int) -> list[int]:
    return [512 * n for n in range(frames)]


def views(path: Path, frames: int = 1, *, height: int = HEIGHT, width: int = WIDTH, **more) -> list[Pixels]:
    """All frames of a file as one clip, or several."""
    more = {"stride": 1, "clips": 1, "crops": 1, **more}
    sampling = Sampling(frames=frames, height_px=height, width_px=width, **more)
    plan = dense(Canvas(frames=frames, height_px=height, width_px=width, filter=sampling.filter), (1, 1, 1))
    found = []
    for view in read_clips(locate(str(path)), sampling, plan):
        assert isinstance(view, Pixels), view
        frames = {canvas: picture.copy() for canvas, picture in view.frames.items()}
        found.append(replace(view, frames=frames))
    return found


def pictures(path: Path, frames: int = 1, **more) -> np.ndarray:
    (view,) = views(path, frames, **more)
    return next(iter(view.frames.values()))


def difference(picture: np.ndarray, other: np.ndarray) -> float:
    """Mean over pixels away from colour edges, which 4:2:0 blurs."""
    apart = np.abs(picture.astype(int) - other.astype(int)).max(axis=-1)
    flat = np.ones(apart.shape, bool)
    for edge in (16, 48):
        flat[edge - 4 : edge + 4] = False
    for edge in (8, 40, 48, 80, 88, 120):
        flat[:, edge - 4 : edge + 4] = False
    return float(apart[flat].mean())


# codec, container, pixel format, matrix, range. One scene; the tolerance of each is 4 of 255.
COLOURS = {
    "untagged is BT.601": ("libx264", "mp4", "yuv420p", None, None, FINE),
    "BT.709": ("libx264", "mp4", "yuv420p", BT709, LIMITED, FINE),
    "BT.601": ("libx264", "mp4", "yuv420p", BT601, LIMITED, FINE),
    "BT.2020": ("libx264", "mp4", "yuv420p", BT2020, LIMITED, FINE),
    "full range": ("libx264", "mp4", "yuv420p", BT601, FULL, FINE),
    "full range BT.709": ("libx264", "mp4", "yuv420p", BT709, FULL, FINE),
    "4:4:4": ("libx264", "mp4", "yuv444p", BT709, LIMITED, FINE),
    "4:2:2": ("libx264", "mkv", "yuv422p", BT709, LIMITED, FINE),
    "RGB": ("libx264rgb", "mkv", "rgb24", None, None, FINE),
    "10 bits": ("libx264", "mp4", "yuv420p10le", BT709, LIMITED, FINE),
    "HEVC": ("libx265", "mp4", "yuv420p", BT709, LIMITED, {"crf": "6", "x265-params": "log-level=none"}),
    "HEVC, 10 bits": (
        "libx265",
        "mkv",
        "yuv420p10le",
        BT709,
        LIMITED,
        {"crf": "6", "x265-params": "log-level=none"},
    ),
    "VP9": ("libvpx-vp9", "webm", "yuv420p", BT709, LIMITED, {"crf": "8", "b": "0"}),
    "VP9 with alpha": ("libvpx-vp9", "webm", "yuva420p", BT601, LIMITED, {"crf": "8", "b": "0"}),
    "AV1": ("libsvtav1", "mp4", "yuv420p", BT709, LIMITED, {"crf": "10", "preset": "10"}),
    "MPEG-4": ("mpeg4", "avi", "yuv420p", None, None, {"qmin": "1", "qmax": "2"}),
    "MPEG-2": ("mpeg2video", "ts", "yuv420p", None, None, {"qmin": "1", "qmax": "2"}),
    "FFV1": ("ffv1", "mkv", "yuv420p", BT601, LIMITED, {}),
    "Motion JPEG": ("mjpeg", "avi", "yuvj420p", None, None, {"qmin": "1", "qmax": "2"}),
}


@pytest.mark.parametrize("name", COLOURS)
def test_one_scene_gives_one_picture_in_any_codec_container_and_colour(tmp_path: Path, name: str) -> None:
    codec, container, pixel_format, matrix, span, options = COLOURS[name]
    path = tmp_path / f"x.{container}"
    write(
        path,
        codec,
        list(range(4)),
        Fraction(1, 25),
        options=options,
        pixel_format=pixel_format,
        pictures=scene,
        colorspace=matrix,
        color_range=span,
    )
    for number, picture in enumerate(pictures(path, 4)):
        assert difference(picture, scene(number)) < 4


def test_gray_is_luma(tmp_path: Path) -> None:
    write(
        tmp_path / "x.mp4",
        "libx264",
        steady(4),
        TICK,
        options=FINE,
        pixel_format="gray",
        pictures=scene,
        color_range=FULL,
    )
    luma = scene(0) @ np.array([0.299, 0.587, 0.114])
    assert difference(pictures(tmp_path / "x.mp4", 4)[0], np.repeat(luma[..., None], 3, axis=-1)) < 4


def test_gif_frames_build_on_each_other_and_keep_their_times(tmp_path: Path) -> None:
    path = tmp_path / "x.gif"
    pts = [0, 10, 15, 40, 41, 60, 90, 100]
    write(path, "gif", pts, Fraction(1, 100), options={}, pixel_format="rgb8")
    (view,) = views(path, 8)
    assert [read_stamp(picture) for picture in view.frames[next(iter(view.frames))]] == list(range(8))
    assert [float(p * view.time_base) for p in view.pts] == pytest.approx([p / 100 for p in pts])
    with Video(locate(str(path))) as video:
        (shot,) = video.frames([5])
        assert shot.frame is not None
        assert read_stamp(shot.frame.to_ndarray(format="rgb24")) == 5


MATRICES = {
    "as stored": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "turned 180": (-1, 0, 0, -1),
    "turned 90": (0, 1, -1, 0),
    "turned 270": (0, -1, 1, 0),
    "along one diagonal": (0, 1, 1, 0),
    "along the other": (0, -1, -1, 0),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_display_matrix_turns_and_mirrors(tmp_path: Path, name: str) -> None:
    """Against the matrix itself, pixel by pixel: (x, y) is seen at (a x + c y, b x + d y), moved to fit."""
    path = tmp_path / "x.mp4"
    write(path, "libx264", steady(4), TICK, options=FINE, pictures=scene)
    a, b, c, d = MATRICES[name]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # version 0: after times, id, duration, layer, group, volume
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    seen_x, seen_y = a * x + c * y, b * x + d * y
    expected = np.zeros((WIDTH, HEIGHT, 3) if a == 0 else (HEIGHT, WIDTH, 3), np.uint8)
    expected[seen_y - seen_y.min(), seen_x - seen_x.min()] = scene(0)
    picture = pictures(path, 4, height=expected.shape[0], width=expected.shape[1])[0]
    assert np.abs(picture.astype(int) - expected.astype(int)).mean() < 4


# How stored rows and columns are seen, by EXIF's number for it.
EXIF = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("number", EXIF)
def test_a_photo_is_turned_as_its_exif_data_says(tmp_path: Path, number: int) -> None:
    from PIL import Image

    image, exif = Image.fromarray(scene(0)), Image.Exif()
    exif[0x0112] = number
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    expected = EXIF[number](scene(0)).astype(int)
    picture = pictures(tmp_path / "x.jpg", 1, height=expected.shape[0], width=expected.shape[1])[0]
    assert np.abs(picture.astype(int) - expected).mean() < 4


def test_a_percent_sign_in_an_images_name_is_no_pattern(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(stamped(5)).save(tmp_path / "001.png")
    Image.fromarray(stamped(9)).save(tmp_path / "%03d.png")
    assert read_stamp(pictures(tmp_path / "%03d.png")[0]) == 9


def test_a_photo_with_a_video_behind_it_is_a_photo(clips: Path, tmp_path: Path) -> None:
    """As phones make them; FFmpeg would call it neither."""
    path = tmp_path / "x.jpg"
    path.write_bytes((clips / "still.jpg").read_bytes() + (clips / "h264_bframes.mp4").read_bytes())
    assert read_stamp(pictures(path)[0]) == 77


def test_a_picture_of_exactly_the_limit_passes_and_a_larger_one_does_not(tmp_path: Path) -> None:
    from PIL import Image

    sampling = Sampling(frames=1, stride=1, height_px=8, width_px=8)
    plan = dense(Canvas(frames=1, height_px=8, width_px=8), (1, 8, 8))
    for height, passes in ((1000, True), (1001, False)):
        Image.new("RGB", (1000, height)).save(tmp_path / "x.png")
        found = read_clips(locate(str(tmp_path / "x.png")), sampling, plan, limits=Limits(max_pixels=10**6))
        if passes:
            assert isinstance(next(found), Pixels)
        else:
            with pytest.raises(MediaError, match="pictures of 1000 x 1001, limits.max_pixels is 1000000"):
                next(found)


def test_pixels_that_are_not_square_are_shown_as_such(tmp_path: Path) -> None:
    """A picture squeezed to half its width, with pixels twice as wide as high."""

    def squeezed(number: int) -> np.ndarray:
        return scene(number).reshape(HEIGHT, WIDTH // 2, 2, 3).mean(axis=2).astype(np.uint8)

    path = tmp_path / "x.mp4"
    write(path, "libx264", steady(4), TICK, options=FINE, pictures=squeezed, aspect=Fraction(2, 1))
    assert difference(pictures(path, 4)[0], scene(0)) < 5


@pytest.mark.parametrize(("height", "width"), [(95, 127), (1, 1), (97, 33), (2, 200)])
def test_odd_sizes(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "x.mkv"

    def plain(number: int) -> np.ndarray:
        return np.full((height, width, 3), (200, 100, 40), np.uint8)

    write(path, "ffv1", steady(3), TICK, options={}, pixel_format="yuv420p", pictures=plain)
    for picture in pictures(path, 3, height=64, width=48):
        assert np.abs(picture.astype(int) - (200, 100, 40)).max() < 6


def test_interlaced_pictures_come_woven_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.ts"
    options = {"flags": "+ilme+ildct", "g": "12", "bf": "2", "b": "2M"}
    write(path, "mpeg2video", list(range(40)), Fraction(1, 25), options=options)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    assert [read_stamp(picture) for picture in pictures(path, 40)] == list(range(40))


def test_resolution_changes_in_mid_stream(tmp_path: Path) -> None:
    """Two encodings of different sizes, one after the other in one file, as broadcasts have them."""

    def larger(number: int) -> np.ndarray:
        return stamped(number + 20).repeat(2, axis=0).repeat(2, axis=1)

    first, second, both = (tmp_path / name for name in ("a.ts", "b.ts", "both.ts"))
    ticks = [3600 * n for n in range(40)]
    options = {"crf": "20", "g": "10", "bf": "2"}
    write(first, "libx264", ticks[:20], Fraction(1, 90000), options=options)
    write(second, "libx264", ticks[20:], Fraction(1, 90000), options=options, pictures=larger)
    both.write_bytes(first.read_bytes() + second.read_bytes())
    assert [read_stamp(picture) for picture in pictures(both, 40)] == list(range(40))
    found = views(both, 4, every_seconds=0.4, clips=None)
    assert [read_stamp(v.frames[next(iter(v.frames))][0]) for v in found] == [0, 10, 20, 30]
    assert [view.crop[2:] for view in found] == [(96, 128)] * 2 + [(192, 256)] * 2


@pytest.mark.parametrize(("shift", "first"), [(0, 0), (-7, 7)])
def test_frames_that_an_edit_list_cuts_away_are_not_there(tmp_path: Path, shift: int, first: int) -> None:
    """An MP4 that starts before zero is written with an edit list: players leave out what lies before."""
    path = tmp_path / "x.mp4"
    options = {"crf": "20", "g": "16", "bf": "2"}
    write(path, "libx264", [512 * (n + shift) for n in range(30)], TICK, options=options)
    with Video(locate(str(path))) as video:
        assert len(video.timeline.pts) == 30 - first
    assert [read_stamp(picture) for picture in pictures(path, 30 - first)] == list(range(first, 30))
    assert len(decoded(path)) == 30 - first


def test_timestamps_that_overflow_and_so_are_negative_at_first(tmp_path: Path) -> None:
    """MPEG-TS counts to 2^33; demuxers give what lies before the turn as negative."""
    path = tmp_path / "x.ts"
    options = {"crf": "20", "g": "10", "bf": "2"}
    late = (1 << 33) - 9 * 3600
    write(path, "libx264", [late + 3600 * n for n in range(30)], Fraction(1, 90000), options=options)
    with Video(locate(str(path))) as video:
        assert video.timeline.pts[0] < 0
    assert [read_stamp(picture) for picture in pictures(path, 30)] == list(range(30))


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=44100)
        cover = container.add_stream("mjpeg")
        cover.height, cover.width, cover.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(scene(0), format="rgb24").reformat(format="yuvj420p")
        for packet in [*cover.encode(frame), *cover.encode()]:
            container.mux(packet)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 44100
        for packet in [*sound.encode(tone), *sound.encode()]:
            container.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video
    with pytest.raises(MediaError) as caught:
        Video(locate(str(path)))
    assert caught.value.reason == "no_video"


def test_filters_differ_and_bicubic_is_that_of_pil(tmp_path: Path) -> None:
    """On a lossless picture, three times as large as the canvas."""
    from PIL import Image

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(noise).resize((3 * WIDTH, 3 * HEIGHT), Image.Resampling.BICUBIC))
    path = tmp_path / "x.png"
    Image.fromarray(large).save(path)
    found = {name: pictures(path, filter=name)[0].astype(int) for name in ("area", "bilinear", "bicubic")}
    for name, kernel in (("area", Image.Resampling.BOX), ("bicubic", Image.Resampling.BICUBIC)):
        expected = np.asarray(Image.fromarray(large).resize((WIDTH, HEIGHT), kernel)).astype(int)
        assert np.abs(found[name] - expected).mean() < 1, name
    assert np.abs(found["area"] - found["bicubic"]).mean() > 0


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_a_lost_clip_says_where(clips: Path, tmp_path: Path) -> None:
    data = bytearray((clips / "h264_bframes.mp4").read_bytes())
    data[3000:3400] = bytes(400)
    (tmp_path / "x.mp4").write_bytes(data)
    sampling = Sampling(frames=4, stride=1, every_seconds=0.16, height_px=96, width_px=128)
    plan = dense(Canvas(frames=4, height_px=96, width_px=128), (1, 96, 128))
    lost = [v for v in read_clips(locate(str(tmp_path / "x.mp4")), sampling, plan) if isinstance(v, Lost)]
    assert lost
    assert all(v.error.position_seconds is not None for v in lost)
