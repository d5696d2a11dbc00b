"""Which frames make a clip: golden cases, and properties over random timelines."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import MediaError
from pipeline.sampling import Sampling, Timeline, choose_clips


def steady(frames: int, rate: int = 25, start: int = 0) -> Timeline:
    return Timeline(np.arange(frames) + start, frames + start, Fraction(1, rate))


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    gaps = draw(st.lists(st.integers(1, 90), min_size=1, max_size=80))
    start = draw(st.integers(-200, 200))
    pts = start + np.cumsum([0, *gaps[:-1]])
    return Timeline(pts, int(pts[-1]) + gaps[-1], Fraction(1, 1000))


samplings = st.builds(
    lambda frames, speed, clips, end: Sampling(frames=frames, **speed, **clips, end=end),
    st.integers(1, 12),
    st.one_of(
        st.integers(1, 4).map(lambda s: {"stride": s}),
        st.floats(0.5, 60).map(lambda f: {"fps": f}),
    ),
    st.one_of(
        st.integers(1, 5).map(lambda n: {"clips": n}),
        st.floats(0.01, 3).map(lambda s: {"every_seconds": s}),
    ),
    st.sampled_from(["repeat", "loop", "drop"]),
)


@given(timelines(), samplings)
def test_clips_lie_in_the_video_and_padding_is_counted(timeline: Timeline, sampling: Sampling) -> None:
    try:
        clips = choose_clips(timeline, sampling)
    except MediaError:
        assert sampling.end == "drop"
        return
    assert [clip.index for clip in clips] == sorted({clip.index for clip in clips})
    for clip in clips:
        assert clip.frames.shape == (sampling.frames,)
        assert clip.frames.min() >= 0
        assert clip.frames.max() < len(timeline.pts)
        own = clip.frames[: sampling.frames - clip.padded_frames]
        assert (np.diff(own) >= 0).all()
        if sampling.end == "drop":
            assert clip.padded_frames == 0
        if sampling.end == "repeat" and clip.padded_frames:
            assert (clip.frames[-clip.padded_frames :] == len(timeline.pts) - 1).all()
    if sampling.clips is not None:
        assert len(clips) == sampling.clips


@settings(max_examples=30)
@given(timelines(), st.integers(1, 6), st.sampled_from([{"stride": 1}, {"fps": 50.0}]))
def test_windows_at_every_tick_show_every_frame(timeline: Timeline, frames: int, speed: dict) -> None:
    clips = choose_clips(timeline, Sampling(frames=frames, **speed, every_seconds=0.001))
    assert {f for clip in clips for f in clip.frames.tolist()} == set(range(len(timeline.pts)))


@given(timelines(), samplings, st.integers(1, 4))
def test_a_video_read_in_parts_gives_the_same_clips(
    timeline: Timeline, sampling: Sampling, part: int
) -> None:
    try:
        whole = choose_clips(timeline, sampling)
    except MediaError:
        return
    count = len(whole)
    parts = [
        clip
        for first in range(0, count, part)
        for clip in choose_clips(
            timeline, sampling, window=(first, first + part if first + part < count else None)
        )
    ]
    assert [(c.index, c.frames.tolist()) for c in parts] == [(c.index, c.frames.tolist()) for c in whole]


@given(st.integers(-5000, 5000), samplings)
def test_only_time_since_the_first_frame_counts(start: int, sampling: Sampling) -> None:
    a, b = steady(60), steady(60, start=start)
    try:
        expected = choose_clips(a, sampling)
    except MediaError:
        return
    assert [c.frames.tolist() for c in choose_clips(b, sampling)] == [c.frames.tolist() for c in expected]


def test_one_clip_is_the_middle_and_several_reach_both_ends() -> None:
    timeline = steady(100)
    (middle,) = choose_clips(timeline, Sampling(frames=8, stride=2))
    assert middle.frames[0] == (100 - 15) // 2
    clips = choose_clips(timeline, Sampling(frames=8, stride=2, clips=3))
    assert [c.frames[0] for c in clips] == [0, 43, 85]
    assert clips[-1].frames[-1] == 99


def test_windows_start_every_so_often_until_the_end_is_covered() -> None:
    clips = choose_clips(steady(100), Sampling(frames=25, stride=1, every_seconds=1.0))
    assert [c.frames[0] for c in clips] == [0, 25, 50, 75]
    assert [c.padded_frames for c in clips] == [0, 0, 0, 0]
    clips = choose_clips(steady(110), Sampling(frames=25, stride=1, every_seconds=1.0))
    assert [c.padded_frames for c in clips] == [0, 0, 0, 0, 15]
    clips = choose_clips(steady(110), Sampling(frames=25, stride=1, every_seconds=1.0, end="drop"))
    assert [c.frames[0] for c in clips] == [0, 25, 50, 75]


def test_fps_is_by_time_where_frames_are_not_regular() -> None:
    timeline = Timeline(np.array([0, 10, 20, 500, 510, 520, 1000]), 1100, Fraction(1, 1000))
    (clip,) = choose_clips(timeline, Sampling(frames=3, fps=2))
    assert clip.frames.tolist() == [0, 3, 6]
    (clip,) = choose_clips(timeline, Sampling(frames=3, fps=4, every_seconds=9.0), span_seconds=(0.0, 0.6))
    assert clip.frames.tolist() == [0, 2, 3]  # at 0, 0.25 and 0.5 s: the frame on show, not the next one
    (clip,) = choose_clips(timeline, Sampling(frames=3, fps=4, clips=1), span_seconds=(0.0, 0.6))
    assert clip.frames.tolist() == [1, 2, 4]  # the middle one of what fits starts at 0.01 s


def test_fps_of_the_video_itself_takes_every_frame_despite_rounded_timestamps() -> None:
    """Matroska rounds to the millisecond: 30 frames a second become 0, 33, 67, 100, ..."""
    pts = np.array([round(i * 1000 / 30) for i in range(60)])
    (clip,) = choose_clips(Timeline(pts, 2000, Fraction(1, 1000)), Sampling(frames=32, fps=30, clips=1))
    assert (np.diff(clip.frames) == 1).all()


def test_a_span_bounds_its_clips() -> None:
    clips = choose_clips(steady(100), Sampling(frames=5, stride=1, clips=2), span_seconds=(1.0, 2.0))
    assert [c.frames.tolist() for c in clips] == [[25, 26, 27, 28, 29], [45, 46, 47, 48, 49]]
    with pytest.raises(MediaError, match="no frame is shown from 9 s on to 10 s"):
        choose_clips(steady(100), Sampling(), span_seconds=(9.0, 10.0))


def test_loop_starts_the_video_again() -> None:
    (clip,) = choose_clips(steady(3), Sampling(frames=7, stride=1, end="loop"))
    assert clip.frames.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert clip.padded_frames == 4


@pytest.mark.parametrize("both", [{"stride": 2, "fps": 5.0}, {"clips": 1, "every_seconds": 1.0}])
def test_contradictions_are_refused(both: dict) -> None:
    with pytest.raises(ValidationError, match="exclude each other; keep one"):
        Sampling(**both)
