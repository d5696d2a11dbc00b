"""Placement by labels: pools are sized by the nodes that they may run on, and run on no others."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from samples import embed_spec

import jobs
from jobs import embed, placement, shard
from jobs.cluster import connected
from jobs.progress import Progress
from jobs.recipe import TrainWorkers
from jobs.room import Node, Room
from jobs.runner import run_job
from jobs.spec import EmbedSpec, ShardSpec, load
from jobs.survey import survey
from jobs.workers import launch
from pipeline.commits import Receipt, Run
from pipeline.corpus import Media
from pipeline.errors import SpecError, SpecListError
from pipeline.limits import Limits
from pipeline.plan import Plan
from pipeline.pools import Pool, StalledError
from pipeline.sampling import Sampling
from pipeline.stages import Cutting

DECODE, EMBED = {"role": "decode"}, {"role": "embed"}
PLACED = {"decode": {"labels": DECODE}, "embed": {"labels": EMBED}}


def cluster_of(decode: int, cores: int, embed: int, gpus: int, may_grow: bool = False) -> Room:
    """Decode nodes of so many cores; embed nodes of eight, and so many GPUs."""
    nodes = [Node(cores, 0, {**DECODE, "ray.io/node-id": str(n)}) for n in range(decode)]
    return Room.of([*nodes, *[Node(8, gpus, EMBED)] * embed], may_grow)


def embed_spec_of(unit_bytes: int = 64 << 20, **resources: Any) -> EmbedSpec:
    values = embed_spec(Path("/videos"), Path("/x"), resources=resources)
    values["output"]["unit_bytes"] = unit_bytes
    spec = load(values)
    assert isinstance(spec, EmbedSpec)
    return spec


def pools_of(spec: EmbedSpec, room: Room) -> list[Pool]:
    sampling = Sampling()
    plans: dict[Media, Plan] = {"video": spec.model.plans(sampling)["video"]}
    cutting = Cutting("/", sampling, plans, (), 3, 16, Limits(), None)
    return placement.pools(spec, Run("/x", "f"), embed.Encoder(spec.model, sampling), cutting, room)


def embed_pools(room: Room, **resources: Any) -> list[Pool]:
    return pools_of(embed_spec_of(**resources), room)


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_pools_are_sized_by_the_nodes_they_may_run_on(gpus: int) -> None:
    decoders, embedders = embed_pools(cluster_of(2, 32, 3, gpus), **PLACED)
    assert (decoders.labels, embedders.labels) == (DECODE, EMBED)
    assert decoders.actors * decoders.cpus == 64  # none of the 24 cores elsewhere
    assert embedders.actors == (3 * gpus or 3)
    assert embedders.cpus == (0 if gpus else 8)  # decoders do not share them


def test_pools_share_the_cores_of_nodes_that_both_may_run_on() -> None:
    for resources in ({}, {"decode": {"labels": EMBED}, "embed": {"labels": EMBED}}):
        decoders, embedders = embed_pools(cluster_of(0, 0, 2, 0), **resources)
        assert decoders.actors * decoders.cpus + embedders.actors * embedders.cpus <= 15


def test_a_shard_job_decodes_on_its_nodes_alone() -> None:
    models = {
        "kind": "shard",
        "models": [{"name": "tubevit-tiny"}],
        "resources": {"decode": {"labels": DECODE}},
    }
    spec = load({"version": 1, "input": {"path": "/v"}, "output": {"path": "/x"}, **models})
    assert isinstance(spec, ShardSpec)
    cutting = Cutting("/", Sampling(), {}, (), 3, 16, Limits(), None)
    (pool,) = shard.pools(spec, Run("/x", "f"), cutting, "s", cluster_of(2, 4, 1, 0))
    assert (pool.actors, pool.labels) == (8, DECODE)


def test_on_a_machine_alone_labels_choose_nothing() -> None:
    decoders, embedders = embed_pools(Room(1, 7, 0), **PLACED)
    assert not decoders.labels
    assert not embedders.labels
    assert (decoders.actors, embedders.actors) == tuple(pool.actors for pool in embed_pools(Room(1, 7, 0)))


def test_what_no_node_has_is_refused_or_waited_for() -> None:
    nowhere = {"role": "decod"}
    with pytest.raises(SpecError) as error:
        cluster_of(1, 4, 1, 0).missing("resources.decode.labels", nowhere)
    assert str(error.value) == (
        "resources.decode.labels = {'role': 'decod'}: no node of this cluster has these labels "
        "(there are: role=decode, role=embed); name others, or none"
    )
    waiting = cluster_of(1, 4, 1, 0, may_grow=True).missing("resources.decode.labels", nowhere)
    assert waiting is not None
    assert waiting.startswith("waiting for a node with role=decod (resources.decode.labels)")
    assert cluster_of(1, 4, 1, 0).missing("resources.decode.labels", DECODE) is None
    assert Room(1, 7, 0).missing("resources.decode.labels", nowhere) is None


def embed_check(room: Room, **resources: Any) -> list[str]:
    spec = embed_spec_of(**resources)
    return placement.check(spec, pools_of(spec, room), room)


def test_workers_that_fit_are_not_spoken_of() -> None:
    assert embed_check(cluster_of(2, 32, 3, 1), **PLACED) == []
    assert embed_check(Room(1, 7, 0), **PLACED) == []


def test_all_workers_together_are_refused_or_waited_for() -> None:
    for resources, line in (
        (
            {"decode": {"actors": 1000}},
            r"resources \(actors x cpus\) = 10\d\d\.\d: this machine has 7; ask for fewer",
        ),
        ({"embed": {"gpus": 1.0}}, r"resources \(actors x gpus\) = 1\.0: this machine has 0; ask for fewer"),
    ):
        with pytest.raises(SpecError, match=line):
            embed_check(Room(1, 7, 0), **resources)
    wanted = {"decode": {"labels": DECODE, "actors": 1000}, "embed": {"labels": EMBED}}
    with pytest.raises(SpecError, match=r"= 1024\.0: this machine has 87"):
        embed_check(cluster_of(2, 32, 3, 0), **wanted)
    notes = embed_check(cluster_of(2, 32, 3, 0, may_grow=True), **wanted)
    assert "waiting for the cluster to grow: workers want 1000 cpus with role=decode, it has 64" in notes


def test_a_range_has_to_fit_with_its_least() -> None:
    room, embedders = cluster_of(2, 32, 3, 1), {"labels": EMBED, "actors": (1, 3)}
    wanted = {"decode": {"labels": DECODE, "actors": (32, 1000)}, "embed": embedders}
    assert [(pool.least, pool.actors) for pool in embed_pools(room, **wanted)] == [(32, 1000), (1, 3)]
    assert embed_check(room, **wanted) == []
    with pytest.raises(SpecError, match=r"\(actors x cpus\) = 65\.0: nodes with role=decode have 64"):
        embed_check(room, decode={"labels": DECODE, "actors": (65, 1000)}, embed=embedders)
    with pytest.raises(SpecListError, match=r"actors = \(9, 2\): the least number comes first"):
        embed_spec_of(decode={"actors": (9, 2)})


def test_there_are_no_more_decoders_than_one_driver_leads() -> None:
    """Unless somebody asks for them."""
    room = cluster_of(100, 32, 3, 8)

    def decoders(mib: int, **decode: Any) -> tuple[int, list[str]]:
        resources = {"decode": {"labels": DECODE, **decode}, "embed": {"labels": EMBED}}
        spec = embed_spec_of(mib << 20, **resources)
        found = pools_of(spec, room)
        return found[0].actors, placement.check(spec, found, room)

    few, (note,) = decoders(64)
    assert note == f"{few} decoders: one driver leads no more with units of 64 MiB (output.unit_bytes)"
    assert 100 < few < decoders(1024)[0] < 3200
    assert decoders(64, actors=3000) == (3000, [])
    assert decoders(1 << 16) == (3200, [])


def test_one_worker_that_no_node_can_hold_is_refused_or_waited_for() -> None:
    """However many cores there are in all."""
    wide = {"decode": {"actors": 1, "cpus": 33.0, "labels": DECODE}, "embed": {"labels": EMBED}}
    problem = "resources.decode.cpus = 33.0: no node with role=decode has more than 32; ask for less"
    with pytest.raises(SpecError) as error:
        embed_check(cluster_of(2, 32, 3, 0), **wide)
    assert str(error.value) == problem
    (note,) = embed_check(cluster_of(2, 32, 3, 0, may_grow=True), **wide)
    assert note == (
        "waiting for the cluster to grow: a worker wants 33 cpus, no node with role=decode has more than 32"
    )
    many = {"embed": {"gpus": 4.0, "actors": 1}}
    with pytest.raises(SpecError, match=r"resources.embed.gpus = 4.0: no node has more than 2"):
        embed_check(cluster_of(0, 0, 3, 2), **many)


def test_workers_for_which_single_nodes_have_too_little_left_are_told_of() -> None:
    """Twenty cores for each of six: there are 128, but a node of 32 has them once."""
    wide = {"decode": {"actors": 1, "cpus": 8.0}, "embed": {"actors": 6, "cpus": 20.0}}
    (note,) = embed_check(cluster_of(4, 32, 1, 0), **wide)
    assert note == "only 4 of 6 workers of embed fit: each wants 20 cpus on one node"
    tenths = {
        "decode": {"actors": 10, "cpus": 0.1, "gpus": 0.1},
        "embed": {"actors": 1, "cpus": 1.0, "gpus": 0.0},
    }
    assert embed_check(cluster_of(0, 0, 1, 1), **tenths) == []


def test_no_more_workers_than_units() -> None:
    spec = load(embed_spec(Path("/videos"), Path("/x")))
    assert isinstance(spec, EmbedSpec)
    cutting = Cutting("/", Sampling(), {}, (), 3, 16, Limits(), None)
    encoder, room = embed.Encoder(spec.model, Sampling()), Room(1, 64, 0)
    found = placement.pools(spec, Run("/x", "f"), encoder, cutting, room, 3)
    assert placement.workers(found) == {"decode": 3, "embed": 1}
    assert placement.workers(placement.pools(spec, Run("/x", "f"), encoder, cutting, room))["decode"] > 3


@pytest.mark.parametrize("labels", ["{role: 'in(a,b)'}", "{role: '!a'}", "{'a b': c}", "{role: 3}"])
def test_labels_are_plain_words(labels: str) -> None:
    """Ray would take some of these for a choice or a refusal, which are not compared here."""
    with pytest.raises(SpecError, match="resources.decode.labels") as error:
        load(embed_spec(Path("/videos"), Path("/x")), (f"resources.decode.labels={labels}",))
    assert "\n" not in str(error.value)


def test_a_cluster_that_the_caller_holds_is_what_it_is(local_ray: None, clips: Path, tmp_path: Path) -> None:
    spec = embed_spec(clips, tmp_path / "out", resources={"embed": {"labels": EMBED}})
    with pytest.raises(
        SpecError, match=r"resources.embed.labels = {'role': 'embed'}: no node of this cluster"
    ):
        jobs.run(spec)
    spec = embed_spec(clips, tmp_path / "out", resources={"decode": {"actors": 10_000}})
    with pytest.raises(SpecError, match=r"resources \(actors x cpus\) = .*this machine has"):
        jobs.run(spec)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes for decoders, one for models, all of two cores: nothing but their labels tells them apart."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 150 << 20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    for labels in (DECODE, DECODE, EMBED):
        made.add_node(num_cpus=2, labels=labels, **store)
    yield made.address
    made.shutdown()


class Witness(Progress):
    """Notes on which nodes the workers of a job are."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.seen: set[tuple[str, str]] = set()

    def advance(self, receipt: Receipt) -> None:
        super().advance(receipt)
        roles = {node["NodeID"]: node["Labels"].get("role", "head") for node in ray.nodes()}
        for actor in ray._private.state.actors().values():
            for stage in ("Decode", "Embed"):
                if f"({stage})" in actor["ActorClassName"] and actor["State"] == "ALIVE":
                    self.seen.add((stage, roles[actor["Address"]["NodeID"]]))


@pytest.mark.slow
def test_workers_run_where_their_labels_say(cluster: str, corpus: Path, tmp_path: Path) -> None:
    resources = {"decode": {"labels": DECODE}, "embed": {"labels": EMBED, "cpus": 1.0}}
    spec = embed_spec(corpus, tmp_path / "out", resources=resources, ray={"address": cluster})
    spec["output"]["unit_bytes"] = 200_000
    witness = Witness()
    report = run_job(load(spec), witness)
    assert report.clips > 20
    assert witness.seen == {("Decode", "decode"), ("Embed", "embed")}


@pytest.mark.slow
def test_a_plan_counts_the_workers_of_the_cluster_that_is_named(
    cluster: str, corpus: Path, tmp_path: Path
) -> None:
    resources = {"decode": {"labels": DECODE}, "embed": {"labels": EMBED, "cpus": 1.0}}
    spec = embed_spec(corpus, tmp_path / "out", resources=resources, ray={"address": cluster})
    found = survey(load(spec), 0.0)
    assert (found.room.nodes, found.workers, found.notes) == (3, {"decode": 4, "embed": 1}, [])
    wide = {"decode": {"labels": DECODE, "cpus": 64.0}, "embed": {"labels": EMBED}}
    notes = survey(load({**spec, "resources": wide}), 0.0).notes
    assert any("a worker wants 64 cpus, no node with role=decode has more than 2" in note for note in notes)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_labels_that_nobody_brings_end_the_job_with_a_line_that_names_them(
    cluster: str, clips: Path, tmp_path: Path
) -> None:
    resources = {"decode": {"labels": DECODE, "actors": 1}, "embed": {"labels": {"role": "gpu"}, "actors": 1}}
    where = {"address": cluster, "wait_seconds": 8.0}
    witness = Witness()
    with pytest.raises(
        StalledError, match=r"1 of 1 workers of .*Embed\) \(on nodes with role=gpu\) are missing"
    ):
        run_job(load(embed_spec(clips, tmp_path / "out", resources=resources, ray=where)), witness)
    assert any("waiting for a node with role=gpu" in note for note in witness.notes)


@pytest.mark.slow
def test_workers_that_train_together_run_where_their_labels_say(cluster: str, tmp_path: Path) -> None:
    def work(config: dict[str, str]) -> None:
        here = ray.get_runtime_context().get_node_labels()
        Path(config["spec"], here["role"]).touch()

    (tmp_path / "roles").mkdir()
    with connected(cluster) as room:
        for labels in (EMBED, DECODE):
            wanted = TrainWorkers(workers=2, labels=labels)
            launch(work, str(tmp_path / "roles"), tmp_path / "run", wanted, 0, room)
            role = labels["role"]
            assert [path.name for path in (tmp_path / "roles").iterdir()] == [role]
            (tmp_path / "roles" / role).unlink()


@pytest.mark.slow
def test_two_models_share_a_gpu(clips: Path, tmp_path: Path) -> None:
    """A logical one: Ray gives it away by halves, and counts nothing else."""
    from ray.cluster_utils import Cluster

    one = {"num_cpus": 6, "num_gpus": 1, "include_dashboard": False, "object_store_memory": 150 << 20}
    made = Cluster(initialize_head=True, head_node_args=one)
    try:
        resources = {"decode": {"actors": 1}, "embed": {"actors": 2, "gpus": 0.5, "cpus": 1.0}}
        spec = embed_spec(clips, tmp_path / "out", resources=resources, ray={"address": made.address})
        spec["output"]["unit_bytes"] = 200_000
        report = run_job(load(spec), Witness())
        resources["embed"] |= {"actors": 3}
        more = embed_spec(clips, tmp_path / "more", resources=resources)
        with connected(made.address) as room:
            job = load(more)
            assert isinstance(job, EmbedSpec)
            notes = placement.check(job, pools_of(job, room), room)
    finally:
        made.shutdown()
    assert report.workers["embed"] == 2
    assert report.gpu_seconds == pytest.approx(report.model_seconds / 2)
    assert notes == ["waiting for the cluster to grow: workers want 1.5 gpus, it has 1"]
