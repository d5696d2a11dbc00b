"""What workers tell Prometheus: by the names that the dashboard asks for, with the values of the receipt."""

from __future__ import annotations

import itertools
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from samples import CROPPED, cutting_of, unit_of

from jobs.embed import Embed, Encoder
from jobs.model import Model
from pipeline.commits import Receipt, Run
from pipeline.metrics import COUNTERS, GAUGES, HISTOGRAMS
from pipeline.sampling import Sampling
from pipeline.stages import Decode

DASHBOARD = json.loads((Path(__file__).parent.parent / "jobs" / "specs" / "grafana.json").read_text())
GAUGES_SHOWN = {f"ray_{name}" for name in GAUGES}
SERIES = GAUGES_SHOWN | {
    *(f"ray_{name}_total" for name in COUNTERS),
    *(f"ray_{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")),
}


def asked() -> set[str]:
    """The series that the dashboard's expressions name."""
    texts = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    texts += [str(variable["query"]) for variable in DASHBOARD["templating"]["list"]]
    return set(itertools.chain.from_iterable(re.findall(r"\bray_\w+", text) for text in texts))


def test_the_dashboard_asks_for_what_there_is_and_shows_every_metric() -> None:
    assert asked() <= SERIES
    shown = {re.sub(r"^ray_|_(total|bucket|sum|count)$", "", name) for name in asked()}
    assert shown == {*COUNTERS, *GAUGES, *HISTOGRAMS}


def test_the_dashboard_is_laid_out() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [tuple(panel["gridPos"].values()) for panel in panels]
    assert len(set(places)) == len(places)
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        for target in panel["targets"]:
            assert '{job=~"$job"}' in target["expr"]
            assert target["expr"].count("(") == target["expr"].count(")")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Where a Ray of this test's own, which reports often, tells its metrics."""
    often = {"metrics_report_interval_ms": 300}
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=often)
    try:
        (node,) = ray.nodes()
        yield f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    finally:
        ray.shutdown()


def scraped(endpoint: str) -> dict[tuple[str, str], float]:
    """{(series, its tags): value}"""
    with urllib.request.urlopen(endpoint, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {
        (found[1], found[2]): float(found[3])
        for text in lines
        if (found := re.match(r"(ray_tubelet_\w+)\{(.*)\} (\S+)$", text))
    }


def test_what_a_unit_took_can_be_scraped(endpoint: str, clips: Path, tmp_path: Path) -> None:
    run, sampling = Run(str(tmp_path), "f00d"), Sampling(**CROPPED)
    cutting, unit = cutting_of(clips, sampling), unit_of("vp9.webm", "no", "none")
    encoder = Encoder(Model(name="tubevit-tiny", batch_views=6), sampling)

    class Worker:
        """Both stages in one process, which stays."""

        def work(self) -> str:
            decoded = Decode(run, cutting, "session")(unit)
            return Embed(run, encoder, 1, "")(decoded)["receipt"][0].as_py()

    worker = ray.remote(num_cpus=0)(Worker).remote()
    receipt = Receipt.from_json(ray.get(worker.work.remote()))
    # A gauge that is reported late, on a busy machine, is left out for a while.
    deadline, found = time.monotonic() + 90, scraped(endpoint)
    while len([name for name, _ in found if name in GAUGES_SHOWN]) < 2 or SERIES - {
        name for name, _ in found
    }:
        assert time.monotonic() < deadline, sorted(found)
        time.sleep(0.3)
        found |= scraped(endpoint)
    assert {name for name, _ in found} == SERIES

    def value(name: str, **tags: str) -> float:
        wanted = [f'{key}="{text}"' for key, text in {"job": str(tmp_path), **tags}.items()]
        (one,) = (
            x for (series, said), x in found.items() if series == name and all(w in said for w in wanted)
        )
        return one

    assert value("ray_tubelet_clips_total", stage="embed") == receipt.clips == 9
    assert value("ray_tubelet_bytes_total", stage="embed") == receipt.tube_bytes
    assert value("ray_tubelet_frames_total", stage="decode") == 60
    assert value("ray_tubelet_video_seconds_total") == pytest.approx(receipt.video_seconds)
    assert value("ray_tubelet_decode_seconds_total") == pytest.approx(receipt.decode_seconds)
    assert value("ray_tubelet_model_seconds_total") == pytest.approx(receipt.model_seconds)
    assert value("ray_tubelet_wait_seconds_total") == pytest.approx(receipt.wait_seconds)
    assert value("ray_tubelet_failures_total", stage="open", reason="unreadable") == 2
    for work in receipt.work:
        assert value("ray_tubelet_units_total", stage=work.stage) == 1
        assert value("ray_tubelet_peak_memory_bytes", stage=work.stage) == work.peak_memory_bytes
    # Decoders send four views at a time, to a model that takes six; the last batch has one.
    assert value("ray_tubelet_batch_views_total") == 9
    assert value("ray_tubelet_batch_room_total") == 3 * 6
    assert value("ray_tubelet_unit_seconds_count", stage="embed") == 1
