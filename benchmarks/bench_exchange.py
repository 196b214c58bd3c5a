"""Speed of the one-sided exchange beside plain copies of the same bytes, and its cost for training.

    mpirun -np 4 python benchmarks/bench_exchange.py
    tools/two_nodes.sh -n 2 python benchmarks/bench_exchange.py    # over TCP

First each rank publishes a shard of its own and fetches that of the rank half the world away, with the exchange's own
code, in turn with copies: first all ranks at once, then rank 0 alone. Then rank 0 trains a small model with and without
exchange, in turn, while the other ranks only publish, as often as it does, as if they trained on other nodes.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn
from torch.nn import functional

from hpcdistill.codistill.peer_teachers import PeerTeachers
from hpcdistill.codistill.quarantine import Quarantine
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange.codec import CODECS, Packing
from hpcdistill.exchange.layout import Layout
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.traffic import TrafficStats
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.exchange.window.allocation import allocate_window
from hpcdistill.exchange.window.exchange import WindowExchange
from hpcdistill.exchange.window.reader import Reader
from hpcdistill.exchange.window.slots import STAMP_NBYTES, Shard, window_nbytes
from hpcdistill.exchange.window.writer import Writer
from hpcdistill.models.lstm import LSTMLanguageModel
from measure import ends_all_ranks, machine, make_parser, ratio, write_json

WORLD = MPI.COMM_WORLD
CPU = torch.device("cpu")
INTERVAL = 50


@ends_all_ranks
def main() -> None:
    """Measure, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--mb", type=int, nargs="+", default=[4, 64, 400], help="size of a shard, in MiB of float32")
    parser.add_argument(
        "--codecs", nargs="+", default=list(CODECS), choices=CODECS, help="formats of published weights"
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds of publish, fetch and copies (default: 15)")
    parser.add_argument(
        "--pairs", type=int, default=7, help="pairs of trainings with and without exchange (default: 7)"
    )
    parser.add_argument("--output", type=Path, help="raw results as JSON (default: benchmarks/results/exchange-….json)")
    options = parser.parse_args()
    if WORLD.size < 2:
        parser.error("needs two ranks: mpirun -np 2 python benchmarks/bench_exchange.py")
    torch.set_num_threads(1)

    nodes = len(set(WORLD.allgather(MPI.Get_processor_name())))
    facts = machine(CPU) | {"mpi": MPI.get_vendor(), "ranks": WORLD.size, "nodes": nodes}
    say(f"{facts}\n\n{HEADER}")
    results = []
    for megabytes in options.mb:
        for codec in options.codecs:
            for alone in (False, True):
                results.append(measure(megabytes, codec, alone, options.rounds))
                say(line(results[-1]))
    slowdown = measure_training(options.pairs)
    if WORLD.rank == 0:
        print(summary(slowdown))
        default = Path(__file__).parent / "results" / f"exchange-{nodes}node{'s' * (nodes > 1)}.json"
        write_json(options.output or default, {"machine": facts, "copies": results, "training": slowdown})


def say(text: str) -> None:
    """Print on rank 0."""
    if WORLD.rank == 0:
        print(text, flush=True)


# Publishing and fetching


def measure(megabytes: int, codec: str, alone: bool, rounds: int) -> dict[str, Any]:
    """Measure publishing, fetching and copying a shard; return the seconds of each rank that takes part."""
    model = nn.ParameterList(torch.randn(megabytes * 2**18 // 8) for _ in range(8))
    layout = Layout.of(model)
    packing = Packing(layout, codec, rank=0, size=1)
    tensors, copies = layout.tensors(model), [torch.zeros_like(tensor) for tensor in model]
    stride = STAMP_NBYTES + packing.nbytes
    window = allocate_window(WORLD, window_nbytes(stride))
    writer = Writer(window, WORLD.rank, partial(packing.encode, tensors), packing.nbytes, CPU)
    reader = Reader(window, lambda peer: [Shard(peer, stride)], np.full(stride, 0, np.uint8), TrafficStats())
    source = np.full(stride, 1, np.uint8)
    window.Lock_all(MPI.MODE_NOCHECK)
    reader.switch_peer((WORLD.rank + WORLD.size // 2) % WORLD.size)
    fetches = reader.fetches()

    def fetch() -> None:
        reader.staged = 0
        while not reader.staged:
            next(fetches)

    works: dict[str, Callable[[], Any]] = {
        "copy weights": lambda: torch._foreach_copy_([each.detach() for each in copies], tensors),
        "publish": lambda: writer.write(1),
        "copy shard": lambda: np.copyto(reader.memory, source),
        "fetch": fetch,
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            at_rest(WORLD)
            takes_part = WORLD.rank == 0 or not alone or name == "publish"  # or there would be nothing to fetch
            begin = time.perf_counter()
            if takes_part:
                work()
            seconds[name].append(time.perf_counter() - begin)
            while writer.announce():
                pass
    at_rest(WORLD)
    window.Unlock_all()
    writer.free()
    window.Free()
    of_all = WORLD.allgather({name: values[1:] for name, values in seconds.items()})
    facts = {"megabytes": megabytes, "codec": codec, "alone": alone, "weights": layout.nbytes, "shard": stride}
    return facts | {"seconds": of_all[:1] if alone else of_all}


def at_rest(comm: MPI.Intracomm) -> None:
    """Wait for all ranks without occupying a core, and progress MPI for their reads."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(1e-3)


def rate(seconds: dict[str, list[float]], work: str, nbytes: int) -> float:
    """Return the GB/s of one rank: the median over ranks and rounds."""
    return nbytes / statistics.median(seconds[work]) / 1e9


HEADER = """\
| shard, MiB | codec | ranks | copy of weights, GB/s | publish / copy | fetched, MiB | copy of it, GB/s | fetch, GB/s \
| fetch, % of copy |
|---|---|---|---|---|---|---|---|---|"""


def line(result: dict[str, Any]) -> str:
    """Return one line of the table."""
    seconds = {work: [value for rank in result["seconds"] for value in rank[work]] for work in result["seconds"][0]}
    publish = "" if result["alone"] else f"{ratio(seconds, 'publish', 'copy weights'):.2f}"
    return (
        f"| {result['megabytes']} | {result['codec']} | {'one' if result['alone'] else 'all'} "
        f"| {rate(seconds, 'copy weights', result['weights']):.1f} | {publish} "
        f"| {result['shard'] / 2**20:.1f} | {rate(seconds, 'copy shard', result['shard']):.1f} "
        f"| {rate(seconds, 'fetch', result['shard']):.2f} | {100 / ratio(seconds, 'fetch', 'copy shard'):.0f} |"
    )


# Training


def measure_training(pairs: int) -> dict[str, Any]:
    """Measure the seconds per step of rank 0 with and without exchange, and the traffic, block by block."""
    groups = Groups.split(WORLD, (1,) * WORLD.size, CPU)
    torch.manual_seed(0)
    model = LSTMLanguageModel(vocabulary=256, hidden=544, layers=2, projection=0, dropout=0.0)  # 20 MB
    optimizer = torch.optim.Adam(model.parameters())
    blocks = []
    for _ in range(pairs):
        without = train(model, optimizer, lambda step: None)[0] if WORLD.rank == 0 else 0.0
        at_rest(WORLD)
        without = WORLD.bcast(without)
        blocks.append({"without": without} | with_exchange(groups, model, optimizer, INTERVAL * without))
    return {"blocks": blocks, "parameters": sum(parameter.numel() for parameter in model.parameters())}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, after_step: Callable[[int], None]) -> tuple[float, float]:
    """Train for one interval to warm up and two more; return their seconds per step, in all and in `after_step`."""
    after = []
    for step in range(1, 3 * INTERVAL + 1):
        if step == INTERVAL + 1:
            begin = time.perf_counter()
        tokens = torch.randint(0, 256, (8, 17))
        loss = functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ended = time.perf_counter()
        after_step(step)
        after.append(time.perf_counter() - ended)
    return (time.perf_counter() - begin) / (2 * INTERVAL), statistics.mean(after[INTERVAL:])


def with_exchange(
    groups: Groups, model: nn.Module, optimizer: torch.optim.Optimizer, interval: float
) -> dict[str, Any]:
    """Train on rank 0 with one peer as teacher; have the others publish every `interval` seconds until it is done."""
    topology = Topology("ring", groups.group, groups.count)
    done = WORLD.Dup()
    payload = WeightPayload(model)
    with WindowExchange(groups, payload, degree=1) as exchange:
        quarantine = Quarantine(groups, patience=20 * INTERVAL)
        teachers = PeerTeachers(model, exchange, payload, topology, quarantine, interval=INTERVAL, burn_in=0)
        result: dict[str, Any] = {}
        if groups.group == 0:
            began = time.perf_counter()
            result["with"], result["advance"] = train(model, optimizer, teachers.step)
            result["thread_share"] = exchange.traffic.thread_seconds / (time.perf_counter() - began)
            result["fetched"] = sum(exchange.traffic.fetched.values())
            result["discarded"] = sum(exchange.traffic.discarded.values())
            result["published"] = exchange.traffic.published
        request = done.Ibarrier()
        while not request.Test():
            exchange.publish(0)
            time.sleep(interval)
    done.Free()
    return result


def summary(training: dict[str, Any]) -> str:
    """Describe the slowdown."""
    blocks = training["blocks"]
    lost = sorted(100 * (block["with"] / block["without"] - 1) for block in blocks)
    inside = statistics.median(100 * block["advance"] / block["with"] for block in blocks)
    thread = statistics.median(block["thread_share"] for block in blocks)
    step = statistics.median(block["without"] for block in blocks)
    fetched, discarded = (sum(block[key] for block in blocks) for key in ("fetched", "discarded"))
    return (
        f"\ntraining {4 * training['parameters'] / 1e6:.0f} MB of weights, {step * 1e3:.0f} ms per step, interval "
        f"{INTERVAL}: slower with exchange by {statistics.median(lost):.2f} % (median of {len(lost)} pairs, from "
        f"{lost[0]:.2f} to {lost[-1]:.2f}); {inside:.2f} % of a step is spent in the exchange; "
        f"communication thread {thread:.1%} of a core; fetched {fetched / 2**20:.0f} MiB, "
        f"{discarded / 2**20:.0f} of them discarded"
    )


if __name__ == "__main__":
    main()
