"""The training loop of `hpcdistill train`."""

from __future__ import annotations

from enum import Enum
from typing import Any

from torch import nn

from hpcdistill.config.schema import Config
from hpcdistill.distributed.checks import require_same_settings
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.node import ranks_and_cores
from hpcdistill.distributed.stop import StopRequest
from hpcdistill.distributed.world import start_world
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.training.ensemble import affordable
from hpcdistill.training.milestones import Milestones
from hpcdistill.training.owner import owned
from hpcdistill.training.profiler import StepProfiler
from hpcdistill.training.recorder import Recorder
from hpcdistill.training.restart import Restart
from hpcdistill.training.schedule import set_rates
from hpcdistill.training.setup import Parts, build_parts, open_session
from hpcdistill.training.step import train_step
from hpcdistill.training.validation import Validation

MAY_DIFFER = {"data": {"path"}}
"""Configuration keys that may differ between ranks; of the data, its identity is compared."""


class Outcome(Enum):
    """State of a group's training when `train` returns."""

    FINISHED = "finished"
    """The last step has been made and validated."""
    STOPPED = "stopped"
    """A signal has ended the training before that; there is a checkpoint to continue from."""
    NOTHING_TO_DO = "nothing to do"
    """All groups had finished before; no file was touched."""


def train(config: Config, resume: str, stop: StopRequest, trust: bool = False) -> Outcome:
    """Train one model in each group; the groups teach each other. Collective over the world, once per process.

    Args:
        config: the run.
        resume: "no" begins a new run; "yes" continues from each group's newest usable checkpoint, or begins where
            there is none; "strict" accepts only the newest.
        stop: ends the run before its last step, with a checkpoint.
        trust: let checkpoints of other users, used as teachers, name the code of their models (`model.factory`).

    Raises:
        UserError: bad input, or a loss that is not finite.
    """
    settings = {"--resume": resume, **_settings(config.model_dump(mode="json", exclude=MAY_DIFFER))}
    require_same_settings(start_world(), settings)
    groups = Groups.from_world(config.groups, config.group_sizes, config.group, config.gradients)
    with owned(RunDir(config.run_dir), groups):
        parts = build_parts(config, groups, trust)
        data = parts.task.validation(config.data, groups.rank, groups.size, config.train.validation_items)
        validation = Validation(
            parts.published,
            parts.objective,
            parts.task.objective,
            data,
            groups,
            config.train.precision,
            affordable(config, groups.size),
        )
        restart = Restart(
            config, groups, parts.model, parts.average, parts.optimizer, parts.batches, parts.task.store.identity
        )
        step = restart.resume(resume)
        restart.owes_validation &= step <= config.train.steps
        if not any(groups.world.allgather(step < config.train.steps or restart.owes_validation)):
            if groups.world.rank == 0:
                print(
                    f"hpcdistill: {step} steps of train.steps = {config.train.steps} are made already: nothing to do",
                    flush=True,
                )
            return Outcome.NOTHING_TO_DO
        return _train(config, groups, parts, validation, restart, step, stop)


def _train(
    config: Config,
    groups: Groups,
    parts: Parts,
    validation: Validation,
    restart: Restart,
    step: int,
    stop: StopRequest,
) -> Outcome:
    steps = config.train.steps
    traced = config.train.profile_steps if groups.is_leader else 0
    with (
        open_session(config, groups, parts) as peers,
        Recorder(config, groups, parts, _header(config, groups, parts), step) as recorder,
        restart,
        parts.batches,
        StepProfiler(config.train.profile_begin, traced, RunDir(config.run_dir).profile(groups.group)) as profiler,
    ):
        restart.attach(peers, step)
        milestones = Milestones(config, validation, peers, restart, recorder, stop)
        stopping = milestones.catch_up(step)
        while step < steps and not stopping:
            profiler.before(step + 1)
            set_rates(parts.optimizer, config, step, peers.weight)
            with recorder.time("data"):
                batch = next(parts.batches).to(groups.device)
            loss, norm = train_step(config, groups, parts, batch, peers, recorder)
            step += 1
            with recorder.time("exchange"):
                peers.step()
            stopping = stop.agreed(groups.comm)
            recorder.record_step(step, batch, loss, norm, peers, flush=stopping or step in milestones)
            stopping = milestones.reach(step, stopping)
    return Outcome.STOPPED if step < steps or restart.owes_validation else Outcome.FINISHED


def _settings(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a configuration by their full names, such as `train.steps`."""
    values: dict[str, Any] = {}
    for name, value in section.items():
        values |= _settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return values


def _gradient_bytes(model: nn.Module) -> int:
    """Return the bytes of the gradients that a rank averages with its group; those of bfloat16 travel as float32."""
    return sum(max(4, each.element_size()) * each.numel() for each in model.parameters() if each.requires_grad)


def _header(config: Config, groups: Groups, parts: Parts) -> dict[str, object]:
    """Return the facts of the run, for readers of its metrics. Collective over the world."""
    store = parts.task.store
    ranks, cores = ranks_and_cores(groups.world)
    return {
        "config": config.model_dump(mode="json"),
        "group": groups.group,
        "ranks_per_group": groups.size,
        "device": str(groups.device),
        "parts": groups.size * config.train.accumulate,  # gradients per step: fewer than 2 measure no noise
        "ranks_on_node": ranks,
        "cores": cores,
        "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        "gradient_bytes": _gradient_bytes(parts.model),
        "data_source": store.source,
        "unit": parts.task.unit,
        "training_size": store.size("train"),
    }
