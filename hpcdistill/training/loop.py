"""The training loop."""

from __future__ import annotations

import math
import time
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.codistill.peer_teachers import Teachers
from hpcdistill.config.schema import Config
from hpcdistill.data.batches import Share
from hpcdistill.distributed.checks import require_same_settings
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.stop import StopRequest
from hpcdistill.exchange.base import Exchange, NoExchange
from hpcdistill.exchange.registry import open_exchange
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.models.registry import build_model
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.tasks.registry import open_task
from hpcdistill.tasks.task import Task
from hpcdistill.training.optimizer import build_optimizer, set_learning_rate
from hpcdistill.training.owner import owned
from hpcdistill.training.recorder import Recorder
from hpcdistill.training.restart import Restart
from hpcdistill.training.tensorboard import require_tensorboard
from hpcdistill.training.validation import Validation

MAY_DIFFER = {"data": {"path"}}
"""Keys of the configuration that need not be the same on all ranks: of data, what is there is compared."""


class Outcome(Enum):
    """The way in which a start of a run has ended for one group."""

    FINISHED = "finished"
    """The last step has been made and validated."""
    STOPPED = "stopped"
    """As asked, before that; there is a checkpoint to go on from."""
    NOTHING_TO_DO = "nothing to do"
    """All groups had finished before; no file was touched."""


def train(config: Config, resume: str, stop: StopRequest, trust: bool = False) -> Outcome:
    """Train one model in each group, the groups teaching each other. Collective over the world, once per process.

    Args:
        config: the run.
        resume: "no" begins a new run; "yes" goes on from each group's newest usable checkpoint, or begins where
            there is none; "strict" accepts only the newest.
        stop: what ends the run before its last step, with a checkpoint.
        trust: let the checkpoints of other users that are to teach name the code of their models.

    Raises:
        UserError: bad input, or a loss that is not finite.
    """
    require_same_settings({"--resume": resume, **_settings(config.model_dump(mode="json", exclude=MAY_DIFFER))})
    groups = Groups.from_world(config.groups, config.group_sizes, config.group)
    with owned(RunDir(config.run_dir), groups):
        return _train(config, groups, resume, stop, trust)


def _train(config: Config, groups: Groups, resume: str, stop: StopRequest, trust: bool) -> Outcome:
    if config.train.tensorboard:
        groups.from_leader(require_tensorboard)
    task = open_task(config.data.path, warns=groups.world.rank == 0)
    groups.require_same(f"data.path = {config.data.path}", task.store.identity)
    batches = task.batches(config.data, training_share(config, groups))
    validation_data = task.validation(config.data, groups.rank, groups.size, config.train.validation_items)
    torch.manual_seed(config.seed * groups.count + groups.group)  # groups begin apart, ranks of a group together
    model = build_model(config.model, task.store).to(groups.device)
    objective = task.fused_objective(model) if config.codistill.fused_linear else task.objective
    learns = config.codistill.with_peers
    fixed = None if learns else FixedTeachers(config.codistill, task, objective, groups.device, trust)
    torch.manual_seed(dropout_seed(config.seed, groups.group, groups.rank))
    model, optimizer = groups.distribute(model, build_optimizer(config.optimizer, model))
    average = _average_of(model, config.train.average)
    restart = Restart(config, groups, model, average, optimizer, batches, task.store.identity)
    step = restart.resume(resume)
    steps = config.train.steps
    restart.owes_validation &= step <= steps
    if not any(groups.world.allgather(step < steps or restart.owes_validation)):
        if groups.world.rank == 0:
            print(f"hpcdistill: {step} steps of train.steps = {steps} are made already: nothing to do", flush=True)
        return Outcome.NOTHING_TO_DO
    shown = model if average is None else average.module
    validation = Validation(shown, objective, validation_data, groups)
    topology = Topology(config.exchange.topology, groups.group, groups.count, config.exchange.degree, config.seed)

    payload = WeightPayload(shown, config.exchange.codec)

    with (
        _exchange(config, groups, payload, len(topology.peers(0))) as exchange,
        Recorder(config, groups, _facts(config, groups, task, model), step) as recorder,
        restart,
    ):
        teachers = fixed or Teachers(config.codistill, model, exchange, payload, topology, groups, objective)

        def look(validates: bool, saves: bool, stopping: bool) -> bool:
            """Validate and save what is due after a step, the validation unless asked to stop; whether to stop."""
            loss = validation.loss(stop, recorder) if validates and not stopping else None
            if loss is not None:
                recorder.validated(step, loss)
            restart.owes_validation = validates and loss is None
            stopping = stopping or restart.owes_validation
            if validates or saves or stopping:
                begin, last = time.perf_counter(), stopping or step == steps
                if restart.save(step, math.nan if loss is None else loss, scheduled=saves or stopping, last=last):
                    recorder.saved(step, time.perf_counter() - begin)
            return stopping

        stopping = restart.owes_validation and look(validates=True, saves=True, stopping=False)
        while step < steps and not stopping:
            batch = next(batches).to(groups.device)
            with recorder.time("teachers"):
                teachers.predict(batch)
            outputs, weight = objective.outputs(model, *batch.inputs), config.codistill.weight_at(step)
            loss = objective.loss(outputs, batch.target, teachers.outputs(), weight, config.codistill.temperature)
            set_learning_rate(optimizer, config.optimizer, step, steps)
            loss.backward()
            optimizer.step()  # averages the gradients inside the group first
            optimizer.zero_grad()
            if average is not None:
                average.update_parameters(model)
            step += 1
            with recorder.time("exchange"):
                teachers.advance(step)
            stopping = stop.agreed(groups.comm)
            validates = step == steps or step % config.train.validate_every == 0
            saves = step == steps or step % config.checkpoint.interval == 0
            recorder.stepped(step, loss, teachers, exchange.traffic, up_to_here=validates or saves or stopping)
            stopping = look(validates, saves, stopping)
    return Outcome.STOPPED if step < steps or restart.owes_validation else Outcome.FINISHED


def _exchange(config: Config, groups: Groups, payload: WeightPayload, degree: int) -> Exchange:
    if not config.codistill.with_peers:
        return NoExchange()
    return open_exchange(config.exchange.transport, groups, payload, degree, RunDir(config.run_dir).exchange)


def _settings(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a configuration by their whole names, as `train.steps`."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        values |= _settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values


def training_share(config: Config, groups: Groups) -> Share:
    """What this rank takes of the training data."""
    part, parts = (groups.group, groups.count) if config.data.partition == "disjoint" else (0, 1)
    return Share(part, parts, groups.rank, groups.size, seed=(config.seed, groups.group))


def dropout_seed(seed: int, group: int, rank: int) -> int:
    """Return a seed, below 2**64, that no other rank of the run has, however many there are in each group.

    On a CPU torch heeds the last 32 bits alone, of which hashes would collide among some ten thousand ranks: so these
    count the ranks, from a beginning that depends on the run's seed.
    """
    beginning = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return beginning ^ (group << 20 | rank)


def _average_of(model: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of weights and running statistics, to be updated after each step."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


def _facts(config: Config, groups: Groups, task: Task, model: nn.Module) -> dict[str, object]:
    """What a reader of the metrics has to know about the run."""
    return {
        "config": config.model_dump(mode="json"),
        "group": groups.group,
        "ranks_per_group": groups.size,
        "device": str(groups.device),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data_source": task.store.source,
        "unit": task.unit,
        "training_size": task.store.size("train"),
    }
