"""Frames that leave no trace are found in AV1's own headers, and leaving them out changes nothing."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_clips import scene, write

from pipeline.av1 import Skipper


def decoded(path: Path, skip: bool) -> tuple[dict[int | None, bytes], int]:
    """{pts: pixels}, and how many packets were left out."""
    frames, left_out = {}, 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        skipper = Skipper(stream.codec_context.extradata)
        for packet in container.demux(stream):
            if skip and packet.size and skipper.leaves_no_trace(bytes(packet)):
                left_out += 1
                continue
            frames |= {frame.pts: frame.to_ndarray().tobytes() for frame in packet.decode()}
    return frames, left_out


@pytest.mark.parametrize("preset", ["6", "10", "12"])
@pytest.mark.parametrize("container", ["mp4", "mkv", "obu", "ivf"])
def test_what_is_left_out_is_missed_by_nobody(tmp_path: Path, preset: str, container: str) -> None:
    path = tmp_path / f"x.{container}"
    options = {"preset": preset, "crf": "40", "g": "24"}
    write(path, "libsvtav1", list(range(48)), Fraction(1, 25), options=options, pictures=scene)
    every, _ = decoded(path, skip=False)
    some, left_out = decoded(path, skip=True)
    assert left_out > 4
    assert len(every) == len(some) + left_out == 48
    assert some.items() <= every.items()


def test_real_files(shared: Path) -> None:
    every, _ = decoded(shared / "codecs" / "av1_video.mkv", skip=False)
    some, left_out = decoded(shared / "codecs" / "av1_video.mkv", skip=True)
    assert 0 < left_out == len(every) - len(some)
    assert some.items() <= every.items()


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_noise_is_no_reason_to_fail(extradata: bytes, packet: bytes) -> None:
    assert Skipper(extradata).leaves_no_trace(packet) in (True, False)
