"""Does throughput grow with workers, and where would it end: orchestration alone, on a simulated cluster.

    python -m benchmarks.scale [--units 40] [--seconds 1.0]

A cluster of four nodes on this machine: a head without CPUs, two labelled for decoders, one for the model.
Units go through the two pools of an embed job whose work is to sleep, so that as many workers as one likes
fit on two cores: what is left is what Ray, the pools and the driver add. Efficiency is the rate at which
receipts come, once the pools are full, over decoders / seconds; what is missing to 1 is overhead.

Then the driver alone: how many units it can see through in a second, with workers that do nothing at all, few
and many of them, and from that how large a cluster it can feed.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from rich.console import Console
from rich.table import Table

from jobs.placement import DECODED_BYTES_PER_SECOND
from pipeline.commits import File, Receipt
from pipeline.pools import Patience, Pool, most_actors, run_pools
from pipeline.storage import Location, locate

ROOT = Path(__file__).parent.parent
STORE_BYTES = 150 << 20
# Every node but the head has room for every worker: labels alone say where they run.
NODES: list[dict[str, Any]] = [
    {"num_cpus": 5, "num_gpus": 1, "labels": {"role": role}} for role in ("decode", "decode", "embed")
]
TUBES_BYTES = 1 << 20  # of a unit, on its way to the model

CORES = 32  # of a decode node of cluster.yaml


def stages() -> tuple[type, type]:
    """Within a function, so that workers get them by value: they cannot import this file."""

    class Cut:
        """Sleeps as long as decoding a unit would take."""

        def __init__(self, seconds: float):
            self.seconds = seconds

        def __call__(self, units: pa.Table) -> pa.Table:
            time.sleep(self.seconds)
            node = ray.get_runtime_context().get_node_id()
            tubes = pa.array([bytes(TUBES_BYTES)], pa.large_binary())
            return units.append_column("tubes", tubes).append_column("node", [[node]])

    class Encode:
        def __init__(self, seconds: float):
            self.seconds = seconds

        def __call__(self, units: pa.Table) -> pa.Table:
            time.sleep(self.seconds)
            nodes = f"{units['node'][0]} {ray.get_runtime_context().get_node_id()}"
            receipt = Receipt(units["unit"][0].as_py(), files=[File(nodes, 0, 0, "")])
            return pa.table({"receipt": [receipt.to_json()]})

    return Cut, Encode


@dataclass(frozen=True)
class Seen:
    """One run; its first receipts, which come while the pools fill, are not counted."""

    units: int
    rate: float  # receipts a second: the slope of their number over time
    startup_seconds: float  # until the first receipt
    driver_cpu_seconds: float
    driver_bytes: tuple[int, int]  # when a quarter was done, and at the end
    nodes: set[str]  # "where it was cut, where it was encoded"


def plan_of(folder: Path, units: int) -> Location:
    pq.write_table(pa.table({"unit": range(units)}), folder / "plan.parquet", row_group_size=256)
    return locate(str(folder / "plan.parquet"))


def timed(plan: Location, units: int, pools: list[Pool], warm: int) -> Seen:
    begun, process = time.perf_counter(), psutil.Process()
    startup = cpu = 0.0
    quarter, nodes, times = 0, set(), []
    for number, receipt in enumerate(run_pools(plan, pools, None, Patience(120, 240))):
        if number == 0:
            startup = time.perf_counter() - begun
        if number == warm:
            cpu = time.process_time()
        if number == units // 4:
            quarter = process.memory_full_info().uss
        if number >= warm:
            times.append(time.perf_counter())
        nodes.add(receipt.files[0].path)
    cpu, memory = time.process_time() - cpu, (quarter, process.memory_full_info().uss)
    rate = float(np.polyfit(times, np.arange(len(times)), 1)[0])
    return Seen(len(times), rate, startup, cpu, memory, nodes)


def placed(nodes: set[str], roles: dict[str, str]) -> bool:
    """Whether all was cut on decode nodes and encoded on the one with a GPU."""
    pairs = [tuple(roles[node] for node in pair.split()) for pair in nodes]
    return all(pair == ("decode", "embed") for pair in pairs)


def rounds(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[int, Seen]]:
    """A run for each number of decoders."""
    cut, encode = stages()
    for decoders in (1, 2, 4):
        units = arguments.units * decoders
        pools = [
            Pool(cut, (arguments.seconds,), decoders, 1.0, labels={"role": "decode"}),
            Pool(encode, (arguments.seconds / 20,), 1, 0.0, 1.0, {"role": "embed"}),
        ]
        yield decoders, timed(plan_of(folder, units), units, pools, 2 * decoders)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    from ray.cluster_utils import Cluster

    out = Console(width=110)
    head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for node in NODES:
            cluster.add_node(**node, object_store_memory=STORE_BYTES)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        working = [node for node in ray.nodes() if node["Resources"].get("CPU")]
        roles = {node["NodeID"]: node["Labels"]["role"] for node in working}
        table = Table(title=f"units of {arguments.seconds:g} s of sleep", title_justify="left")
        for column in ("decoders", "units", "startup, s", "units/s", "efficiency", "overhead, ms a unit",
                       "driver, MB", "driver, CPU ms a unit", "where it belongs"):  # fmt: skip
            table.add_column(column, justify="right")
        for decoders, seen in rounds(arguments, folder):
            table.add_row(
                str(decoders), str(seen.units), f"{seen.startup_seconds:.1f}", f"{seen.rate:.2f}",
                f"{seen.rate * arguments.seconds / decoders:.3f}",
                f"{1e3 * (decoders / seen.rate - arguments.seconds):.0f}",
                " -> ".join(f"{x / 1e6:.0f}" for x in seen.driver_bytes),
                f"{1e3 * seen.driver_cpu_seconds / seen.units:.1f}",
                "yes" if placed(seen.nodes, roles) else f"NO: {seen.nodes}",
            )  # fmt: skip
            out.print(f"{decoders} decoders: {seen.rate:.2f} units/s")
        idle = Table(title="workers that do nothing", title_justify="left")
        for column in ("decoders", "units", "units/s", "driver, CPU ms a unit", "driver, MB"):
            idle.add_column(column, justify="right")
        costs: list[tuple[int, float]] = []
        for decoders, seen in idlers(arguments, folder):
            cpu = seen.driver_cpu_seconds / seen.units
            costs.append((decoders, cpu))
            memory = " -> ".join(f"{x / 1e6:.0f}" for x in seen.driver_bytes)
            idle.add_row(str(decoders), str(seen.units), f"{seen.rate:.0f}", f"{1e3 * cpu:.1f}", memory)
        out.print(f"{time.strftime('%Y-%m-%d')}  Python {platform.python_version()}, {os.cpu_count()} cores")
        out.print(table)
        out.print(idle)
        predict(out, costs)
    finally:
        ray.shutdown()
        cluster.shutdown()


def idlers(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[int, Seen]]:
    """A run for each number of decoders that do nothing, so that the driver is what takes time."""
    cut, encode = stages()
    for decoders in (4, 16, 64):
        pools = [
            Pool(cut, (0.0,), decoders, 0.1, labels={"role": "decode"}),
            Pool(encode, (0.0,), 1, 0.0, 1.0, {"role": "embed"}),
        ]
        units = 40 * arguments.units
        yield decoders, timed(plan_of(folder, units), units, pools, units // 10)


def predict(out: Console, costs: list[tuple[int, float]]) -> None:
    """Where a cluster outgrows its driver: a unit costs it so much, and so much more for every decoder.

    Ray Data looks at every actor of a pool when it gives one a unit, so the cost is a line, and what n
    decoders ask of the driver a parabola.
    """
    slope, fixed = np.polyfit(*np.array(costs).T, 1)
    out.print(f"a unit costs the driver {1e3 * fixed:.1f} ms, and {1e3 * slope:.3f} ms for every decoder")

    def most(unit_bytes: int) -> int:
        return most_actors(unit_bytes / DECODED_BYTES_PER_SECOND, fixed, slope)

    for mib in (64, 256, 1024, 4096):
        n = most(mib << 20)
        out.print(f"units of {mib:,} MiB: {n:,.0f} decoders, {n / CORES:.0f} nodes of {CORES} cores")
    wanted = 1000 * CORES
    out.print(f"1,000 nodes, {wanted:,} decoders: {wanted / most(1 << 30):.0f} jobs with units of 1 GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--units", type=int, default=40, help="for each decoder")
    parser.add_argument("--seconds", type=float, default=1.0, help="of sleep in place of decoding a unit")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:  # a process with a Ray of its own
        run(arguments, arguments.folder)
        return
    with tempfile.TemporaryDirectory(prefix="tubelet-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "ray").mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": f"{folder}/ray",
                       "RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.scale", "--folder", folder]
        command += ["--units", str(arguments.units), "--seconds", str(arguments.seconds)]
        sys.exit(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
