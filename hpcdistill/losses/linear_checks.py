"""Checks of the arguments of the linear loss beyond those of `checks`, and the forms of a teacher's head."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpcdistill.losses.checks import (
    as_sequence,
    check_companion,
    check_device,
    check_dtype,
    check_number,
    check_tensor,
    check_vector,
)

Weight = Tensor | tuple[Tensor, Tensor]
"""Head ``[V, D]``, or a tuple of an int8 head and the scale ``[V]`` of its rows."""


class Teacher(NamedTuple):
    """Hidden states ``[..., D_j]`` and head of a teacher; `scale` ``[V]`` belongs to an int8 head."""

    hidden: Tensor
    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    logit_scale: float
    logit_softcap: float | None


def check_student(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, logit_scale: float, logit_softcap: float | None
) -> None:
    """Check that the student's head fits its hidden states, and the scale and the cap of its logits."""
    check_dtype("hidden", hidden)
    check_dtype("linear_weight", weight)
    if hidden.dim() == 0 or hidden.shape[-1] == 0:
        raise ValueError(f"hidden has shape {list(hidden.shape)}; pass [..., D] with at least one column (D >= 1)")
    if weight.dim() != 2 or len(weight) == 0 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"linear_weight has shape {list(weight.shape)}; hidden of shape {list(hidden.shape)} needs"
            f" [V, {hidden.shape[-1]}] with at least one class (V >= 1)"
        )
    check_device("linear_weight", weight, hidden.device)
    if bias is not None:
        check_tensor("linear_bias", bias)
        check_vector("linear_bias", bias, len(weight))
        check_device("linear_bias", bias, hidden.device)
    check_logits("logit_scale", logit_scale, "logit_softcap", logit_softcap)


def as_teachers(
    hidden: Tensor | Iterable[Tensor] | None,
    weight: Tensor | Iterable[Weight] | None,
    bias: Tensor | Iterable[Tensor | None] | None,
    logit_scale: float | Iterable[float],
    logit_softcap: float | Iterable[float | None] | None,
) -> list[Teacher]:
    """Return the teachers one by one, from stacked tensors or any iterables; a number is for all teachers."""
    hiddens, weights = as_sequence(hidden, "teacher_hidden"), as_sequence(weight, "teacher_linear_weight")
    biases = [None] * len(hiddens) if bias is None else as_sequence(bias, "teacher_linear_bias")
    scales = _for_each_teacher("teacher_logit_scale", logit_scale, len(hiddens))
    softcaps = _for_each_teacher("teacher_logit_softcap", logit_softcap, len(hiddens))
    lists = {
        "teacher_linear_weight": weights,
        "teacher_linear_bias": biases,
        "teacher_logit_scale": scales,
        "teacher_logit_softcap": softcaps,
    }
    for name, given in lists.items():
        if len(given) != len(hiddens):
            raise ValueError(
                f"{name} has {len(given)} entries, but teacher_hidden {len(hiddens)}; pass one for each teacher"
                " (those of a single teacher in lists)"
            )
    return [
        Teacher(
            hiddens[j],
            *_numbers_and_scale(f"teacher_linear_weight[{j}]", each),
            biases[j],
            scales[j],
            softcaps[j],
        )
        for j, each in enumerate(weights)
    ]


def _for_each_teacher(name: str, value: Any, teachers: int) -> Sequence[Any]:
    """Return one value for each teacher, from an iterable or a single number or None."""
    return as_sequence(value, name) if isinstance(value, Iterable) else [value] * teachers


def check_logits(scale_name: str, scale: float, softcap_name: str, softcap: float | None) -> None:
    """Check the scale and the soft cap of a model's logits."""
    check_number(scale_name, scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"{scale_name} is {scale}; pass a finite number > 0 (1 leaves the logits as they are)")
    if softcap is not None:
        check_number(softcap_name, softcap)
        if not 0 < softcap < math.inf:
            raise ValueError(f"{softcap_name} is {softcap}; pass a finite number > 0, or None for logits without a cap")


def _numbers_and_scale(name: str, weight: Weight) -> tuple[Tensor, Tensor | None]:
    """Return the matrix of a head and the scale of its rows, if it has one."""
    if not isinstance(weight, tuple):
        return weight, None
    if len(weight) != 2:
        raise TypeError(
            f"{name} is a tuple of {len(weight)}; pass a tuple of an int8 head [V, D] and the scale of its rows, [V]"
        )
    return weight


def check_linear_teachers(teachers: Sequence[Teacher], hidden: Tensor, weight: Tensor) -> None:
    """Check that the teachers fit the student, and their heads their hidden states."""
    for j, teacher in enumerate(teachers):
        _check_teacher_hidden(f"teacher_hidden[{j}]", teacher.hidden, hidden)
        _check_teacher_head(j, teacher, weight)
        names = f"teacher_logit_scale[{j}]", f"teacher_logit_softcap[{j}]"
        check_logits(names[0], teacher.logit_scale, names[1], teacher.logit_softcap)


def _check_teacher_hidden(name: str, teacher: Tensor, hidden: Tensor) -> None:
    check_companion(name, teacher, hidden.device)
    check_dtype(name, teacher)
    if teacher.dim() == 0 or teacher.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(
            f"{name} has shape {list(teacher.shape)}; hidden of shape {list(hidden.shape)} needs"
            f" {[*hidden.shape[:-1], 'D']} (a single teacher goes in a list, or as teacher.unsqueeze(0))"
        )


def _check_teacher_head(j: int, teacher: Teacher, student_weight: Tensor) -> None:
    name, weight, classes = f"teacher_linear_weight[{j}]", teacher.weight, len(student_weight)
    check_companion(name if teacher.scale is None else f"{name}[0]", weight, student_weight.device)
    for part, tensor in {f"{name}[1]": teacher.scale, f"teacher_linear_bias[{j}]": teacher.bias}.items():
        if tensor is not None:
            check_companion(part, tensor, student_weight.device)
    if weight.dim() != 2 or weight.shape[1] != teacher.hidden.shape[-1]:
        raise ValueError(
            f"{name} has shape {list(weight.shape)}; teacher_hidden[{j}] of shape {list(teacher.hidden.shape)} needs"
            f" [V, {teacher.hidden.shape[-1]}]"
        )
    if len(weight) != classes:
        raise ValueError(
            f"{name} has {len(weight)} classes, but linear_weight {classes}; all models must have one vocabulary (slice"
            " off rows that only pad it)"
        )
    if teacher.scale is None:
        check_dtype(name, weight)
    else:
        if weight.dtype != torch.int8:
            raise TypeError(f"{name}[0] has dtype {weight.dtype}; only a torch.int8 head has a scale")
        check_vector(f"{name}[1]", teacher.scale, classes)
    if teacher.bias is not None:
        check_vector(f"teacher_linear_bias[{j}]", teacher.bias, classes)


def check_chunks(chunk_tokens: int | str, **dtypes: torch.dtype | None) -> None:
    """Check the size of the chunks and the dtypes of their buffers and sums."""
    if chunk_tokens != "auto" and (not isinstance(chunk_tokens, int) or chunk_tokens <= 0):
        raise ValueError(f"chunk_tokens is {chunk_tokens!r}; pass 'auto' or a whole number > 0")
    for name, dtype in dtypes.items():
        if dtype not in (torch.float32, None):
            raise ValueError(f"{name} is {dtype}; pass torch.float32, or None for the dtype of what it is made from")
