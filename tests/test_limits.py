"""Files that are broken, hostile or too large cost what the limits allow, and only the clips they spoil."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from make_clips import stamped, write
from samples import WHOLE_PLAN, dense, stamps

from pipeline.errors import MediaError
from pipeline.limits import Limits
from pipeline.plan import Canvas
from pipeline.sampling import Sampling
from pipeline.storage import locate
from pipeline.video import Lost, Pixels, Video, read_clips


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
    for view in read_clips(locate(str(tmp_path / "damaged.mp4")), sampling, WHOLE_PLAN):
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
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="not a regular file"):  # and not waited for
        Video(locate(str(tmp_path / "pipe.mp4")))


def damaged(clips: Path, folder: Path, packet: int) -> Path:
    """h264_bframes.mp4 with the data of one packet overwritten."""
    with av.open(str(clips / "h264_bframes.mp4")) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray((clips / "h264_bframes.mp4").read_bytes())
    position, size = packets[packet]
    data[position + 5 : position + size] = bytes(size - 5)
    path = folder / "damaged.mp4"
    path.write_bytes(data)
    return path


def test_damage_can_be_kept_and_is_counted(clips: Path, tmp_path: Path) -> None:
    place = locate(str(damaged(clips, tmp_path, 16)))
    sampling = Sampling(
        frames=4, stride=1, every_seconds=0.16, height_px=96, width_px=128, corrupt="keep", end="drop"
    )
    views = list(read_clips(place, sampling, WHOLE_PLAN))
    assert all(isinstance(view, Pixels) for view in views)
    assert [view.clip.index for view in views if isinstance(view, Pixels)] == list(range(15))
    counts = [view.damaged_frames for view in views if isinstance(view, Pixels)]
    assert counts[0] == counts[-1] == 0
    assert 0 < sum(counts) < 30


def test_a_file_can_fail_as_a_whole(clips: Path, tmp_path: Path) -> None:
    sampling = Sampling(frames=4, stride=1, clips=1, height_px=96, width_px=128, corrupt="fail_file")
    assert len(list(read_clips(locate(str(clips / "h264_bframes.mp4")), sampling, WHOLE_PLAN))) == 1
    with pytest.raises(MediaError, match="a frame cannot be decoded") as caught:
        # The clip is one of the middle; the damage is at the end.
        list(read_clips(locate(str(damaged(clips, tmp_path, 55))), sampling, WHOLE_PLAN))
    assert caught.value.reason == "corrupt"


def read(path: Path, **limits: Any) -> list[Pixels | Lost]:
    sampling = Sampling(frames=4, stride=1, clips=1, height_px=96, width_px=128)
    return list(read_clips(locate(str(path)), sampling, WHOLE_PLAN, limits=Limits(**limits)))


@pytest.mark.parametrize(
    ("limits", "reason", "says"),
    [
        ({"max_pixels": 128 * 96 - 1}, "too_large", "pictures of 128 x 96, limits.max_pixels is 12287"),
        ({"max_bytes": 1000}, "too_large", "bytes, limits.max_bytes is 1000"),
        ({"max_seconds": 2.0}, "too_large", "lasts 2 s, limits.max_seconds is 2"),
        ({"timeout_seconds": 1e-6}, "timeout", "longer than limits.timeout_seconds = 1e-06"),
        ({"formats": ("avi",)}, "unreadable", "not in a format of limits.formats"),
    ],
)
def test_limits(clips: Path, limits: dict[str, Any], reason: str, says: str) -> None:
    with pytest.raises(MediaError, match=says) as caught:
        read(clips / "h264_bframes.mp4", **limits)
    assert caught.value.reason == reason
    assert len(read(clips / "h264_bframes.mp4")) == 1


@pytest.mark.parametrize("name", ["h264_open_gop.mkv", "hevc.mp4", "vp9.webm", "vp8_hidden.webm", "av1.mkv"])
def test_any_codec_is_held_to_the_pixel_limit_and_told_so(clips: Path, name: str) -> None:
    """Some decoders do not even tell a size that they refuse."""
    for most in (100, 5000, 128 * 96 - 1):
        with pytest.raises(MediaError, match=rf"pictures of 128 x 96, limits.max_pixels is {most}") as caught:
            read(clips / name, max_pixels=most)
        assert caught.value.reason == "too_large"


def test_a_picture_that_grows_in_mid_stream_is_held_to_the_limit(tmp_path: Path) -> None:
    """The header says little; a frame behind it is larger than allowed."""
    options = {"crf": "20", "g": "10"}
    ticks = [3600 * n for n in range(20)]
    write(tmp_path / "a.ts", "libx264", ticks[:10], Fraction(1, 90000), options=options)
    write(
        tmp_path / "b.ts",
        "libx264",
        ticks[10:],
        Fraction(1, 90000),
        options=options,
        pictures=lambda number: stamped(number).repeat(4, axis=0).repeat(4, axis=1),
    )
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    place = locate(str(both))
    sampling = Sampling(frames=2, stride=1, every_seconds=0.08, height_px=96, width_px=128)
    plan = dense(Canvas(frames=2, height_px=96, width_px=128), (1, 96, 128))
    kinds = [type(v) for v in read_clips(place, sampling, plan, limits=Limits(max_pixels=128 * 96))]
    assert kinds[:4] == [Pixels] * 4
    assert Lost in kinds[4:]
    assert Pixels not in kinds[5:]
    assert [type(v) for v in read_clips(place, sampling, plan)] == [Pixels] * 10


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "http": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "sdp", "ffconcat"])
def test_a_file_that_leads_to_others_is_not_followed(
    clips: Path, tmp_path: Path, kind: str, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_text(PLAYLISTS[kind].format(target=clips / "h264.ts"))
    with pytest.raises(MediaError) as caught:
        read(path)
    assert caught.value.reason == "unreadable"


def test_a_device_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").symlink_to("/dev/zero")
    with pytest.raises(MediaError, match="not a regular file"):
        read(tmp_path / "x.mp4")
