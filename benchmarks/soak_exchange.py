"""Soak test of the exchange: two groups publish and fetch at full speed, and check each byte of each snapshot.

    mpirun -np 4 python benchmarks/soak_exchange.py [--slot-bytes BYTES ...] [--fetches N ...]

Each half of the ranks is a group. All elements of its model are one number, which encodes group and step. A snapshot is
torn if one of its shards holds several numbers, and mixed if its shards are not all of the step that it claims. The
first such snapshot is described and ends the job with exit status 1; otherwise a table is printed at the end.

A fetch is one read of one shard by one rank, accepted or not. It is not accepted if it was overwritten (the peer wrote
to the slot meanwhile) or outdated (another rank of the group already had a newer version).

This is the exchange of training except for its timing. Its threads poll every millisecond instead of every five, and
sometimes pause between learning of a version and reading it; otherwise readers and writers would hardly ever collide.
"""

import argparse
import random
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn
from tqdm import tqdm

from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange.base import Snapshot
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.exchange.window import exchange as window
from hpcdistill.exchange.window.reader import Reader
from hpcdistill.exchange.window.slots import STAMP_NBYTES
from measure import ends_all_ranks, machine, make_parser, write_json

SLOT_BYTES = (4096, 4 * 2**20, 64 * 2**20)
FETCHES = (1_000_000, 100_000, 5_000)
NUMBERS = 2**23  # for each group: float32 represents those of two groups exactly


class Uniform(nn.Module):
    """Model of `nbytes`, weights and buffers, all of whose elements should be the same number."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(nbytes // 16 * 3), requires_grad=False)
        self.counts = nn.Buffer(torch.zeros(nbytes // 32, dtype=torch.int64))


class HesitantReader(Reader):
    """Reader that pauses for some milliseconds before one read in five, so that a writer may overtake it."""

    def _slots(self, version: int) -> Generator[bool, None, list[int]]:
        if random.random() < 0.2:
            for _ in range(random.randint(1, 20)):
                yield True
        return (yield from super()._slots(version))


class Tally:
    """Counts of all ranks, summed repeatedly and without waiting, until the first has reached `target`."""

    def __init__(self, world: MPI.Intracomm, target: int) -> None:
        self._comm = world.Dup()
        self._target = target
        self._sum, self._next = np.zeros(2, np.int64), np.zeros(2, np.int64)
        self._request = MPI.REQUEST_NULL

    @property
    def reached(self) -> bool:
        """Knowledge of this rank that the target is reached; the other ranks have it too, or soon will."""
        return bool(self._sum[0] >= self._target)

    def renew(self, *counts: int) -> list[int]:
        """Return the newest complete sum; if it is new, begin the next one with this rank's `counts`."""
        if not self.reached and self._request.Test():
            self._sum[:] = self._next
            if not self.reached:
                self._next[:] = counts
                self._request = self._comm.Iallreduce(MPI.IN_PLACE, self._next)
        return self._sum.tolist()

    def free(self) -> None:
        """Free the communicator. Collective over the world, after the target is reached."""
        self._comm.Free()


@ends_all_ranks
def main() -> None:
    """Test each slot size in turn, print the table, write the results."""
    options = parse()
    torch.set_num_threads(1)
    window.Reader, window.IDLE_SECONDS = HesitantReader, 2e-3  # type: ignore[attr-defined]
    world = MPI.COMM_WORLD
    groups = Groups.split(world, (world.size // 2, world.size // 2), torch.device("cpu"))
    results = [soak(groups, *setting) for setting in zip(options.slot_bytes, options.fetches, strict=True)]
    if world.rank == 0:
        print(HEADER, *map(line, results), sep="\n", flush=True)
        if options.output:
            name, version = MPI.get_vendor()
            facts = {**machine(groups.device), "mpi": f"{name} {'.'.join(map(str, version))}", "ranks": world.size}
            write_json(options.output, {"machine": facts, "results": results})


def parse() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        "--slot-bytes", type=int, nargs="+", default=SLOT_BYTES, help=f"sizes of a rank's shard (default: {SLOT_BYTES})"
    )
    add(
        "--fetches",
        type=int,
        nargs="+",
        default=FETCHES,
        help=f"fetches of all ranks, for each size (default: {FETCHES})",
    )
    add("--output", type=Path, help="raw results as JSON, such as benchmarks/results/soak-MACHINE.json")
    options = parser.parse_args()
    if len(options.fetches) != len(options.slot_bytes):
        parser.error(f"{len(options.slot_bytes)} --slot-bytes but {len(options.fetches)} --fetches: give one for each")
    if any(nbytes % 256 for nbytes in options.slot_bytes):
        parser.error(f"--slot-bytes {options.slot_bytes}: must be multiples of 256")
    if MPI.COMM_WORLD.size % 2:
        parser.error(f"{MPI.COMM_WORLD.size} ranks do not make two equal groups: start an even number, by mpirun -np")
    return options


def soak(groups: Groups, slot_bytes: int, fetches: int) -> dict[str, Any]:
    """Exchange at full speed until all ranks together have made `fetches` fetches. Collective over the world."""
    slot = STAMP_NBYTES + slot_bytes
    model, replica = Uniform(slot_bytes * groups.size), Uniform(slot_bytes * groups.size)
    payload = WeightPayload(model)
    layout = payload.layout
    shard = [piece.of(layout.tensors(model)) for piece in layout.shard(groups.rank, groups.size)]
    tally = Tally(MPI.COMM_WORLD, fetches)
    step, delivered, published = 0, 0, True
    with (
        window.WindowExchange(groups, payload, degree=1) as exchange,
        tqdm(total=fetches, desc=f"{slot_bytes} bytes", unit="fetch", disable=groups.world.rank > 0) as bar,
    ):
        exchange.set_peers(groups.peers)
        begin = time.perf_counter()
        # All ranks of a group end together, and both groups at about the same time: a group alone has nothing to fetch.
        while not all(groups.comm.allgather(tally.reached)):
            if published:
                step += 1
                for piece in shard:
                    piece.fill_(number(groups.group, step))
            published = exchange.publish(step)
            if not published:
                time.sleep(2e-4)  # releases the GIL, as computing does, for the exchange's thread
            for snapshot in exchange.collect():
                require_whole(snapshot, payload, replica)
                delivered += groups.is_leader
            traffic = exchange.traffic
            fetched, rejected = tally.renew(traffic.fetched.total() // slot, traffic.discarded.total() // slot)
            bar.set_postfix(rejected=rejected, refresh=False)
            bar.update(min(fetched, fetches) - bar.n)
        seconds = time.perf_counter() - begin
    tally.free()
    traffic = groups.world.allreduce(exchange.traffic)
    return {
        "slot_bytes": slot_bytes,
        "published": traffic.published // slot // groups.size,
        "fetches": traffic.fetched.total() // slot,
        "delivered": groups.world.allreduce(delivered),
        "overwritten": traffic.overwritten.total() // slot,
        "outdated": traffic.outdated.total() // slot,
        "torn": 0,
        "mixed": 0,
        "seconds": seconds,
        "fetched_bytes": traffic.fetched.total(),
    }


def number(group: int, step: int) -> int:
    """Return the number that encodes a group and a step."""
    return NUMBERS * group + step % NUMBERS


def require_whole(snapshot: Snapshot, payload: WeightPayload, replica: Uniform) -> None:
    """Check every element of a snapshot.

    Raises:
        RuntimeError: it is torn or mixed.
    """
    payload.load(snapshot.shards, replica)
    claimed = number(snapshot.peer, snapshot.step)
    if [*replica.weights.aminmax(), *replica.counts.aminmax()] == [claimed] * 4:
        return
    tensors, layout, shards = [replica.weights, replica.counts], payload.layout, len(snapshot.shards)
    pieces = [torch.cat([piece.of(tensors).long() for piece in layout.shard(rank, shards)]) for rank in range(shards)]
    found = [shard.unique().tolist() for shard in pieces]
    kind = "torn" if any(len(numbers) > 1 for numbers in found) else "mixed"
    raise RuntimeError(f"{kind}: step {snapshot.step} of group {snapshot.peer} is {claimed}; its shards hold {found}")


HEADER = (
    "| slot bytes | published | fetches | delivered | overwritten | outdated | torn | mixed | s | fetches/s | GB/s |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(result: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    *counts, seconds, nbytes = result.values()
    rates = f"{result['fetches'] / seconds:.0f} | {nbytes / seconds / 1e9:.2f}"
    return f"| {' | '.join(map(str, counts))} | {seconds:.1f} | {rates} |"


if __name__ == "__main__":
    main()
