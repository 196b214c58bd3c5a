"""Cost of exchanging weights, from two ranks to ten thousand: a model, its measured parts, and its check.

    mpirun -np 4 python benchmarks/model_scale.py    # measures the parts, and checks the model against real exchanges
    python benchmarks/model_scale.py --project       # applies the model to a large machine, without measuring it

The model counts the seconds of a training thread, on average per step (S bytes of weights, W bytes of a snapshot, G
ranks in a group, k peers, exchange interval K):

    publish   (agree + encode · S / G) / K       agree: an allreduce of one word over the group
    collect   poll                               a `collect` that finds nothing
    adopt     k · (gather · W + decode · S) / K

It also gives the bytes that a node receives and the memory that a rank needs. Fetching is the communication thread's
work: it takes no time of the training thread, but limits how often new weights arrive.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hpcdistill import Codistillation
from hpcdistill.distributed.checks import require_mpi
from hpcdistill.exchange.codec import BLOCK, CODECS, Packing
from hpcdistill.exchange.layout import Layout
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.window.slots import SLOTS
from measure import ends_all_ranks, in_turns, machine, make_parser, ratio, write_json

if TYPE_CHECKING:
    from hpcdistill.distributed.groups import Groups

RESULTS = Path(__file__).parent / "results"
PARTS = RESULTS / "scale-2.json"
"""Source of the parts for --project: measured with one rank on each core, where they are least disturbed."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Parts:
    """Measured parts of the model, in seconds of a training thread."""

    copy: float
    """Time to copy one byte of float32 weights; unit of `encode` and `decode`."""
    encode: dict[str, float]
    """Time to publish weights, relative to copying them, by codec."""
    decode: dict[str, float]
    """Time to load weights into a replica, relative to copying them, by codec."""
    gather: float
    """Time to receive one byte in the allgather that assembles a snapshot within a group."""
    agree: float
    """Time of an allreduce of one word over the group."""
    poll: float
    """Time of a `collect` that finds nothing."""


@dataclass(frozen=True)
class Setting:
    """Setting whose cost is modelled."""

    groups: int
    ranks: int
    """Ranks of each group."""
    parameters: int
    topology: str = "all"
    codec: str = "fp32"
    interval: int = 50

    @property
    def degree(self) -> int:
        """Number of peers that a group learns from."""
        return len(topology(self, group=0).peers(0))

    @property
    def weights(self) -> int:
        """Bytes of the parameters in float32: S."""
        return 4 * self.parameters

    @property
    def wire(self) -> int:
        """Bytes of a snapshot: W."""
        return int(self.parameters * {"fp32": 4, "bf16": 2, "int8": 1 + 4 / BLOCK}[self.codec])


@dataclass(frozen=True)
class Cost:
    """Cost for one rank: seconds of its training thread per step, averaged over an interval; bytes of memory."""

    publish: float
    collect: float
    adopt: float
    buffers: int
    """Host memory: slots, snapshots being fetched, and the buffer in which a snapshot is assembled."""
    replicas: int
    """Memory of the teachers' weights, on the device of the model."""

    @property
    def seconds(self) -> float:
        """Time of the training thread for the exchange."""
        return self.publish + self.collect + self.adopt


def cost(setting: Setting, parts: Parts) -> Cost:
    """Return the cost that the model predicts."""
    encode, decode = (parts.copy * codecs[setting.codec] * setting.weights for codecs in (parts.encode, parts.decode))
    return Cost(
        publish=(parts.agree + encode / setting.ranks) / setting.interval,
        collect=parts.poll,
        adopt=setting.degree * (parts.gather * setting.wire + decode) / setting.interval,
        buffers=(SLOTS + setting.degree) * setting.wire // setting.ranks + setting.wire,
        replicas=setting.degree * setting.weights,
    )


# Measurement of the parts


def measure_parts(groups: "Groups", parameters: int) -> Parts:
    """Measure the parts on all ranks at the same time, as in a job. Collective over the world."""
    model, replica = model_of(parameters), model_of(parameters)
    layout = Layout.of(model)
    source, target = layout.tensors(model), layout.tensors(replica)
    works: dict[str, Callable[[], Any]] = {"copy": partial(torch._foreach_copy_, target, source)}
    for codec in CODECS:
        packing = Packing(layout, codec, 0, 1)
        wire = torch.zeros(packing.nbytes, dtype=torch.uint8)
        works[f"encode {codec}"] = partial(packing.encode, source, wire)
        works[f"decode {codec}"] = partial(packing.decode, wire, target)
    shard = torch.zeros(layout.nbytes // groups.size, dtype=torch.uint8)
    whole = torch.zeros(shard.nbytes * groups.size, dtype=torch.uint8)
    comm = require_mpi(groups.comm, "this benchmark")
    works["gather"] = partial(comm.Allgather, shard.numpy(), whole.numpy())
    works["agree"] = partial(comm.allreduce, True)
    seconds = in_turns(works, CPU, rounds=15)

    def mean(value: float) -> float:
        return float(groups.world.allreduce(value)) / groups.world.size

    def median(work: str) -> float:
        return mean(statistics.median(seconds[work]))

    return Parts(
        copy=median("copy") / layout.nbytes,
        encode={codec: mean(ratio(seconds, f"encode {codec}", "copy")) for codec in CODECS},
        decode={codec: mean(ratio(seconds, f"decode {codec}", "copy")) for codec in CODECS},
        gather=median("gather") / whole.nbytes,
        agree=median("agree"),
        poll=mean(statistics.median(steps(groups, Setting(groups.count, groups.size, 1000, interval=10**6), 200))),
    )


def model_of(parameters: int) -> nn.Module:
    """Return a module of ten float32 tensors."""
    return nn.ParameterList(torch.randn(parameters // 10) for _ in range(10))


def topology(setting: Setting, group: int) -> Topology:
    """Return the topology of a setting, as `group` sees it."""
    return Topology(setting.topology, group, setting.groups, degree_of(setting))


def degree_of(setting: Setting) -> int:
    """Return the number of peers that "k-random" draws."""
    return min(3, setting.groups - 1)


def steps(groups: "Groups", setting: Setting, count: int) -> list[float]:
    """Return the seconds that the exchange took in each of `count` steps; a step is a pause of 20 ms."""
    model = model_of(setting.parameters)
    seconds = []
    with Codistillation(
        model,
        groups,
        interval=setting.interval,
        burn_in=0,
        topology=setting.topology,
        degree=degree_of(setting),
        codec=setting.codec,
    ) as peers:
        for _ in range(count):
            time.sleep(0.02)
            groups.comm.Barrier()  # a step ends for all ranks of a group at once, by averaging their gradients
            begin = time.perf_counter()
            peers.step()
            seconds.append(time.perf_counter() - begin)
    return seconds


# Check of the model


def check(groups: "Groups", parts: Parts, setting: Setting) -> dict[str, Any]:
    """Return the predicted and the measured cost of a setting; the first two intervals are left out as warm-up."""
    seconds = steps(groups, setting, 12 * setting.interval)[2 * setting.interval :]
    measured = groups.world.allreduce(statistics.mean(seconds)) / groups.world.size
    return asdict(setting) | {"model_seconds": cost(setting, parts).seconds, "measured_seconds": measured}


def settings(ranks: int, parameters: int) -> Iterator[Setting]:
    """Yield the settings to check: ways to split `ranks` into groups, topologies and codecs."""
    for groups in (groups for groups in (2, 4, 8) if ranks % groups == 0):
        for topology in ("all", "ring") if groups > 2 else ("all",):
            for codec in ("fp32", "int8"):
                yield Setting(groups, ranks // groups, parameters, topology, codec, interval=10)


def measure_and_check(parameters: int, output: Path | None) -> None:
    """Measure the parts and check the model. Collective over the world; rank 0 prints and writes."""
    from mpi4py import MPI

    from hpcdistill.distributed.groups import Groups

    world = MPI.COMM_WORLD
    torch.set_num_threads(1)
    if world.rank == 0:
        print(CHECK)
    results = []
    parts = {}
    for setting in settings(world.size, parameters):
        groups = Groups.split(world, (setting.ranks,) * setting.groups, CPU)
        if setting.groups not in parts:
            parts[setting.groups] = measure_parts(groups, parameters)
        results.append(check(groups, parts[setting.groups], setting))
        if world.rank == 0:
            print(line(results[-1]), flush=True)
    if world.rank == 0:
        measured = {"parts": {count: asdict(part) for count, part in parts.items()}, "checks": results}
        write_json(
            output or RESULTS / f"scale-{world.size}.json",
            {"machine": machine(CPU), "mpi": MPI.get_vendor(), "ranks": world.size} | measured,
        )


# Projection to a large machine


@dataclass(frozen=True)
class Machine:
    """Node with four GPUs, by its specification: one socket of AMD EPYC 7763 and four ports of Slingshot 11."""

    ranks: int = 4
    """Ranks of a node."""
    copy: float = 204.8e9 / 2 / 4
    """Bytes per second that a rank copies; each is read and written, and four ranks share eight channels of DDR4."""
    port: float = 25e9
    """Bytes per second into one port."""
    latency: float = 2e-6
    """Latency of a message, in seconds."""


def parts_on(large: Machine, setting: Setting, here: Parts) -> Parts:
    """Return the parts measured here with the rates of `large`; `poll`, and Python's share of `agree`, stay."""
    return replace(
        here,
        copy=1 / large.copy,
        gather=1 / large.port,
        agree=here.agree + large.latency * math.log2(setting.ranks),
    )


def received(setting: Setting, large: Machine) -> tuple[float, float]:
    """Return the bytes into a node per step: for the exchange, and for averaging gradients in a ring."""
    fetched = (
        large.ranks * setting.wire / setting.ranks
    )  # each rank fetches one shard; then a ring passes all shards on
    exchange = setting.degree * (fetched + setting.wire) / setting.interval
    return exchange, 2 * setting.weights


def project() -> None:
    """Print the predictions for jobs of up to ten thousand ranks."""
    here = Parts(**json.loads(PARTS.read_text())["parts"]["2"])
    large = Machine()
    print(f"{large}\n\n{PROJECTION}")
    for parameters in (25_600_000, 1_300_000_000):
        for groups, ranks in ((2, 32), (4, 256), (16, 64), (20, 512), (160, 64)):
            for topology, codec in (("all", "fp32"), ("all", "int8"), ("k-random", "int8")):
                setting = Setting(groups, ranks, parameters, topology, codec)
                if topology == "k-random" and setting.degree == groups - 1:
                    continue  # that is "all"
                print(projection(setting, large, cost(setting, parts_on(large, setting, here))))


def projection(setting: Setting, large: Machine, predicted: Cost) -> str:
    """Return one line of the table."""
    exchange, gradients = received(setting, large)
    return (
        f"| {setting.groups} × {setting.ranks} | {setting.parameters / 1e6:.0f} | {setting.degree} | {setting.codec} "
        f"| {predicted.seconds * 1e3:.2f} | {exchange / 2**20:.1f} | {exchange / gradients:.1%} "
        f"| {predicted.buffers / 2**30:.2f} | {predicted.replicas / 2**30:.2f} |"
    )


PROJECTION = """\
| groups × ranks | 10⁶ parameters | peers | codec | ms per step | MiB per step into a node | of the gradients' \
| GiB of buffers | GiB of replicas |
|---|---|---|---|---|---|---|---|---|"""

CHECK = """\
| groups × ranks | topology | codec | model, ms per step | measured | measured / model |
|---|---|---|---|---|---|"""


def line(result: dict[str, Any]) -> str:
    """Return one line of the table of the check."""
    model, measured = result["model_seconds"], result["measured_seconds"]
    return (
        f"| {result['groups']} × {result['ranks']} | {result['topology']} | {result['codec']} "
        f"| {model * 1e3:.2f} | {measured * 1e3:.2f} | {measured / model:.2f} |"
    )


@ends_all_ranks
def main() -> None:
    """Measure and check, or project."""
    parser = make_parser(__doc__)
    parser.add_argument("--parameters", type=int, default=5_000_000, help="of the model (default: 5 million, 20 MB)")
    parser.add_argument("--output", type=Path, help="raw results (default: benchmarks/results/scale-RANKS.json)")
    parser.add_argument("--project", action="store_true", help="print the tables for a large machine")
    options = parser.parse_args()
    if options.project:
        project()
    else:
        measure_and_check(options.parameters, options.output)


if __name__ == "__main__":
    main()
