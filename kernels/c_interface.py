"""Interface to the compiled kernels: loads their libraries, and converts `Rows` to the struct of codistillation.h."""

import ctypes
from ctypes import POINTER, c_double, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from hpcdistill.kernels.rows import Rows

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


class CRows(ctypes.Structure):
    """HpcdistillRows of codistillation.h. It does not keep alive the tensors whose addresses it holds."""

    _fields_ = (
        ("rows", c_int64),
        ("classes", c_int64),
        ("dtype", c_int32),
        ("teachers", c_int32),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
        ("teacher_logits", POINTER(c_void_p)),
        ("teacher_strides", POINTER(c_int64)),
        ("mixture", POINTER(c_double)),
        ("teacher_lse", c_void_p),
        ("target", c_void_p),
        ("class_weight", c_void_p),
        ("scales", c_void_p),
        ("temperature", c_double),
        ("label_smoothing", c_double),
        ("ignore_index", c_int64),
        ("losses", c_void_p),
        ("parts", c_void_p),
        ("gradient", c_void_p),
        ("gradient_stride", c_int64),
        ("first_class", c_int64),
        ("all_classes", c_int64),
        ("shard_lse", c_void_p),
        ("is_merged", c_int32),
    )

    @classmethod
    def from_rows(cls, rows: Rows) -> "CRows":
        """Return the struct of `rows`, with addresses in place of tensors.

        Raises:
            ValueError: The gradient has another dtype than the logits.
        """
        if rows.gradient is not None and rows.gradient.dtype != rows.logits.dtype:
            raise ValueError(f"the gradient is {rows.gradient.dtype}; compiled kernels write {rows.logits.dtype}")
        teachers, shard = len(rows.teachers), rows.shard
        return cls(
            rows=rows.logits.shape[0],
            classes=rows.logits.shape[1],
            dtype=DTYPES[rows.logits.dtype],
            teachers=teachers,
            logits=rows.logits.data_ptr(),
            logits_stride=rows.logits.stride(0),
            teacher_logits=(c_void_p * teachers)(*(teacher.data_ptr() for teacher in rows.teachers)),
            teacher_strides=(c_int64 * teachers)(*(teacher.stride(0) for teacher in rows.teachers)),
            mixture=(c_double * teachers)(*rows.mixture),
            teacher_lse=_address(rows.teacher_lse),
            target=rows.target.data_ptr(),
            class_weight=_address(rows.class_weight),
            scales=rows.scales.data_ptr(),
            temperature=rows.temperature,
            label_smoothing=rows.label_smoothing,
            ignore_index=rows.ignore_index,
            losses=rows.losses.data_ptr(),
            parts=rows.parts.data_ptr(),
            gradient=_address(rows.gradient),
            gradient_stride=0 if rows.gradient is None else rows.gradient.stride(0),
            first_class=shard.first_class if shard else 0,
            all_classes=rows.classes,
            shard_lse=_address(shard.lse if shard else None),
            is_merged=bool(shard and shard.is_merged),
        )


def load(name: str) -> ctypes.CDLL:
    """Load the compiled library `name`, which the build of the package puts beside this file.

    Raises:
        ImportError: The library was not built, or does not load.
    """
    path = Path(__file__).parent / f"lib{name}.so"
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"the compiled kernel {path.name} cannot be loaded: {error}") from None


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
