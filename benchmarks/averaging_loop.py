"""Training loop of the study of averaged weights: a small byte transformer, whose weights move towards its peers'.

`mpirun -np 2 python benchmarks/averaging_loop.py JOBS` trains the jobs of a JSON file one after another, and writes the
result of each beside it. Two ranks train a job of two groups together, and jobs of one group apart.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hpcdistill import Codistillation, Groups, codistillation_loss
from hpcdistill.models.transformer import Transformer
from hpcdistill.training.average import MovingAverage

LENGTH = 64
"""Bytes of a sequence."""
AVERAGE = 0.99
"""Decay of the moving average of the weights that all arms validate."""
VALIDATIONS = 12


@dataclass(frozen=True)
class Job:
    """One training."""

    name: str
    """File of its result, without the extension."""
    text: str
    """File of the text."""
    nbytes: int
    """Bytes of it that are read; a tenth of them is for validation."""
    groups: int
    batch: int
    """Sequences in the batch of each group."""
    steps: int
    burn_in: int
    """Steps before distillation begins."""
    interval: int
    """Steps between two snapshots."""
    rate: float
    """Learning rate of AdamW at the beginning; it falls to zero with a cosine."""
    decay: float
    """Weight decay."""
    weight: float
    """Weight of the distillation term."""
    strength: float
    """Part of the way to the mean of the groups' snapshots that the weights move at each interval; 0 for none."""
    seed: int


class Text:
    """Bytes in blocks of 1000, of which each tenth is for validation.

    Args:
        job: names the file.
    """

    def __init__(self, job: Job) -> None:
        content = Path(job.text).read_bytes()[: job.nbytes]
        blocks = torch.frombuffer(bytearray(content), dtype=torch.uint8).long().split(1000)
        self._training = torch.cat([block for number, block in enumerate(blocks) if number % 10 != 9])
        validation = torch.cat([block for number, block in enumerate(blocks) if number % 10 == 9])
        self._validation = validation[: len(validation) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random sequences, int64 [size, LENGTH], and the bytes that follow."""
        begins = torch.randint(len(self._training) - LENGTH, (size, 1), generator=generator)
        sequences = self._training[begins + torch.arange(LENGTH + 1)]
        return sequences[:, :-1], sequences[:, 1:]

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Return the validation loss of a model, in nats per byte."""
        model.eval()
        logits = model(self._validation[:, :-1])
        return float(cross_entropy(logits.flatten(0, 1), self._validation[:, 1:].flatten()))


class Averaging:
    """Moves of a model's weights towards the mean of all groups' stale snapshots, when a new one arrives.

    The snapshots of the own model and of the peer's are of the same step where possible. The model moves by their
    difference, so that it keeps what it has learned since.

    Args:
        model: the model.
        peers: a session of two groups, whose `outputs` returns a model's weights where there are no inputs.
        strength: 1 to move to the mean at once.
    """

    def __init__(self, model: nn.Module, peers: Codistillation, strength: float) -> None:
        self._weights = [parameter.detach() for parameter in model.parameters()]
        self._peers = peers
        self._strength = strength
        self._own: dict[int, list[Tensor]] = {}  # snapshots of the own model by step, the newest last
        self._used = 0  # step of the peer's last snapshot

    def step(self, step: int) -> None:
        """Note the weights that have been published after `step`, and move them."""
        self._own[step] = [weight.clone() for weight in self._weights]
        if len(self._own) > 8:
            del self._own[next(iter(self._own))]
        for theirs, staleness in zip(self._peers.predict(), self._peers.staleness.values(), strict=True):
            version = step - staleness
            if version <= self._used:
                continue
            self._used = version
            own = self._own.get(version, self._own[step])
            for weight, mine, other in zip(self._weights, own, theirs, strict=True):
                weight.add_(other - mine, alpha=self._strength / 2)


def outputs(model: nn.Module, inputs: Tensor | None = None) -> Any:
    """Return the logits of a model for inputs, or without inputs its weights."""
    return list(model.parameters()) if inputs is None else model(inputs)


def run(job: Job, groups: Groups) -> dict[str, Any]:
    """Train; return the results. Collective over the groups."""
    text = Text(job)
    alike = job.strength > 0
    torch.manual_seed(1000 * job.seed + (0 if alike else groups.group))
    model = Transformer(256, 48, 1, 1, 1, 96, dropout=0.1)
    torch.manual_seed(1000 * job.seed + 500 + groups.group)
    generator = torch.Generator().manual_seed(1000 * job.seed + groups.group)
    average = MovingAverage(model, AVERAGE)
    optimizer = torch.optim.AdamW(model.parameters(), job.rate, weight_decay=job.decay)
    teachers: Any = "self" if job.groups == 1 else None
    with_session = max(job.weight, float(alike))
    losses: dict[int, float] = {}
    merged: dict[int, float] = {}
    stale: list[int] = []
    with Codistillation(
        model, groups, interval=job.interval, burn_in=0, weight=with_session, outputs=outputs, teachers=teachers
    ) as peers:
        averaging = Averaging(model, peers, job.strength) if alike else None
        for step in range(1, job.steps + 1):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = job.rate * (1 + math.cos(math.pi * step / job.steps)) / 2
            inputs, target = text.batch(job.batch, generator)
            taught = job.weight > 0 and step > job.burn_in
            predictions = peers.predict(inputs) if taught else []
            loss = codistillation_loss(model(inputs), target, predictions, distill_weight=job.weight)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            peers.step()
            stale += peers.staleness.values()
            if averaging and step % job.interval == 0:
                averaging.step(step)
            if step % max(1, job.steps // VALIDATIONS) == 0 or step == job.steps:
                losses[step] = text.loss(average.module)
                groups.world.Barrier()  # on a busy machine one group may fall behind
                if alike:
                    merged[step] = text.loss(_merged(average.module, groups))
    return {"steps": list(losses), "losses": list(losses.values()), "merged": list(merged.values())} | (
        {"staleness": round(fmean(stale), 1)} if stale else {}
    )


def _merged(model: nn.Module, groups: Groups) -> nn.Module:
    """Return a model with the mean of all groups' weights. Collective over the world."""
    merged = copy.deepcopy(model)
    flat = torch.cat([weight.detach().flatten() for weight in model.parameters()]).numpy()
    mean = torch.from_numpy(sum(groups.world.allgather(flat)) / groups.count)
    nn.utils.vector_to_parameters(mean, merged.parameters())
    return merged


def main() -> None:
    """Train the jobs of the file that is named."""
    jobs = [Job(**each) for each in json.loads(Path(sys.argv[1]).read_text())]
    torch.set_num_threads(1)
    pair = Groups.create(2)
    alone = [job for job in jobs if job.groups == 1]
    for job in jobs:
        if job.groups == 1 and alone.index(job) % 2 != pair.group:
            continue
        begin = time.perf_counter()
        result = run(job, pair if job.groups == 2 else Groups.single())
        results = pair.world.allgather(result) if job.groups == 2 else [result]
        if job.groups == 1 or pair.world.rank == 0:
            content = {"groups": results, "seconds": round(time.perf_counter() - begin, 1)}
            path = Path(f"{job.name}.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_text(json.dumps(content))
            path.with_suffix(".part").replace(path)


if __name__ == "__main__":
    main()
