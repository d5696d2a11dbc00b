"""Frames come out exact: by the number stamped into each, and against a full decode of real files."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import WHOLE, WHOLE_PLAN, dense, read_stamp, stamps

from pipeline.errors import MediaError, SpecError
from pipeline.media import Media
from pipeline.plan import Canvas
from pipeline.sampling import Clip, Sampling, choose_clips, reach_of
from pipeline.storage import Location, locate
from pipeline.video import Pixels, Video, probe, read_clips

STAMPED = [
    "h264_bframes.mp4", "h264_open_gop.mkv", "h264_variable.mp4", "h264.ts", "raw.h264", "vp9.webm",
    "vp8_hidden.webm", "mpeg4_bframes.avi", "av1.mkv", "hevc.mp4",
]  # fmt: skip
FRAMES = {"raw.h264": 24, "mpeg4_bframes.avi": 40, "av1.mkv": 40, "hevc.mp4": 40}


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
    views = list(read_clips(locate(str(clips / name)), sampling, WHOLE_PLAN))
    assert views
    for view in read_clips(locate(str(clips / name)), sampling, WHOLE_PLAN):
        assert isinstance(view, Pixels)
        assert stamps(view) == view.clip.frames.tolist()


samplings = st.builds(
    lambda frames, rate, every, end: Sampling(
        frames=frames, every_seconds=every, end=end, height_px=96, width_px=128, **rate
    ),
    st.integers(1, 6),
    st.one_of(
        st.integers(1, 7).map(lambda n: {"stride": n}), st.floats(1, 50).map(lambda r: {"fps": round(r, 2)})
    ),
    st.floats(0.02, 1).map(lambda x: round(x, 3)),
    st.sampled_from(["repeat", "loop", "drop"]),
)
spans = st.tuples(
    st.none() | st.floats(0, 2).map(lambda x: round(x, 3)),
    st.none() | st.floats(0, 3).map(lambda x: round(x, 3)),
)


@pytest.mark.parametrize("name", STAMPED)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sampling=samplings, span=spans, window=st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9)))
def test_a_part_of_the_timeline_gives_the_clips_of_the_whole(
    clips: Path, name: str, sampling: Sampling, span: tuple, window: tuple
) -> None:
    """However few packets were read to know it."""
    place = locate(str(clips / name))
    reach = reach_of(sampling, span, window)
    with Video(place) as video, Video(place, reach=reach) as part:
        try:
            expected = choose_clips(video.timeline, sampling, span)
        except MediaError:
            expected = []
        try:
            found = choose_clips(part.timeline, sampling, span, window)
        except MediaError:
            found = []
        assert part.timeline.origin_pts == video.timeline.origin_pts
        wanted = [clip for clip in expected if window[0] <= clip.index < (window[1] or math.inf)]
        if window[1] == 0:
            wanted = []
        for one, other in zip(found, wanted, strict=True):
            assert (one.index, one.padded_frames) == (other.index, other.padded_frames)
            assert part.timeline.pts[one.frames].tolist() == video.timeline.pts[other.frames].tolist()
            assert read_frames(part, one) == other.frames.tolist()


def read_frames(video: Video, clip: Clip) -> list[int]:
    shots = {shot.position: shot.frame for shot in video.frames(np.unique(clip.frames))}
    found = {}
    for position, frame in shots.items():
        assert frame is not None
        found[position] = read_stamp(frame.to_ndarray(format="rgb24"))
    return [found[position] for position in clip.frames]


@pytest.mark.parametrize("name", STAMPED)
def test_a_gpu_decodes_the_same_frames(clips: Path, name: str) -> None:
    place = locate(str(clips / name))
    try:
        video = Video(place, hardware="cuda")
    except SpecError as error:
        # Raised only where there is no such device; what is compared here is what that decodes.
        pytest.skip(str(error))
    with video, Video(place) as expected:
        positions = range(0, len(video.timeline.pts), 7)
        for one, other in zip(video.frames(positions), expected.frames(positions), strict=True):
            assert one.frame is not None
            assert other.frame is not None
            found, wanted = (f.to_ndarray(format="rgb24").astype(int) for f in (one.frame, other.frame))
            assert read_stamp(found) == one.position
            assert np.abs(found - wanted).mean() < 2


def test_variable_frame_rate_is_sampled_by_time(clips: Path) -> None:
    sampling = Sampling(frames=4, fps=5, clips=1, height_px=96, width_px=128)
    place = locate(str(clips / "h264_variable.mp4"))
    (view,) = read_clips(place, sampling, WHOLE_PLAN, span_seconds=(0.0, 0.61))
    # Shown from 0, .2, .24, .28, .48, .52, .56 s on.
    assert isinstance(view, Pixels)
    assert stamps(view) == [0, 1, 3, 6]
    assert view.start_seconds == 0.0
    with Video(place) as video:
        assert int(video.timeline.pts[0]) == 19200


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


def test_random_crops_are_parts_that_a_name_and_a_seed_decide(clips: Path, tmp_path: Path) -> None:
    """All clips of a file share them, wherever the file lies."""
    canvas = Canvas(frames=1, height_px=96, width_px=128)
    plan, settings = dense(canvas, (1, 8, 8)), {"frames": 1, "stride": 1, "height_px": 96, "width_px": 128}

    def views(path: Path, clips: int = 1, **wanted: Any) -> list[Pixels]:
        sampling = Sampling.model_validate({**settings, "clips": clips, "random_crops": wanted})
        found = [view for view in read_clips(locate(str(path)), sampling, plan) if isinstance(view, Pixels)]
        assert [view.crop_index for view in found] == list(range(wanted.get("count", 4))) * clips
        return found

    source = clips / "h264_bframes.mp4"
    (whole,) = views(source, count=1, area=(1.0, 1.0), aspect=1.0)
    assert whole.crop == (0, 0, 96, 128)
    some = views(source, clips=3, count=8, area=(0.2, 0.8), seed=1)
    assert [view.crop for view in some] == [view.crop for view in some[:8]] * 3
    assert len({view.crop for view in some}) == 8
    for top, left, height, width in (view.crop for view in some):
        assert 0 <= top <= 96 - height
        assert 0 <= left <= 128 - width
        assert 0.18 * 0.75 < height * width / (96 * 128) < 0.82
        assert 0.7 < width / height / (128 / 96) < 1.42
    assert [view.crop for view in views(source, count=8, area=(0.2, 0.8), seed=2)] != [
        v.crop for v in some[:8]
    ]
    elsewhere = tmp_path / source.name
    elsewhere.write_bytes(source.read_bytes())
    assert [view.crop for view in views(elsewhere, count=8, area=(0.2, 0.8), seed=1)] == [
        v.crop for v in some[:8]
    ]
    other = source.with_name("h264_bframes_copy.mp4").name
    (tmp_path / other).write_bytes(source.read_bytes())
    assert [v.crop for v in views(tmp_path / other, count=8, area=(0.2, 0.8), seed=1)] != [
        v.crop for v in some[:8]
    ]


def test_an_image_is_one_frame(clips: Path) -> None:
    canvas = WHOLE.image()
    sampling = Sampling(frames=1, stride=1, height_px=96, width_px=128)
    (view,) = read_clips(locate(str(clips / "still.jpg")), sampling, dense(canvas, (1, 8, 8)))
    assert isinstance(view, Pixels)
    assert read_stamp(view.frames[canvas][0]) == 77


def test_a_clip_longer_than_its_video_repeats_the_last_frame(clips: Path) -> None:
    (view,) = read_clips(
        locate(str(clips / "one_frame.mp4")), Sampling(frames=4, height_px=96, width_px=128), WHOLE_PLAN
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


def test_an_object_store_gives_the_same_frames(clips: Path) -> None:
    """By way of Arrow's file objects instead of FFmpeg's own file reader."""
    local = locate(str(clips / "h264_bframes.mp4"))
    remote = Location(pa.fs.SubTreeFileSystem(str(clips), pa.fs.LocalFileSystem()), "h264_bframes.mp4")
    assert not remote.is_local
    sampling = Sampling(frames=4, stride=2, clips=3, height_px=96, width_px=128)
    expected = [stamps(view) for view in read_clips(local, sampling, WHOLE_PLAN)]
    assert [stamps(view) for view in read_clips(remote, sampling, WHOLE_PLAN)] == expected


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
            assert digests(video, wanted) == expected, path
        # A decoder may keep what it was first told, so it is also asked for frames in the middle alone.
        with Video(locate(str(path))) as video:
            middle = {position: expected[position] for position in wanted[1:-2]}
            assert digests(video, sorted(middle)) == middle, path


def full_decode(path: Path, wanted: list[int]) -> dict[int, int]:
    """Frames by counting what a plain decode from the start gives."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        return {n: digest(frame) for n, frame in enumerate(container.decode(stream)) if n in wanted}


def digests(video: Video, positions: list[int]) -> dict[int, int]:
    return {shot.position: digest(shot.frame) for shot in video.frames(positions)}


def digest(frame: av.VideoFrame | None) -> int:
    assert frame is not None
    return hash(frame.to_ndarray(format="rgb24").tobytes())


def test_parts_of_a_stream_that_is_sought_by_byte(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPEG-TS and raw H.264: a part decodes from its own key frame on, not from the start."""
    packets, counts = Media.packets, []

    def counted(media: Media) -> Iterator[av.Packet]:
        counts.append(0)
        for packet in packets(media):
            counts[-1] += 1
            yield packet

    monkeypatch.setattr(Media, "packets", counted)
    for name, last_key in (("h264.ts", 48), ("raw.h264", 16)):
        with Video(locate(str(clips / name))) as video:
            position = len(video.timeline.pts) - 1
            (shot,) = video.frames([position])
            assert shot.frame is not None
            assert read_stamp(shot.frame.to_ndarray(format="rgb24")) == position
            assert counts[-1] <= position - last_key + 2


def test_no_frame_outlives_its_use(clips: Path) -> None:
    """PyAV has ways to keep frames until garbage is collected, which large pictures do not wait for."""
    gc.collect()  # counted by type(): isinstance() asks proxies for their class, and torch has one that warns
    gc.disable()
    try:
        before = sum(issubclass(type(thing), av.VideoFrame) for thing in gc.get_objects())
        sampling = Sampling(frames=4, stride=1, clips=9, height_px=96, width_px=128)
        assert len(list(read_clips(locate(str(clips / "turned_90.mp4")), sampling, WHOLE_PLAN))) == 9
        after = sum(issubclass(type(thing), av.VideoFrame) for thing in gc.get_objects())
    finally:
        gc.enable()
    assert after - before <= 1  # the tiny one that the display matrix was read from
