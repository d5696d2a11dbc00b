"""Frames come out exact: by the number stamped into each, and against a full decode of real files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import dense, read_stamp

from pipeline.errors import MediaError
from pipeline.plan import Canvas
from pipeline.sampling import Sampling
from pipeline.storage import Location, locate
from pipeline.video import Lost, Pixels, Video, probe, read_clips

CANVAS = Canvas(frames=4, height_px=96, width_px=128)
PLAN = dense(CANVAS, (1, 96, 128))
STAMPED = [
    "h264_bframes.mp4", "h264_open_gop.mkv", "h264_variable.mp4", "h264.ts", "raw.h264", "vp9.webm",
    "vp8_hidden.webm", "mpeg4_bframes.avi", "av1.mkv", "hevc.mp4",
]  # fmt: skip
FRAMES = {"raw.h264": 24, "mpeg4_bframes.avi": 40, "av1.mkv": 40, "hevc.mp4": 40}


def stamps(view: Pixels | Lost) -> list[int]:
    assert isinstance(view, Pixels), view
    return [read_stamp(picture) for picture in view.frames[CANVAS]]


@pytest.mark.parametrize("name", STAMPED)
def test_the_timeline_has_every_frame(clips: Path, name: str) -> None:
    with Video(locate(str(clips / name))) as video:
        assert len(video.timeline.pts) == FRAMES.get(name, 60)
        assert (np.diff(video.timeline.pts) > 0).all()


@pytest.mark.parametrize("name", STAMPED)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_clips_hold_exactly_the_frames_they_name(clips: Path, name: str, data: st.DataObject) -> None:
    sampling = data.draw(
        st.builds(
            lambda stride, clips: Sampling(frames=4, stride=stride, height_px=96, width_px=128, **clips),
            st.integers(1, 9),
            st.one_of(
                st.integers(1, 6).map(lambda n: {"clips": n}),
                st.floats(0.2, 2).map(lambda s: {"every_seconds": s}),
            ),
        )
    )
    views = list(read_clips(locate(str(clips / name)), sampling, PLAN))
    assert views
    for view in read_clips(locate(str(clips / name)), sampling, PLAN):
        assert isinstance(view, Pixels)
        assert stamps(view) == view.clip.frames.tolist()


def test_variable_frame_rate_is_sampled_by_time(clips: Path) -> None:
    sampling = Sampling(frames=4, fps=5, clips=1, height_px=96, width_px=128)
    place = locate(str(clips / "h264_variable.mp4"))
    (view,) = read_clips(place, sampling, PLAN, span_seconds=(0.0, 0.61))
    # Shown from 0, .2, .24, .28, .48, .52, .56 s on.
    assert isinstance(view, Pixels)
    assert stamps(view) == [0, 1, 3, 6]
    assert view.start_seconds == 0.0
    with Video(place) as video:
        assert int(video.timeline.pts[0]) == 19200


@pytest.mark.parametrize(("name", "turns"), [("turned_90.mp4", 1), ("turned_180.mp4", 2)])
def test_pictures_are_turned_as_the_display_matrix_says(clips: Path, name: str, turns: int) -> None:
    height, width = (128, 96) if turns % 2 else (96, 128)
    canvas = Canvas(frames=1, height_px=height, width_px=width)
    sampling = Sampling(frames=1, stride=1, height_px=height, width_px=width)
    (view,) = read_clips(locate(str(clips / name)), sampling, dense(canvas, (1, 8, 8)))
    assert isinstance(view, Pixels)
    assert read_stamp(np.rot90(view.frames[canvas][0], -turns)) == int(view.clip.frames[0])


def test_crops_go_from_left_to_right_as_a_viewer_sees_them(clips: Path) -> None:
    canvas = Canvas(frames=1, height_px=96, width_px=64)
    for name, turns in (("h264_bframes.mp4", 0), ("turned_180.mp4", 2)):
        sampling = Sampling(frames=1, stride=1, height_px=96, width_px=64, crops=3)
        views = read_clips(locate(str(clips / name)), sampling, dense(canvas, (1, 8, 8)))
        parts = [view.frames[canvas][0].copy() for view in views if isinstance(view, Pixels)]
        assert len(parts) == 3
        whole = np.concatenate([parts[0], parts[2]], axis=1)
        number = read_stamp(np.rot90(whole, -turns))
        assert number in (9, 10, 29, 30)  # the middle of 20, and of 60, frames
        np.testing.assert_allclose(parts[1].astype(int), whole[:, 32:96].astype(int), atol=40)


def test_an_image_is_one_frame(clips: Path) -> None:
    canvas = CANVAS.image()
    sampling = Sampling(frames=1, stride=1, height_px=96, width_px=128)
    (view,) = read_clips(locate(str(clips / "still.jpg")), sampling, dense(canvas, (1, 8, 8)))
    assert isinstance(view, Pixels)
    assert read_stamp(view.frames[canvas][0]) == 77


def test_a_clip_longer_than_its_video_repeats_the_last_frame(clips: Path) -> None:
    (view,) = read_clips(
        locate(str(clips / "one_frame.mp4")), Sampling(frames=4, height_px=96, width_px=128), PLAN
    )
    assert isinstance(view, Pixels)
    assert stamps(view) == [0, 0, 0, 0]
    assert view.clip.padded_frames == 3


def test_only_frames_that_the_plan_touches_are_converted(clips: Path) -> None:
    plan = dense(Canvas(frames=2, height_px=96, width_px=128, step=3), (1, 96, 128))
    sampling = Sampling(frames=4, stride=1, clips=1, height_px=96, width_px=128)
    (view,) = read_clips(locate(str(clips / "vp9.webm")), sampling, plan)
    assert isinstance(view, Pixels)
    shown = [read_stamp(picture) for picture in view.frames[plan.canvases[0]]]
    assert shown == view.clip.frames[[0, 3]].tolist()


def test_damage_in_the_middle_costs_only_the_clips_it_touches(clips: Path, tmp_path: Path) -> None:
    whole = (clips / "h264_bframes.mp4").read_bytes()
    with av.open(str(clips / "h264_bframes.mp4")) as container:
        packets = [(p.pos, p.size, p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size]
    second_key = [p for p in packets if p[3]][1]
    damaged = bytearray(whole)
    damaged[second_key[0] + 4 : second_key[0] + second_key[1]] = bytes(second_key[1] - 4)
    (tmp_path / "damaged.mp4").write_bytes(damaged)
    sampling = Sampling(frames=4, stride=1, every_seconds=0.16, height_px=96, width_px=128)
    views = []
    for view in read_clips(locate(str(tmp_path / "damaged.mp4")), sampling, PLAN):
        if isinstance(view, Pixels):
            assert stamps(view) == view.clip.frames.tolist()  # nothing wrong gets through
        views.append(view)
    lost = [view for view in views if isinstance(view, Lost)]
    assert 0 < len(lost) < len(views) / 2
    assert all(view.error.reason == "corrupt" for view in lost)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "unreadable"), (b"not a video at all", "unreadable"), (None, "unreadable")],
)
def test_what_is_no_video_says_so(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MediaError) as caught:
        Video(locate(str(path)))
    assert caught.value.reason == reason
    assert str(tmp_path) not in str(caught.value)


def test_a_fifo_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="not a regular file"):  # and not waited for
        Video(locate(str(tmp_path / "pipe.mp4")))


def test_an_object_store_gives_the_same_frames(clips: Path) -> None:
    """By way of Arrow's file objects instead of FFmpeg's own file reader."""
    local = locate(str(clips / "h264_bframes.mp4"))
    remote = Location(pa.fs.SubTreeFileSystem(str(clips), pa.fs.LocalFileSystem()), "h264_bframes.mp4")
    assert not remote.is_local
    sampling = Sampling(frames=4, stride=2, clips=3, height_px=96, width_px=128)
    expected = [stamps(view) for view in read_clips(local, sampling, PLAN)]
    assert [stamps(view) for view in read_clips(remote, sampling, PLAN)] == expected


def test_probe_reads_the_header(clips: Path) -> None:
    found = probe(locate(str(clips / "vp9.webm")))
    assert (found.codec, found.width_px, found.height_px) == ("vp9", 128, 96)
    assert found.duration_seconds == pytest.approx(2.4, abs=0.1)


def test_the_committed_clips_are_what_the_generator_makes(clips: Path, tmp_path: Path) -> None:
    """Not byte for byte, as encoders change, but by every stamp."""
    subprocess.run([sys.executable, str(clips / "make_clips.py"), str(tmp_path)], check=True)
    names = sorted(path.name for path in clips.iterdir() if path.suffix != ".py" and path.is_file())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        with Video(locate(str(clips / name))) as old, Video(locate(str(tmp_path / name))) as new:
            np.testing.assert_array_equal(old.timeline.pts, new.timeline.pts)


REAL = ["codecs", "mixed_clips", "ut_interaction/set1/hug", "sibur_tank/train", "weizmann4/bend", "asl_words"]


@pytest.mark.parametrize("folder", REAL)
def test_real_files_give_the_frames_of_a_full_decode(shared: Path, folder: str) -> None:
    files = sorted(path for path in (shared / folder).rglob("*") if path.is_file())[
        :: 3 if folder != "codecs" else 1
    ]
    for path in files[:22]:
        with Video(locate(str(path))) as video:
            count = len(video.timeline.pts)
            wanted = sorted({0, count // 3, count // 3 + 1, count // 2, max(0, count - 2), count - 1})
            expected = full_decode(path, wanted)
            assert {position: digest(frame) for position, frame in video.frames(wanted)} == expected, path
        # A decoder may keep what it was first told, so it is also asked for frames in the middle alone.
        with Video(locate(str(path))) as video:
            middle = {position: expected[position] for position in wanted[1:-2]}
            assert {position: digest(frame) for position, frame in video.frames(sorted(middle))} == middle, (
                path
            )


def full_decode(path: Path, wanted: list[int]) -> dict[int, int]:
    """Frames by counting what a plain decode from the start gives."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        return {n: digest(frame) for n, frame in enumerate(container.decode(stream)) if n in wanted}


def digest(frame: av.VideoFrame | None) -> int:
    assert frame is not None
    return hash(frame.to_ndarray(format="rgb24").tobytes())
