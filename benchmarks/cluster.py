"""Time the training step of recipe paper in one to four processes on two cores.

Column by column and whole, and between two network namespaces, "machines", that are
joined by a wire of limited rate. Writes results/cluster/{cores,wire}.{json,md}.

    python benchmarks/cluster.py
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from timing import processor, spread

from alexnet_nb import multigpu
from alexnet_nb.augmentation import sample_augment_params
from alexnet_nb.base.files import atomic_write
from alexnet_nb.base.table import MarkdownTable
from alexnet_nb.data.packed import ImageSplit, PackedDataset
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import init_distributed
from alexnet_nb.engine.launch import ALLOCATOR
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.learning import learning_rates, set_learning_rates
from alexnet_nb.preprocessing import pixel_statistics

BATCH, STEPS, ROUNDS = 32, 3, 2
RESULTS = Path(__file__).resolve().parent.parent / "results/cluster"
CORES = {
    "the whole network": (1, False),
    "a column in each": (2, False),
    "the whole network in each": (2, True),
    "two pairs of columns": (4, False),
    "the whole network in each of four": (4, True),
}
WIRE = {  # layout: processes, together, machine of each
    "two processes, a column on each machine": (2, False, "ab"),
    "two processes, the whole network on each machine": (2, True, "ab"),
    "2×2, pairs within a machine": (4, False, "aabb"),
    "2×2, pairs across the wire": (4, False, "abab"),
}
RATES = (None, "1gbit")  # of the wire


def crossed():
    """Bytes that have left this machine over the wire."""
    wire = Path("/sys/class/net/wire/statistics/tx_bytes")
    return int(wire.read_text()) if wire.exists() else 0


def work(processes, data_parallel):
    """What a process does: a step that does not count, then STEPS that do.

    Prints what it saw as JSON.
    """
    torch.set_num_threads(max(1, 2 // processes))
    images = torch.randint(
        0,
        256,
        (BATCH, 3, 256, 256),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    split = ImageSplit(images.numpy(), torch.arange(BATCH).numpy())
    data = PackedDataset(
        Path("."),
        split,
        split,
        tuple(map(str, range(1000))),
        *pixel_statistics(split.images),
        {},
    )
    mesh = init_distributed(processes, data_parallel, "cpu")
    w = Trainer(
        Path("."),
        resolve(Config(data="random", recipe="paper", batch_size=BATCH, epochs=90)),
        data,
        mesh,
    )
    set_learning_rates(w.optimizer, learning_rates(w.recipe, 0))
    w.wrap_ddp()
    draws, seconds = (
        sample_augment_params(BATCH, w.transform.max_offset, w.recipe, 0, 0),
        [],
    )
    for step in range(STEPS + 1):
        if mesh:
            dist.barrier()
        if step == 1:
            before = multigpu.bytes_sent.total(), crossed()
        begin = time.perf_counter()
        batch = w.load_batch(None, draws, 0)
        w.train_step(*w.to_network_input(batch, color_noise=True))
        seconds.append(time.perf_counter() - begin)
        w.step = 0
    if mesh:
        dist.barrier()
    exchanged, wired = multigpu.bytes_sent.total() - before[0], crossed() - before[1]
    gradients = (
        sum(p.nbytes for p in w.model.parameters()) * 2 * (w.replicas - 1) // w.replicas
    )
    found = dict(
        rank=dist.get_rank() if mesh else 0,
        seconds=seconds[1:],
        exchange_bytes=exchanged // STEPS,
        gradient_bytes=gradients,
        wire_bytes=wired // STEPS,
        load=os.getloadavg()[0],
    )
    print(json.dumps(found) + "\n", end="", flush=True)
    os._exit(0)


def launch(processes, data_parallel, machines=None):
    """Return the results of each process of a run.

    It runs on this machine, or on machines that are network namespaces.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port, running = free.getsockname()[1], []
    for rank in range(processes):
        where = dict(
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE=processes,
            MASTER_ADDR="10.9.0.1" if machines else "127.0.0.1",
            MASTER_PORT=port,
            GLOO_SOCKET_IFNAME="wire" if machines else "lo",
        )
        enter = ["ip", "netns", "exec", f"alexnet-{machines[rank]}"] if machines else []
        running.append(
            subprocess.Popen(
                [
                    *enter,
                    sys.executable,
                    __file__,
                    "work",
                    str(processes),
                    str(int(data_parallel)),
                ],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | ALLOCATOR | {n: str(v) for n, v in where.items()},
            )
        )
    lines = [p.communicate()[0] for p in running]
    assert not any(p.returncode for p in running), lines
    return [
        json.loads(next(line for line in out.splitlines() if line.startswith("{")))
        for out in lines
    ]


def lay_wire(rate):
    """Make two network namespaces that are joined by a wire.

    The wire is a pair of virtual Ethernet devices, each of which sends at most so much.
    """

    def run(words):
        return subprocess.run(words.split(), check=True)

    for name in "ab":
        subprocess.run(["ip", "netns", "del", f"alexnet-{name}"], capture_output=True)
    for name in "ab":
        run(f"ip netns add alexnet-{name}")
    run("ip link add wire netns alexnet-a type veth peer name wire netns alexnet-b")
    for i, name in enumerate("ab", 1):
        inside = f"ip netns exec alexnet-{name} "
        for words in (
            f"ip addr add 10.9.0.{i}/24 dev wire",
            "ip link set wire up",
            "ip link set lo up",
        ):
            run(inside + words)
        if rate:
            run(
                inside
                + f"tc qdisc add dev wire root tbf rate {rate} burst 128kb latency 50ms"
            )


def speed(runs):
    return [BATCH / s for run in runs for s in run[0]["seconds"]]


def note(runs):
    loads = [p["load"] for run in runs for p in run]
    return (
        f"AlexNet at full size, float32, a batch of {BATCH} images in all;"
        f" medians of {len(runs[0][0]['seconds']) * ROUNDS} steps, in brackets the"
        " least and the most. "
        f"The load average was {min(loads):.0f} to {max(loads):.0f}, including this."
    )


def table(results):
    """One process and several, on the same two cores."""
    layouts = results["layouts"]
    alone, most = (
        statistics.median(speed(layouts["the whole network"])),
        lambda runs, what: f"{max(p[what] for p in runs[0]) / 1e6:.1f}",
    )
    rows = [
        (
            len(runs[0]),
            name,
            spread(speed(runs), 1),
            f"{statistics.median(speed(runs)) / alone:.2f}",
            most(runs, "exchange_bytes"),
            most(runs, "gradient_bytes"),
        )
        for name, runs in layouts.items()
    ]
    return MarkdownTable(
        [
            "processes",
            "layout",
            "images a second",
            "of one process",
            "activations, MB",
            "gradients, MB",
        ],
        rows,
        note([r for runs in layouts.values() for r in runs])
        + (
            " MB are what a process sends in a step. Activations are counted, gradients"
            " are computed for a ring from the bytes of its weights."
        ),
    )


def wire_table(results):
    """Two machines with a wire between them, with and without a limit."""
    layouts = results["layouts"]

    def step(runs):
        return statistics.median(s for run in runs for s in run[0]["seconds"])

    rows = [
        (
            name,
            f"{max(p['wire_bytes'] for p in slow[0]) / 1e6:.1f}",
            spread(speed(free), 1),
            spread(speed(slow), 1),
            f"{step(slow) - step(free):.2f}",
        )
        for name, (free, slow) in (
            (name, by_rate.values()) for name, by_rate in layouts.items()
        )
    ]
    return MarkdownTable(
        [
            "",
            "MB over the wire each way",
            "images a second, no limit",
            "at 1 Gbit/s",
            "seconds added to a step",
        ],
        rows,
        note(
            [
                r
                for by_rate in layouts.values()
                for runs in by_rate.values()
                for r in runs
            ]
        )
        + (
            " The machines are network namespaces on the same two cores, and the wire"
            " is a pair of virtual Ethernet devices. The kernel counts the MB of a"
            " step."
        ),
    )


def save(name, results, table):
    machine = dict(
        processor=processor(),
        cores=len(os.sched_getaffinity(0)),
        torch=torch.__version__,
    )
    for suffix, text in (
        ("json", json.dumps(dict(machine=machine) | results, indent=1)),
        ("md", table),
    ):
        with atomic_write(RESULTS / f"{name}.{suffix}") as temp:
            temp.write_text(text + "\n")
    print(table, flush=True)


def main():
    cores = {name: [] for name in CORES}
    wire = {name: {str(rate): [] for rate in RATES} for name in WIRE}
    for _ in range(ROUNDS):
        for name, layout in CORES.items():
            cores[name].append(launch(*layout))
        for rate in RATES:
            lay_wire(rate)
            for name, layout in WIRE.items():
                wire[name][str(rate)].append(launch(*layout))
    for name in "ab":
        subprocess.run(["ip", "netns", "del", f"alexnet-{name}"], check=True)
    save("cores", dict(layouts=cores), table(dict(layouts=cores)))
    save("wire", dict(layouts=wire), wire_table(dict(layouts=wire)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(int(sys.argv[2]), sys.argv[3] == "1")
    main()
