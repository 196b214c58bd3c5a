"""Cost of the meters of `hpcdistill train` (docs/meters.md) in CPU time, as a part of a training step.

    python benchmarks/bench_meters.py configs/demo.toml STORE

One process trains as a rank of a group of the configuration, on its share of the batch. Calls with and without a meter
take turns, on one thread; a meter costs the median of their differences, divided by the steps between two measurements.
"""

import copy
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.codistill.peer_teachers import LOOK_EVERY, PeerTeachers
from hpcdistill.codistill.quarantine import Quarantine
from hpcdistill.codistill.session import Codistillation
from hpcdistill.config.load import load_config
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange.base import Exchange, Payload, Snapshot
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.models.registry import config_class
from hpcdistill.training.ensemble import Ensemble, affordable
from hpcdistill.training.recorder import NOISE_EVERY, RECORD_EVERY, TERMS_EVERY, Recorder
from hpcdistill.training.setup import build_parts
from hpcdistill.training.step import train_step
from measure import machine, make_parser, write_json

CPU = torch.device("cpu")
SPANS = 6
"""Parts that are timed in a step; the teachers twice."""


class Delivery(Exchange):
    """Exchange that delivers a snapshot of group 1, with what the ranks of a group do to agree on it and gather it.

    Args:
        payload: its present state is the snapshot.
        ranks: ranks of each group.
        arrives: False for an exchange to which no snapshot ever comes.
    """

    def __init__(self, payload: Payload, ranks: int, arrives: bool) -> None:
        super().__init__()
        self._wires = [torch.zeros(payload.nbytes(rank, ranks), dtype=torch.uint8) for rank in range(ranks)]
        for rank, wire in enumerate(self._wires):
            payload.encode(rank, ranks, wire)
        self._gathered = [torch.zeros_like(wire) for wire in self._wires]
        self._arrives = arrives
        self._have_agreed = True

    def collect(self) -> Iterator[Snapshot]:
        """See `Exchange`; a snapshot comes in every second call."""
        staged = np.zeros((2, 1), np.int64)
        MPI.COMM_SELF.Iallreduce(MPI.IN_PLACE, staged, op=MPI.MIN).Wait()
        self._have_agreed = not self._have_agreed
        if self._arrives and self._have_agreed:
            torch._foreach_copy_(self._gathered, self._wires)
            yield Snapshot(1, 0, self._gathered)

    def set_peers(self, peers: list[int]) -> None:
        """Do nothing."""

    def publish(self, step: int) -> bool:
        """Do nothing."""
        return True

    def free(self) -> None:
        """Do nothing."""

    def abandon(self) -> None:
        """Do nothing."""


def in_turns(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each call, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begin = time.process_time()
            work()
            seconds[name].append(time.process_time() - begin)
    return seconds


def measure(config: Any, rounds: int, ranks: int) -> dict[str, list[float]]:
    """Return the CPU seconds of steps, and of what a validation, snapshots and the timers add."""
    groups = Groups.single()
    parts = build_parts(config, groups, trust=False)
    teacher = FixedTeachers([copy.deepcopy(parts.model).eval().requires_grad_(False)], parts.objective.outputs)
    alone = Codistillation(parts.model, groups, weight=0)
    taught = Codistillation(parts.model, groups, burn_in=0, teachers=teacher, outputs=parts.objective.outputs)
    batch = next(parts.batches)
    examples = affordable(config, groups.size)

    def step(peers: Codistillation, number: int) -> Callable[[], None]:
        def work() -> None:
            recorder = Recorder(config, groups, parts, {}, number - 1)
            recorder._parts_per_step = 2  # as in a group of two ranks
            train_step(config, groups, parts, batch, peers, recorder)
            recorder.__exit__()

        return work

    def validate(models: dict[int, torch.nn.Module]) -> Callable[[], None]:
        @torch.no_grad()
        def work() -> None:
            outputs = parts.objective.outputs(parts.model, *batch.inputs, **batch.named)
            if models:
                ensemble = Ensemble(parts.objective, parts.task.objective, models)
                ensemble.add(outputs, batch, examples)
                ensemble.metrics(groups)

        return work

    def look(arrives: bool) -> Callable[[], None]:
        payload = WeightPayload(parts.model, config.exchange.codec)
        teachers = PeerTeachers(
            parts.model,
            Delivery(payload, ranks, arrives),
            payload,
            Topology("all", 0, 2),
            Quarantine(groups, patience=1),
            interval=1,
            burn_in=sys.maxsize,
        )
        steps = itertools.count(1, LOOK_EVERY)
        teachers.step(next(steps))
        return lambda: teachers.step(next(steps))

    def spans() -> None:
        with Recorder(config, groups, parts, {}, 0) as recorder:
            for _ in range(SPANS * 1000):
                with recorder.time("data"):
                    pass

    works = {
        "step": step(alone, 3 * RECORD_EVERY),
        "step, noise": step(alone, NOISE_EVERY),
        "look": look(arrives=False),
        "look, snapshot": look(arrives=True),
        "step with a teacher": step(taught, 3 * RECORD_EVERY),
        "step with a teacher, terms": step(taught, TERMS_EVERY),
        "validation batch": validate({}),
        "validation batch, ensemble": validate({1: copy.deepcopy(parts.model).eval()}),
    }
    in_turns(works, 2)
    return in_turns(works, rounds) | in_turns({"timers of 1000 steps": spans}, 3)


def main() -> None:
    """Measure, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("config", type=Path, help="configuration of a run")
    parser.add_argument("store", type=Path, help="prepared data")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of a group, which share the batch (default: 2)")
    parser.add_argument("--rounds", type=int, default=41, help="calls of each contender, in turns (default: 41)")
    default = Path(__file__).parent / "results" / "meters-cpu.json"
    parser.add_argument("--output", type=Path, default=default, help=f"raw results as JSON (default: {default})")
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = load_config(options.config, config_class()).model_dump()
    values["data"] |= {"path": options.store, "batch_size": values["data"]["batch_size"] // options.ranks}
    with tempfile.TemporaryDirectory() as folder:
        alone = {"run_dir": folder, "groups": 1, "codistill": {"weight": 0}}
        config = config_class()(**(values | alone))
        seconds = measure(config, options.rounds, options.ranks)
    step = statistics.median(seconds["step"])
    every = {
        "noise": ("step", NOISE_EVERY),
        "terms": ("step with a teacher", TERMS_EVERY),
        "ensemble": ("validation batch", config.train.validate_every),
        "snapshot": ("look", config.codistill.exchange_interval),
    }
    costs = {}
    for name, (without, steps) in every.items():
        pairs = zip(seconds[f"{without}, {name}"], seconds[without], strict=True)
        costs[name] = statistics.median(more - less for more, less in pairs) / steps
    costs["snapshot"] += statistics.median(seconds["look"]) / LOOK_EVERY
    costs["timers"] = statistics.median(seconds["timers of 1000 steps"]) / 1000
    print(f"{machine(CPU)}\n\nstep: {1e3 * step:.2f} ms\n\n{'meter':<18}{'µs per step':>12}{'% of a step':>13}")
    always = costs["ensemble"] + costs["timers"]
    sums = {
        "burn-in": always + costs["noise"] + costs["snapshot"],
        "with teachers": always + costs["terms"],
    }
    for name, cost in (costs | sums).items():
        print(f"{name:<18}{1e6 * cost:>12.1f}{100 * cost / step:>13.3f}")
    write_json(options.output, {"machine": machine(CPU), "step": step, "costs": costs, "seconds": seconds})


if __name__ == "__main__":
    main()
