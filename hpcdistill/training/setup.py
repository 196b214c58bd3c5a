"""Parts of a group's training, built from the configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.codistill.session import Codistillation
from hpcdistill.config.codistill import CodistillConfig
from hpcdistill.config.schema import Config
from hpcdistill.data.batches import Share
from hpcdistill.data.prefetch import Prefetch
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.models.huggingface import require_positions
from hpcdistill.models.registry import build_model
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.tasks.objective import TrainingObjective
from hpcdistill.tasks.registry import open_data
from hpcdistill.tasks.task import Task
from hpcdistill.training.activations import checkpoint_activations
from hpcdistill.training.average import MovingAverage
from hpcdistill.training.forward import Forward
from hpcdistill.training.optimizer import build_optimizer
from hpcdistill.training.precision import allow_tf32, to_bfloat16
from hpcdistill.training.trackers.opening import require_trackers


@dataclass(frozen=True)
class Parts:
    """Data, model and optimizer of one group's training."""

    task: Task
    batches: Prefetch
    """This rank's training batches."""
    objective: TrainingObjective[Any]
    forward: nn.Module
    """Forward pass of a training step: takes the inputs of a batch and returns the student's outputs. The gradient
    backend may have wrapped it."""
    model: nn.Module
    """The student itself."""
    average: MovingAverage | None
    """Moving average of the model's weights, if there is one."""
    optimizer: torch.optim.Optimizer
    teachers: FixedTeachers | None
    """Fixed teachers, if there are any."""

    @property
    def published(self) -> nn.Module:
        """Model that is validated, and published to peers."""
        return self.model if self.average is None else self.average.module


def build_parts(config: Config, groups: Groups, trust: bool) -> Parts:
    """Build what one group trains with. Collective over the world.

    Args:
        config: the run.
        groups: the groups.
        trust: let checkpoints of other users name the code of their models (`model.factory`).

    Raises:
        UserError: the data, a model or a checkpoint does not fit; the batch does not split into micro-batches; or ranks
            see different data.
    """
    groups.from_leader(lambda: require_trackers(config))
    share = training_share(config, groups)
    task = open_data(config.data, share, warns=groups.world.rank == 0)
    groups.require_same(task.store.setting, task.store.identity)
    batches = Prefetch(task.batches(config.data, share), groups.device)
    _require_micro_batches(config, groups.size)
    torch.manual_seed(config.seed * groups.count + groups.group)  # differs between groups, not between their ranks
    model = _build_student(config, task, groups.device)
    objective = task.fused_objective(model) if config.codistill.fused_linear else task.objective
    outputs = torch.compile(objective.outputs) if config.train.compile else objective.outputs
    teachers = fixed_teachers(config.codistill, task, objective, groups.device, trust)
    torch.manual_seed(dropout_seed(config.seed, groups.group, groups.rank))
    optimizer = build_optimizer(config.optimizer, model)
    forward, optimizer = groups.distribute(Forward(outputs, model), optimizer, config.train.accumulate)
    average = MovingAverage(model, config.train.average) if config.train.average else None
    return Parts(task, batches, objective, forward, model, average, optimizer, teachers)


def open_session(config: Config, groups: Groups, parts: Parts) -> Codistillation:
    """Open the configured session. Collective over the world.

    Raises:
        UserError: the groups' models differ, or the transport does not work here; on every rank.
    """
    objective = parts.objective
    return Codistillation(
        parts.model,
        groups,
        interval=config.codistill.exchange_interval,
        burn_in=config.codistill.burn_in,
        weight=config.codistill.weight,
        ramp=config.codistill.ramp,
        transport=config.exchange.transport,
        topology=config.exchange.topology,
        degree=config.exchange.degree,
        codec=config.exchange.codec,
        folder=RunDir(config.run_dir).exchange,
        outputs=objective.outputs,
        excess_loss=objective.excess_loss,
        max_staleness=config.codistill.max_staleness,
        teacher_precision=config.codistill.teacher_precision,
        seed=config.seed,
        published=parts.published,
        teachers="self" if config.codistill.teachers == "self" else parts.teachers,
    )


def training_share(config: Config, groups: Groups) -> Share:
    """Return the share of the training data that this rank takes."""
    part, parts = (groups.group, groups.count) if config.data.partition == "disjoint" else (0, 1)
    return Share(part, parts, groups.rank, groups.size, seed=(config.seed, groups.group))


def fixed_teachers(
    config: CodistillConfig, task: Task, objective: TrainingObjective[Any], device: torch.device, trust: bool = False
) -> FixedTeachers | None:
    """Return the teachers that `codistill.teachers` names; None if these are models of this run.

    Args:
        config: names the teachers.
        task: the data on which they predict.
        objective: computes their outputs.
        device: the device on which they predict.
        trust: let checkpoints of other users name the code of their models.

    Raises:
        UserError: a checkpoint cannot be read, or is of a model for other data.
    """
    if config.teachers in ("peers", "self"):
        return None
    models = [SavedModel.load(path, trust).build(task.store).to(device) for path in config.checkpoints]
    if config.teachers == "checkpoints":
        return FixedTeachers(models, objective.outputs)
    prior = (objective.uniform if config.teachers == "uniform" else task.unigram()).to(device)
    return FixedTeachers(constants=[lambda target: objective.constant_prediction(prior, target)])


def dropout_seed(seed: int, group: int, rank: int) -> int:
    """Return a seed below 2**64 that no other rank of the run has, whatever the number of ranks in each group.

    On a CPU torch uses the last 32 bits only, in which hashes would collide among some ten thousand ranks. Therefore
    these bits count the ranks, from a start that depends on the run's seed.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    return start ^ (group << 20 | rank)


def _build_student(config: Config, task: Task, device: torch.device) -> nn.Module:
    """Build the model, with its initial weights, on `device`, and prepare it as the keys of `train` say."""
    if config.train.tf32:
        allow_tf32()
    model = build_model(config.model, task.store)
    if isinstance(task.store, TokenStore):
        require_positions(model, config.data.sequence_length)
    if config.train.precision == "bf16-weights":
        to_bfloat16(model)
    if config.train.activation_checkpointing:
        checkpoint_activations(model)
    return model.to(device)


def _require_micro_batches(config: Config, ranks: int) -> None:
    """Check that the share of each rank of a group in a batch splits evenly into micro-batches.

    Raises:
        UserError: it does not.
    """
    share, parts = config.data.batch_size // ranks, config.train.accumulate
    if share % parts:
        raise UserError(
            f"train.accumulate = {parts} does not divide {share}, the share of each of {ranks} ranks of a group in "
            f"data.batch_size = {config.data.batch_size}; set --data.batch_size to a multiple of {ranks * parts}"
        )
