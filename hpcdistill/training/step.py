"""One training step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from hpcdistill.codistill.session import Codistillation
from hpcdistill.config.schema import Config
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.training.precision import autocast
from hpcdistill.training.recorder import Recorder
from hpcdistill.training.setup import Parts


class StepResult(NamedTuple):
    """Loss and gradient norm of a step."""

    loss: Tensor
    """This rank's mean loss, []."""
    gradient_norm: Tensor | None
    """2-norm of the gradient, averaged over the group and not yet clipped, []; None where it was not computed."""


def train_step(
    config: Config,
    groups: Groups,
    parts: Parts,
    batch: Batch,
    peers: Codistillation,
    recorder: Recorder,
) -> StepResult:
    """Make one optimizer step. Collective over the group.

    Args:
        config: the run.
        groups: the groups.
        parts: what is trained.
        batch: this rank's share of the step's batch, on the device.
        peers: the session, whose teachers predict for each micro-batch.
        recorder: measures the times of parts, the terms of the loss and the gradients.
    """
    micro_batches = [batch] if config.train.accumulate == 1 else batch.split(config.train.accumulate)
    losses = []
    with recorder.watch_gradients(peers.weight):
        for micro_batch, share in zip(micro_batches, _shares(micro_batches), strict=True):
            loss = _loss(config, groups, parts, micro_batch, peers, recorder)
            if share is not None:
                loss = loss * share
            loss.backward()
            losses.append(loss.detach())
    norm = _update(groups, parts, config.train.clip_norm, recorder)
    return StepResult(sum(losses[1:], losses[0]), norm)


def _shares(micro_batches: Sequence[Batch]) -> Sequence[Tensor | None]:
    """Return the weight of each micro-batch's mean loss in that of the batch: its share of the targets that count."""
    if len(micro_batches) == 1:
        return [None]
    counts = torch.stack([micro_batch.counted for micro_batch in micro_batches])
    return list(counts / counts.sum().clamp(min=1))


def _loss(
    config: Config, groups: Groups, parts: Parts, batch: Batch, peers: Codistillation, recorder: Recorder
) -> Tensor:
    """Return the mean loss of a micro-batch, []."""
    with autocast(config.train.precision, groups.device):
        with recorder.time("teachers"):
            predictions = peers.predict(*batch.inputs, target=batch.target, **batch.named)
        outputs = parts.forward(*batch.inputs, **batch.named)
    with recorder.time("teachers"):  # a GPU waits here for what its teachers have not done beside the student
        teachers = list(predictions)
    recorder.measure_terms(outputs, batch.target, teachers, peers.weight)
    loss = parts.objective.loss(outputs, batch.target, teachers, peers.weight, config.codistill.temperature)
    return loss / (1 + peers.weight) if config.codistill.normalize else loss


def _update(groups: Groups, parts: Parts, clip_norm: float | None, recorder: Recorder) -> Tensor | None:
    """Average the gradients, clip them, update the weights and their average; return the norm of the gradients, []."""
    norm = None
    with ExitStack() as stack:
        with recorder.time("averaging"):
            stack.enter_context(groups.averaged_gradients(parts.optimizer))
        recorder.measure_average()
        if clip_norm is not None:
            norm = clip_grad_norm_(parts.model.parameters(), clip_norm)
        elif recorder.records_next:
            norm = get_total_norm([each.grad for each in parts.model.parameters() if each.grad is not None])
        parts.optimizer.step()
    parts.optimizer.zero_grad()
    if parts.average is not None:
        parts.average.update_parameters(parts.model)
    return norm
