"""A corpus is listed and frozen the same way every time, from wherever it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import dense

from pipeline.corpus import Corpus, open_input, read_corpus
from pipeline.errors import SpecError
from pipeline.plan import Canvas
from pipeline.sampling import Sampling
from pipeline.storage import locate, version
from pipeline.video import Pixels, read_clips

PLAN = dense(Canvas(frames=2, height_px=8, width_px=8), (1, 4, 4))  # 384 bytes a clip
STILL = PLAN.image()
assert STILL is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b/two.mp4",
        "a one.mkv",
        "b/-dash 'quoted' 100%.webm",
        "c/still.JPG",
        "notes.txt",
        ".hidden.mp4",
    ):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "corpus"


def listed(corpus: Corpus) -> pa.Table:
    return pa.concat_tables(corpus.chunks)


def uris(corpus: Corpus) -> list[str]:
    return listed(corpus)["uri"].to_pylist()


def test_a_folder_is_searched_all_the_way_down(folder: Path) -> None:
    corpus = read_corpus(str(folder))
    inputs = listed(corpus).to_pylist()
    assert [i["uri"] for i in inputs] == [
        "a one.mkv",
        "b/-dash 'quoted' 100%.webm",
        "b/two.mp4",
        "c/still.JPG",
    ]
    assert [i["media"] for i in inputs] == ["video", "video", "video", "image"]
    assert corpus.skipped == {".txt": 1}
    for one in inputs:
        place = open_input(corpus.root, one["uri"])
        assert one["version"] == version(place.info(), local=True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mkv", ["a one.mkv"]),
        ("**/*.mp4", ["b/two.mp4"]),
        ("b/*", ["-dash 'quoted' 100%.webm", "two.mp4"]),
        ("b/two.mp4", ["two.mp4"]),
    ],
)
def test_globs_and_files(folder: Path, pattern: str, expected: list[str]) -> None:
    corpus = read_corpus(str(folder / pattern))
    found = uris(corpus)
    assert found == expected
    assert all(open_input(corpus.root, uri).exists() for uri in found)


def test_several_places_share_the_root_they_have_in_common(folder: Path) -> None:
    corpus = read_corpus((str(folder / "c"), str(folder / "b")))
    assert uris(corpus) == ["c/still.JPG", "b/-dash 'quoted' 100%.webm", "b/two.mp4"]
    assert corpus.root == str(folder)


ROWS: list[dict[str, Any]] = [
    {
        "uri": "b/two.mp4",
        "start_seconds": 1.5,
        "end_seconds": 3.0,
        "labels": ["run", "jump, high"],
        "speaker": "x",
    },
    {"uri": "a one.mkv", "start_seconds": None, "end_seconds": None, "labels": [], "speaker": None},
]


def write_table(path: Path) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        case ".csv":
            path.write_text(
                "uri,start_seconds,end_seconds,labels,speaker\n"
                'b/two.mp4,1.5,3.0,"run;jump, high",x\na one.mkv,,,,\n'
            )
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_tables_say_the_same_in_every_format(folder: Path, suffix: str) -> None:
    corpus = read_corpus(str(write_table(folder / f"list{suffix}")))
    first, second = listed(corpus).to_pylist()
    assert first["uri"] == "b/two.mp4"
    assert (first["start_seconds"], first["end_seconds"]) == (1.5, 3.0)
    assert first["labels"] == ["run", "jump, high"]
    assert first["version"] == version(open_input(corpus.root, first["uri"]).info(), local=True)
    assert not second["labels"]
    assert corpus.extra == ["speaker"]
    assert first["speaker"] == "x"
    assert open_input(corpus.root, first["uri"]).exists()


def test_a_text_list_and_a_root_of_its_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# mine\nb/two.mp4\n\na one.mkv\n")
    corpus = read_corpus(str(tmp_path / "list.txt"), root=str(folder))
    found = uris(corpus)
    assert found == ["b/two.mp4", "a one.mkv"]
    assert all(open_input(corpus.root, uri).exists() for uri in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\nx.mp4\n", "has no column 'uri' or 'path', only name"),
        ("uri,crop\nx.mp4,1\n", "column 'crop' is a name of the output's own; rename it"),
        ("uri,start_seconds\nx.mp4,soon\n", "cannot be read as .csv"),
        ("uri\nx.mp4\nx.mp4\n", "lists x.mp4 more than once"),
        ("uri,group\nx.mp4,1\n,2\n", "row 2 has no uri"),
        ("uri,who,who\nx.mp4,1,2\n", "has two columns named 'who'; rename one"),
        ("uri,start_seconds\nx.mp4,-1\n", "row 1 spans -1.0 to None s; it must begin at 0 or later"),
        ("uri,start_seconds,end_seconds\ny.mp4,1,2\nx.mp4,3,2\n", "row 2 spans 3.0 to 2.0 s"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        read_corpus(str(tmp_path / "list.csv"))
    assert "\n" not in str(caught.value)


def test_tables_are_taken_at_their_word(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("\ufeffuri, start_seconds,labels\nx.mp4,1.5,NA;null\n")
    (row,) = listed(read_corpus(str(tmp_path / "list.csv"))).to_pylist()
    assert (row["uri"], row["start_seconds"], row["labels"]) == ("x.mp4", 1.5, ["NA", "null"])


def test_columns_that_no_output_can_hold_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"uri": "x.mp4", "meta": {}}\n')
    with pytest.raises(SpecError, match="input.path = 'meta': a column of struct<> cannot be carried along"):
        read_corpus(str(tmp_path / "list.jsonl"))


def test_odd_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = uris(read_corpus(str(folder)))
    (folder / "b" / "back").symlink_to(folder)  # a loop
    assert uris(read_corpus(str(folder))) == expected
    (folder / "b" / "back").unlink()
    (folder / "z.mp4").symlink_to(folder / "nowhere.mp4")  # dangles: an input all the same, that fails later
    assert uris(read_corpus(str(folder))) == [*expected, "z.mp4"]
    (folder / "z.mp4").unlink()
    (folder / "z.mp4").symlink_to("z.mp4")  # leads nowhere but to itself
    assert uris(read_corpus(str(folder))) == [*expected, "z.mp4"]
    (folder / "z.mp4").unlink()
    for name in ("~", "-x", "a:b", "[x] #1 ?*", "list.csv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a b%20'.mp4").write_bytes(b"x")
        monkeypatch.chdir(tmp_path)
        assert uris(read_corpus(f"./{name}")) == ["a b%20'.mp4"]
    assert uris(read_corpus(f"{folder}/**")) == expected  # files alone, and only what can be embedded


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(SpecError, match=r"no video or image in it \(1 .md are neither video nor image\)"):
        read_corpus(str(tmp_path))
    with pytest.raises(SpecError, match="no such file or folder"):
        read_corpus(str(tmp_path / "nope"))
    with pytest.raises(SpecError, match="the pattern matches no file"):
        read_corpus(str(tmp_path / "*.mp4"))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3 protocol server on loopback."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "y")
        yield f"scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    server.stop()


def test_s3_is_listed_like_a_folder(s3: str, clips: Path) -> None:
    bucket = locate(f"s3://videos?{s3}")
    bucket.filesystem.create_dir("videos", recursive=True)
    for name in ("in/one two.mp4", "in/deep/b.webm", "in/readme.md"):
        source = clips / ("vp9.webm" if name.endswith("webm") else "h264_bframes.mp4")
        with bucket.filesystem.open_output_stream(f"videos/{name}") as stream:
            stream.write(source.read_bytes())
    corpus = read_corpus(f"s3://videos/in?{s3}")
    assert uris(corpus) == ["deep/b.webm", "one two.mp4"]
    assert uris(read_corpus(f"s3://videos/in/**/*.webm?{s3}")) == ["deep/b.webm"]
    sampling = Sampling(frames=2, height_px=8, width_px=8)
    (view,) = read_clips(open_input(corpus.root, "one two.mp4"), sampling, PLAN)
    assert isinstance(view, Pixels)


def test_a_bucket_whose_region_cannot_be_asked_for_is_an_error_of_the_spec(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_network(uri: str) -> None:  # as AWS answers where there is none
        raise OSError("When resolving region for bucket 'videos': Could not resolve hostname")

    filesystem = SimpleNamespace(FileSystem=SimpleNamespace(from_uri=without_network))
    monkeypatch.setattr("pipeline.storage.pafs", filesystem)
    with pytest.raises(SpecError, match=r"input.path = 's3://videos': .*Could not resolve hostname"):
        locate("s3://videos", "input.path")
