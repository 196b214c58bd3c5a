"""Checks of the losses' arguments, and the conversion of the forms in which teachers may be passed."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hpcdistill.kernels.dispatch import IMPLEMENTATIONS
from hpcdistill.kernels.rows import compute_dtype

T = TypeVar("T")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
REDUCTIONS = ("none", "mean", "sum")


def as_sequence(values: Tensor | Iterable[T] | None, name: str = "teacher_logits") -> Sequence[T | Tensor]:
    """Return one value for each teacher, from a stacked tensor or any iterable; none for None."""
    if values is None:
        return ()
    if not isinstance(values, Tensor):
        if isinstance(values, str | Mapping | Set) or not isinstance(values, Iterable):
            raise TypeError(f"{name} is a {type(values).__name__}; pass a list with one entry for each teacher")
        return tuple(values)
    check_tensor(name, values)
    if values.dim() == 0:
        raise ValueError(f"{name} has no dimensions; pass a tensor with N teachers along dimension 0, or a list of N")
    return values.unbind(0)


def as_weights(weights: Iterable[float] | None, teachers: int) -> list[float]:
    """Return a finite weight >= 0 for each teacher, not all of them 0; ones for None."""
    if weights is None:
        return [1.0] * teachers
    numbers = as_sequence(weights, "teacher_weights")
    if len(numbers) != teachers:
        raise ValueError(f"teacher_weights has {len(numbers)} numbers for {teachers} teachers; pass one for each")
    for j, number in enumerate(numbers):
        check_number(f"teacher_weights[{j}]", number)
    floats = [float(number) for number in numbers]
    if not all(0 <= number < math.inf for number in floats) or (teachers and sum(floats) == 0):
        raise ValueError(f"teacher_weights is {floats}; pass finite numbers >= 0, not all of them 0")
    return floats


def mixture(weights: Sequence[float]) -> dict[int, float]:
    """Return the share of each teacher in the mean, by index; they sum to 1, and teachers of weight 0 are left out."""
    return {j: weight / sum(weights) for j, weight in enumerate(weights) if weight}


def assert_in_range(labels: Tensor, ignore_index: int, classes: int) -> None:
    """Assert on the GPU, some time later, that the labels are in range; on a CPU `ops.run` checks them at once."""
    in_range = (labels >= 0) & (labels < classes) | (labels == ignore_index)
    torch._assert_async(in_range.all(), f"target holds a label outside [0, {classes})")


def check_tensors(logits: Tensor, target: Tensor, teachers: Sequence[Tensor], class_weight: Tensor | None) -> None:
    """Check the dtypes, shapes and devices of the tensors of `codistillation_loss`."""
    check_dtype("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {list(logits.shape)}; pass [..., V] with at least one class (V >= 1)")
    check_labels(target, "logits", logits)
    check_teachers(teachers, logits)
    check_class_weight(class_weight, logits.shape[-1], logits.device)


def check_dtype(name: str, tensor: Tensor) -> None:
    """Check that `tensor` has one of `DTYPES`."""
    check_tensor(name, tensor)
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}; convert it to one of {', '.join(map(str, DTYPES))}")


def check_labels(target: Tensor, name: str, rows: Tensor) -> None:
    """Check that `target` is one int64 label for each row of `rows` ``[..., any]``, the argument `name`."""
    check_companion("target", target, rows.device)
    if target.dtype != torch.int64:
        raise TypeError(f"target has dtype {target.dtype}; convert it by target.long()")
    if target.shape != rows.shape[:-1]:
        raise ValueError(
            f"target has shape {list(target.shape)}; {name} of shape {list(rows.shape)}"
            f" needs one label for each row, {list(rows.shape[:-1])}"
        )


def check_class_weight(class_weight: Tensor | None, classes: int, device: torch.device) -> None:
    """Check that `class_weight`, if passed, is one floating-point number for each class."""
    if class_weight is not None:
        check_companion("class_weight", class_weight, device)
        check_vector("class_weight", class_weight, classes)


def check_vector(name: str, vector: Tensor, classes: int) -> None:
    """Check that `vector` is one floating-point number for each class."""
    if vector.shape != (classes,) or not vector.is_floating_point():
        raise ValueError(
            f"{name} is {vector.dtype} of shape {list(vector.shape)}; {classes} classes need floats of shape"
            f" {[classes]}"
        )


def check_teachers(teachers: Sequence[Tensor], logits: Tensor) -> None:
    """Check that each teacher has the shape, dtype and device of `logits`."""
    for j, teacher in enumerate(teachers):
        name = f"teacher_logits[{j}]"
        check_companion(name, teacher, logits.device)
        if teacher.shape != logits.shape:
            raise ValueError(
                f"{name} has shape {list(teacher.shape)}; it must be logits' {list(logits.shape)}"
                " (a single teacher goes in a list, or as teacher.unsqueeze(0))"
            )
        if teacher.dtype != logits.dtype:
            raise TypeError(f"{name} has dtype {teacher.dtype}; convert it to logits' by .to({logits.dtype})")


def check_binary_target(target: Tensor, logits: Tensor) -> None:
    """Check that `target` is one probability for each logit."""
    check_tensor("logits", logits)
    check_companion("target", target, logits.device)
    if not logits.is_floating_point():
        raise TypeError(f"logits has dtype {logits.dtype}; convert it to a floating dtype")
    if target.shape != logits.shape:
        raise ValueError(f"target has shape {list(target.shape)}; pass one label for each logit, {list(logits.shape)}")
    # Under a compiler or vmap there are no values to check.
    if target.device.type == "cpu" and not torch.compiler.is_compiling() and not is_transformed():
        wrong = target[~((target >= 0) & (target <= 1))]
        if wrong.numel():
            raise ValueError(f"target holds {wrong[0].item()}; labels are probabilities in [0, 1]")


def check_numbers(distill_weight: float, temperature: float, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
    """Check the range of each number."""
    check_number("distill_weight", distill_weight)
    check_number("temperature", temperature)
    check_number("label_smoothing", label_smoothing)
    check_number("z_loss", z_loss)
    if not 0 <= distill_weight < math.inf:
        raise ValueError(f"distill_weight is {distill_weight}; pass a finite number >= 0 (0 turns distillation off)")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; pass a finite number > 0 (1 leaves the logits as they are)")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; pass a number in [0, 1]")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss is {z_loss}; pass a finite number >= 0 (0 turns it off)")


def check_number(name: str, number: object) -> None:
    """Check that `number` is a real number, or a tensor with one element that expects no derivative."""
    if isinstance(number, Tensor):
        check_tensor(name, number)
        check_constant(name, number)
        if number.numel() != 1:
            raise ValueError(f"{name} has shape {list(number.shape)}; pass a number")
    elif not isinstance(number, Real):
        raise TypeError(f"{name} is {number!r}; pass a number")


def check_teacher_lse(logits: Tensor, teachers: int, teacher_lse: Tensor | None) -> None:
    """Check that `teacher_lse`, if passed, is one logsumexp for each row of each teacher."""
    if teacher_lse is None:
        return
    check_companion("teacher_lse", teacher_lse, logits.device)
    wanted = [teachers, *logits.shape[:-1]]
    if list(teacher_lse.shape) != wanted:
        raise ValueError(
            f"teacher_lse has shape {list(teacher_lse.shape)}; {teachers} teachers in teacher_logits and logits of"
            f" shape {list(logits.shape)} need {wanted}"
        )
    if teacher_lse.dtype != compute_dtype(logits.dtype):
        raise TypeError(
            f"teacher_lse has dtype {teacher_lse.dtype}; for {logits.dtype} logits pass {compute_dtype(logits.dtype)}"
        )


def check_reduction(student: Tensor, reduction: str, normalizer: float | Tensor | None) -> None:
    """Check that `reduction` is known, and that `normalizer` is > 0 and passed only with "mean"."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; pass one of {', '.join(REDUCTIONS)}")
    if normalizer is None:
        return
    if reduction != "mean":
        raise ValueError(f"normalizer applies to a mean, but reduction is {reduction!r}; pass reduction='mean'")
    if isinstance(normalizer, Tensor):
        if normalizer.dim():
            raise ValueError(f"normalizer has shape {list(normalizer.shape)}; pass a number or a tensor of shape []")
        check_companion("normalizer", normalizer, student.device)
        return
    check_number("normalizer", normalizer)
    if not 0 < normalizer < math.inf:
        raise ValueError(f"normalizer is {normalizer}; pass a finite number > 0, such as the count of all labels")


def check_implementation(name: str, student: Tensor, implementation: str) -> None:
    """Check that `implementation` exists for the device of `student`, the argument `name`."""
    device = student.device.type
    if device not in IMPLEMENTATIONS:
        raise ValueError(f"{name} is on {student.device}; move it to one of {', '.join(IMPLEMENTATIONS)}")
    known = {"auto": list(IMPLEMENTATIONS)}
    for place, names in IMPLEMENTATIONS.items():
        for known_name in names:
            known.setdefault(known_name, []).append(place)
    if implementation not in known:
        raise ValueError(f"implementation is {implementation!r}; pass one of {', '.join(known)}")
    if device not in known[implementation]:
        raise ValueError(
            f"implementation is {implementation!r}, but {name} is on {student.device};"
            f" pass 'auto' or one of {', '.join(IMPLEMENTATIONS[device])}"
        )


def check_inplace(logits: Tensor, inplace_grad: bool) -> None:
    """Check that the gradient can overwrite `logits`: they are no leaf, and a view as ``[rows, V]`` exists."""
    if not inplace_grad or not logits.requires_grad:
        return
    if logits.is_leaf:
        raise ValueError(
            "inplace_grad would overwrite logits, which is a leaf that requires grad and not a model's output;"
            " leave inplace_grad out"
        )
    classes = logits.shape[-1]
    try:
        row, column = logits.view(-1, classes).stride()
    except RuntimeError:
        row = column = 0
    if (column != 1 and classes > 1) or (row < classes < logits.numel()):
        raise ValueError(
            f"inplace_grad needs logits that can be viewed as [rows, V] with adjacent columns, but logits of shape"
            f" {list(logits.shape)} has strides {list(logits.stride())}; make it contiguous, or leave inplace_grad out"
        )


def check_companion(name: str, tensor: Tensor, device: torch.device) -> None:
    """Check that `tensor` is a tensor on `device` that expects no derivative."""
    check_tensor(name, tensor)
    check_device(name, tensor, device)
    check_constant(name, tensor)


def check_tensor(name: str, value: object) -> None:
    """Check that `value` is a tensor, and not a DTensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a tensor")
    if hasattr(value, "full_tensor"):  # importing torch's DTensor class would take a second
        raise TypeError(
            f"{name} is a DTensor; pass {name}.full_tensor(), or {name}.to_local() where each rank has rows of its own"
            " (for heads split by classes see vocab_parallel of linear_codistillation_loss)"
        )


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Check that `tensor` is on the student's `device`."""
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; move it to the student's device, {device}")


def check_constant(name: str, tensor: Tensor) -> None:
    """Check that `tensor` expects no derivative: the losses compute derivatives by the student only."""
    if tensor.requires_grad:
        raise ValueError(f"{name} requires grad, but receives none; pass {name}.detach()")
    if has_tangent(tensor):
        raise ValueError(f"{name} has a tangent, but receives no derivative; pass {name}.detach()")


def check_derivatives(**student: Tensor | None) -> None:
    """Check that the loss is only differentiated by a backward; any other derivative would silently be zero."""
    if is_transformed():
        raise NotImplementedError(
            "this loss does not work inside a transform of torch.func (grad, jvp, vmap …); call it on the whole batch"
            " and differentiate by loss.backward() or torch.autograd.grad"
        )
    for name, tensor in student.items():
        if isinstance(tensor, Tensor) and has_tangent(tensor):
            raise NotImplementedError(
                f"{name} has a tangent, but this loss has no forward-mode derivative; differentiate by loss.backward()"
                " or torch.autograd.grad"
            )


def is_transformed() -> bool:
    """Return whether a transform of torch.func is active."""
    return torch._C._are_functorch_transforms_active()


def has_tangent(tensor: Tensor) -> bool:
    """Return whether `tensor` has a tangent; under a compiler, whether it may have one when the graph runs."""
    if forward_ad._current_level < 0:
        return False
    return torch.compiler.is_compiling() or forward_ad.unpack_dual(tensor).tangent is not None
