"""Throughput of a group: items per second, and the model FLOP utilization.

Model FLOP utilization (Chowdhery et al. 2022, PaLM, arXiv 2204.02311, Appendix B) is the share of the devices' peak
that the model itself needs:

    3 · FLOPs of the student's forward pass per item · items per second / (ranks · peak FLOP/s of a device)

A backward pass needs twice the FLOPs of a forward pass. Counted are matrix products, convolutions, attention (whole,
though causal attention needs half) and recurrent layers, with two FLOPs for each multiplication and addition. Not
counted are the teachers, what activation checkpointing computes again, elementwise operations, the loss and the
optimizer.
"""

from __future__ import annotations

import logging
import math
import re
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from hpcdistill.config.train import TrainConfig
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.tasks.objective import TrainingObjective
from hpcdistill.training.precision import autocast

logger = logging.getLogger(__name__)

PEAKS: dict[str, dict[str, float]] = {
    r"V100-SXM": {"float32": 15.7},
    r"V100-PCIE": {"float32": 14.0},
    r"A100": {"float32": 19.5, "tf32": 156, "bf16": 312},
    r"A30": {"float32": 10.3, "tf32": 82, "bf16": 165},
    r"A40": {"float32": 37.4, "tf32": 74.8, "bf16": 149.7},
    r"L40S": {"float32": 91.6, "tf32": 183, "bf16": 362},
    r"H100 PCIe": {"float32": 51, "tf32": 378, "bf16": 756},
    r"H[12]00 NVL": {"float32": 60, "tf32": 417, "bf16": 835},
    r"H100 80GB HBM3|GH200|H200": {"float32": 67, "tf32": 494, "bf16": 989},
    r"B200": {"bf16": 2250},
    r"MI250X": {"float32": 47.9, "bf16": 191.5},  # of one of its two dies, which is a device of torch
    r"MI300X": {"float32": 163.4, "tf32": 653.7, "bf16": 1307.4},
}
"""Peak TFLOP/s of a device by precision, without sparsity, by a pattern of its name; from the data sheets of NVIDIA and
AMD. The first pattern that is found counts."""


def peak_flops(name: str, config: TrainConfig) -> float | None:
    """Return the peak FLOP/s of a device for the configured precision; None if it is not known.

    Args:
        name: the device, as `torch.cuda.get_device_name` says.
        config: names the precision.
    """
    if "MIG" in name:  # a part of a device
        return None
    precision = "tf32" if config.tf32 else "float32"
    if config.precision != "float32":
        precision = "bf16"
    peaks = next((peaks for pattern, peaks in PEAKS.items() if re.search(pattern, name)), {})
    return 1e12 * peaks[precision] if precision in peaks else None


class Throughput:
    """Items per second of a group, validations and checkpoints left out, and its model FLOP utilization.

    An item is what has one prediction: a token, row or image.

    Args:
        config: the section `train`.
        groups: the groups.
        objective: computes the model's logits.
        model: the student.

    Attributes:
        items: number of this rank's items so far.
    """

    def __init__(
        self, config: TrainConfig, groups: Groups, objective: TrainingObjective[Any], model: nn.Module
    ) -> None:
        self._config, self._groups, self._objective, self._model = config, groups, objective, model
        counts = groups.device.type == "cuda" and groups.is_leader  # which alone writes records
        self._peak = peak_flops(torch.cuda.get_device_name(groups.device), config) if counts else None
        self._flops: float | None = None  # of a training step, by item; 0 if they cannot be counted
        self.items = 0
        self.restart()

    def restart(self) -> None:
        """Count from here on."""
        self.items = 0
        self._begin = time.perf_counter()

    def count(self, batch: Batch) -> None:
        """Count a batch of this rank."""
        self.items += batch.target.numel()
        if self._peak and self._flops is None:
            self._flops = 3 * self._forward_flops(batch)

    def _forward_flops(self, batch: Batch) -> float:
        try:
            with autocast(self._config.precision, self._groups.device):
                return forward_flops(self._objective, self._model, batch)
        except Exception as error:  # whatever a model raises that takes no batch of one item
            logger.warning(f"the metrics have no mfu, because the model's FLOPs cannot be counted: {error}")
            return 0.0

    @property
    def seconds(self) -> float:
        """Wall time counted so far."""
        return time.perf_counter() - self._begin

    def measure(self, items: float) -> dict[str, float]:
        """Return the metrics `items_per_second` and `mfu` since the last call.

        Args:
            items: sum of the attribute `items` over the group.
        """
        seconds = self.seconds
        rate = items / seconds
        self.restart()
        values = {"items_per_second": rate}
        if self._peak and self._flops:
            values["mfu"] = rate * self._flops / (self._groups.size * self._peak)
        return values


@torch.no_grad()
def forward_flops(objective: TrainingObjective[Any], model: nn.Module, batch: Batch) -> float:
    """Return the FLOPs of a forward pass of `model` for each target, measured on the first item of `batch`."""
    first = batch.split(len(batch.target))[0]
    devices = [first.target.device] if first.target.is_cuda else []
    model.eval()  # so that a single item suffices for normalizations over the batch, and no statistics change
    try:
        with torch.random.fork_rng(devices), FlopCounterMode(display=False, custom_mapping=MORE_FLOPS) as counter:
            objective.outputs(model, *first.inputs, **first.named)
    finally:
        model.train()
    flops: float = counter.get_total_flops() / first.target.numel()
    return flops


def _recurrent_flops(inputs: tuple[int, ...], weights: list[tuple[int, ...]], *_: Any, **__: Any) -> int:
    """Return the FLOPs of recurrent layers, from shapes: each matrix is multiplied with each item of a sequence."""
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def _recurrent_layer_flops(inputs: Any, weight: Any, recurrent_weight: Any, *_: Any, **__: Any) -> int:
    return _recurrent_flops(inputs, [weight, recurrent_weight])


MORE_FLOPS = {
    torch.ops.aten._cudnn_rnn: _recurrent_flops,
    torch.ops.aten.miopen_rnn: _recurrent_flops,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_layer_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
}
"""Formulas that torch's counter does not have."""
