"""Two groups publish and fetch as fast as they can and look at every byte they are given: is any of it torn or mixed?

    mpirun -np 4 python benchmarks/soak_exchange.py [--slot-bytes BYTES ...] [--fetches N ...]

Each half of the ranks is a group. All elements of its model are one number, which tells group and step. A snapshot is
torn where a shard holds several numbers, mixed where its shards are not all of the step that it claims. The first such
snapshot is described and ends the job with exit code 1; otherwise a table is printed in the end.

A fetch is one read of one shard by one rank, whether it was accepted or not. Not accepted are those overwritten (the
peer wrote to the slot meanwhile) and outdated (another rank of the group already had a newer version).

This is the exchange of training but for its pace. Its threads look around each millisecond rather than every five, and
now and then hesitate between hearing of a version and reading it: else readers and writers would hardly ever meet.
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
NUMBERS = 2**23  # of each group: float32 holds those of two groups exactly


class Uniform(nn.Module):
    """A model of `nbytes`, weights and buffers, whose every element is meant to be the same number."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(nbytes // 16 * 3), requires_grad=False)
        self.counts = nn.Buffer(torch.zeros(nbytes // 32, dtype=torch.int64))


class HesitantReader(Reader):
    """Lets a writer catch up, by some milliseconds before one read in five."""

    def _slots(self, version: int) -> Generator[bool, None, list[int]]:
        if random.random() < 0.2:
            for _ in range(random.randint(1, 20)):
                yield True
        return (yield from super()._slots(version))


class Tally:
    """Counts of all ranks, added up again and again until the first has reached `target`; nobody waits for a sum."""

    def __init__(self, world: MPI.Intracomm, target: int) -> None:
        self._comm = world.Dup()
        self._target = target
        self._sum, self._next = np.zeros(2, np.int64), np.zeros(2, np.int64)
        self._request = MPI.REQUEST_NULL

    @property
    def reached(self) -> bool:
        """Whether this rank knows that the target is reached; the others know it too, or soon will."""
        return bool(self._sum[0] >= self._target)

    def renew(self, *counts: int) -> list[int]:
        """The newest sum that is complete; where it is new, begin the next one, to which this rank gives `counts`."""
        if not self.reached and self._request.Test():
            self._sum[:] = self._next
            if not self.reached:
                self._next[:] = counts
                self._request = self._comm.Iallreduce(MPI.IN_PLACE, self._next)
        return self._sum.tolist()

    def free(self) -> None:
        """Collective over the world, once the target is reached."""
        self._comm.Free()


@ends_all_ranks
def main() -> None:
    """Soak each slot size in turn, print the table, write the results."""
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
    """The command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--slot-bytes", type=int, nargs="+", default=SLOT_BYTES, help=f"of a rank's shard (default: {SLOT_BYTES})")
    add("--fetches", type=int, nargs="+", default=FETCHES, help=f"of all ranks, for each size (default: {FETCHES})")
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
    """Exchange at full speed until all ranks together have read so many shards. Collective over the world."""
    slot = STAMP_NBYTES + slot_bytes
    model, replica = Uniform(slot_bytes * groups.size), Uniform(slot_bytes * groups.size)
    payload = WeightPayload(model)
    layout = payload.layout
    shard = [piece.of(layout.tensors(model)) for piece in layout.shard(groups.rank, groups.size)]
    tally = Tally(groups.world, fetches)
    step, delivered, published = 0, 0, True
    with (
        window.WindowExchange(groups, payload, degree=1) as exchange,
        tqdm(total=fetches, desc=f"{slot_bytes} bytes", unit="fetch", disable=groups.world.rank > 0) as bar,
    ):
        exchange.set_peers(groups.peers)
        begin = time.perf_counter()
        # A group ends as one; and neither much before the other, which would have nothing new to fetch.
        while not groups.comm.allreduce(tally.reached, MPI.LAND):
            if published:
                step += 1
                for piece in shard:
                    piece.fill_(number(groups.group, step))
            published = exchange.publish(step)
            if not published:
                time.sleep(2e-4)  # lets go of Python's lock, as computing does: the other thread needs it
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
    """Which number tells this group and step."""
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
    """A row of the Markdown table."""
    *counts, seconds, nbytes = result.values()
    rates = f"{result['fetches'] / seconds:.0f} | {nbytes / seconds / 1e9:.2f}"
    return f"| {' | '.join(map(str, counts))} | {seconds:.1f} | {rates} |"


if __name__ == "__main__":
    main()
