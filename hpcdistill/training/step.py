"""One training step."""

from __future__ import annotations

from torch import Tensor

from hpcdistill.codistill.session import Codistillation
from hpcdistill.data.batches import Batch
from hpcdistill.training.recorder import Recorder
from hpcdistill.training.setup import Parts


def train_step(parts: Parts, batch: Batch, peers: Codistillation, temperature: float, recorder: Recorder) -> Tensor:
    """Make one optimizer step, and return this rank's loss, []. Collective over the group."""
    with recorder.time("teachers"):
        predictions = peers.predict(*batch.inputs, target=batch.target)
    outputs = parts.objective.outputs(parts.model, *batch.inputs)
    loss = parts.objective.loss(outputs, batch.target, predictions, peers.weight, temperature)
    del predictions  # frees their memory before the backward pass
    loss.backward()
    parts.optimizer.step()  # averages the gradients over the group first
    parts.optimizer.zero_grad()
    if parts.average is not None:
        parts.average.update_parameters(parts.model)
    return loss
