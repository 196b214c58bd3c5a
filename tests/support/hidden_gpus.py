"""A machine without GPUs, whatever the one at hand has."""

from pathlib import Path

import pytest
import torch

from hpcdistill.distributed import device


def hide_gpus(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Hide the GPUs of this machine, its Slurm job, and all variables that name GPUs.

    The device file of a GPU is then `nvidia0` in `folder`, where a test may make it.
    """
    for name in (*device.SLURM_GPUS, *device.VISIBLE_DEVICES, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, "NVIDIA_DEVICE", folder / "nvidia0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
