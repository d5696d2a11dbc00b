"""From a spec to a cluster: default workers fit it, cluster.yaml is what `ray up` takes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from samples import free_port

from jobs import embed
from jobs.cluster import Room, connected, cores, room
from jobs.spec import EmbedSpec, load
from pipeline.commits import Run
from pipeline.errors import SpecError
from pipeline.limits import Limits
from pipeline.sampling import Sampling
from pipeline.stages import Cutting

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("room", [Room(1, 1, 0), Room(1, 2, 0), Room(1, 15, 0), Room(2, 1, 0), Room(3, 11, 0),
                                  Room(1, 1, 1), Room(1, 2, 2), Room(4, 63, 8)])  # fmt: skip
@pytest.mark.parametrize("changes", [(), ("sampling=null", "input={shards: x}")])
def test_default_workers_fit_every_room(room: Room, changes: tuple[str, ...]) -> None:
    spec = load(ROOT / "jobs" / "specs" / "quickstart.yaml", changes)
    assert isinstance(spec, EmbedSpec)
    sampling = Sampling()
    plan = spec.model.plans(sampling)["video"]
    cutting = Cutting("/", sampling, {"video": plan}, (), 3, 16, Limits(), None)
    pools = embed.pools(spec, Run("/x", "f"), embed.Encoder(spec.model, sampling), cutting, "s", room)
    assert sum(pool.actors * pool.cpus for pool in pools) <= room.cpus
    assert sum(pool.actors * pool.gpus for pool in pools) <= room.gpus
    assert all(pool.actors >= 1 for pool in pools)


def test_a_plan_sees_this_machine_without_starting_a_ray() -> None:
    assert not ray.is_initialized()
    found = room(None, with_gpus=False)
    assert (found.nodes, found.cpus, found.gpus, found.places) == (1, cores(), 0, None)
    assert not ray.is_initialized()
    with connected(None) as there:
        assert (there.nodes, there.cpus, there.places) == (1, found.cpus, None)
        assert room(None, with_gpus=False).cpus == found.cpus


def test_an_address_where_nothing_answers_is_told_at_once() -> None:
    begun = time.monotonic()
    with (
        pytest.raises(SpecError, match=r"ray.address = .*no cluster answers there"),
        connected(f"127.0.0.1:{free_port()}"),
    ):
        pass
    assert time.monotonic() - begun < 30


def test_a_ray_that_does_not_start_ends_the_process_though_it_holds_pythons_lock() -> None:
    code = """
import ctypes, jobs.cluster, ray
jobs.cluster.START_SECONDS = 1.0
ray.init = lambda *_, **__: ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the lock, as Ray does there
with jobs.cluster.connected(None):
    pass
"""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - begun < 50
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout (0:00:01)!")
    assert "in connected" in done.stderr
