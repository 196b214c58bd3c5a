"""Arguments that all three losses refuse or accept in the same way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

from hpcdistill import (
    CodistillationLoss,
    binary_codistillation_loss,
    codistillation_loss,
    linear_codistillation_loss,
)
from hpcdistill.losses.options import LossOptions

pytestmark = pytest.mark.alone

REDUCTIONS = ["none", "mean", "sum"]


def wave(*shape: int, step: float) -> Tensor:
    """Return numbers from -2 to 2."""
    return (torch.arange(prod(shape)) * step).sin().view(shape) * 2


@dataclass(frozen=True, repr=False)
class Loss:
    """One of the losses, with arguments for four rows."""

    function: Callable[..., Tensor]
    student: dict[str, Tensor]
    constants: dict[str, Tensor]
    """Labels, and the tensors of a single teacher."""
    numbers: tuple[str, ...]

    def __call__(self, **given: Any) -> Tensor:
        constants = {name: [x] if name.startswith("teacher") else x for name, x in self.constants.items()}
        return self.function(**self.student | constants | given)

    def replacing(self, name: str, value: Any) -> Tensor:
        """Compute the loss with another value for the argument `name`."""
        return self(**{name: [value] if name.startswith("teacher") else value})

    def gradients(self, **given: Any) -> list[Tensor]:
        student = {name: x.clone().requires_grad_() for name, x in self.student.items()}
        return list(torch.autograd.grad(self(**student, **given).sum(), list(student.values())))


SOFTMAX = Loss(
    codistillation_loss,
    {"logits": wave(4, 9, step=1.0)},
    {"target": torch.arange(4), "teacher_logits": wave(4, 9, step=1.1)},
    ("distill_weight", "temperature", "label_smoothing", "z_loss", "normalizer"),
)
BINARY = Loss(
    binary_codistillation_loss,
    {"logits": wave(4, step=1.0)},
    {"target": torch.arange(4) / 3, "teacher_logits": wave(4, step=1.1)},
    ("distill_weight", "temperature", "normalizer"),
)
LINEAR = Loss(
    linear_codistillation_loss,
    {"hidden": wave(4, 8, step=1.0), "linear_weight": wave(9, 8, step=1.1), "linear_bias": wave(9, step=1.2)},
    {"target": torch.arange(4), "teacher_hidden": wave(4, 5, step=1.3), "teacher_linear_weight": wave(9, 5, step=1.4)},
    ("distill_weight", "temperature", "label_smoothing", "z_loss", "normalizer"),
)
LOSSES = [pytest.param(loss, id=loss.function.__name__) for loss in (SOFTMAX, BINARY, LINEAR)]
FUSED = [LOSSES[0], LOSSES[2]]


def each(kind: str, losses: list[Any] = LOSSES) -> pytest.MarkDecorator:
    """Parametrize with every loss and every name of its arguments of this kind."""
    pairs = [
        pytest.param(p.values[0], name, id=f"{p.id}-{name}") for p in losses for name in getattr(p.values[0], kind)
    ]
    return pytest.mark.parametrize(("loss", "name"), pairs)


every_loss = pytest.mark.parametrize("loss", LOSSES)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


@pytest.mark.parametrize("function", [codistillation_loss, linear_codistillation_loss, binary_codistillation_loss])
def test_the_losses_share_names_and_defaults(function: Callable[..., Tensor]) -> None:
    """`LossOptions` and the module have the options of the functions, with the same defaults."""
    defaults = {name: parameter.default for name, parameter in signature(function).parameters.items()}
    reference = {name: parameter.default for name, parameter in signature(codistillation_loss).parameters.items()}
    module = {name: parameter.default for name, parameter in signature(CodistillationLoss).parameters.items()}
    assert not {"weight", "bias"} & defaults.keys()
    if function is not binary_codistillation_loss:
        assert LossOptions.__annotations__.keys() <= defaults.keys()
    for name in defaults.keys() & reference.keys():
        assert defaults[name] == reference[name] == module.get(name, reference[name])


# Arguments that receive no gradient.


@each("numbers")
def test_numbers_get_no_gradient(loss: Loss, name: str) -> None:
    number = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match=rf"^{name} requires grad, but receives none; pass {name}.detach\(\)"):
        loss(**{name: number})
    torch.testing.assert_close(loss(**{name: number.detach()}), loss(**{name: 0.5}))


@every_loss
def test_teacher_weights_get_no_gradient(loss: Loss) -> None:
    shares = torch.tensor([2.0], requires_grad=True)
    for given in (shares, [shares[0]]):
        with pytest.raises(ValueError, match=r"^teacher_weights\[0\] requires grad, but receives none"):
            loss(teacher_weights=given)
    torch.testing.assert_close(loss(teacher_weights=shares.detach()), loss())


@each("constants")
def test_constants_get_no_derivative(loss: Loss, name: str) -> None:
    constant = loss.constants[name]
    if not constant.is_floating_point():
        return
    with pytest.raises(ValueError, match=rf"^{name}.* requires grad, but receives none"):
        loss.replacing(name, constant.clone().requires_grad_())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(constant, torch.ones_like(constant))
        with pytest.raises(
            ValueError, match=rf"^{name}.* has a tangent, but receives no derivative; pass .*\.detach\(\)"
        ):
            loss.replacing(name, dual)
        torch.testing.assert_close(loss.replacing(name, dual.detach()), loss())


# Derivatives other than those of a backward.


@pytest.mark.parametrize("requires_grad", [False, True])
@each("student", FUSED)
def test_forward_mode_is_refused(loss: Loss, name: str, requires_grad: bool) -> None:
    primal = loss.student[name].clone().requires_grad_(requires_grad)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(primal, torch.ones_like(primal))
        with pytest.raises(NotImplementedError, match=rf"{name} has a tangent.*differentiate by loss.backward\(\)"):
            loss.replacing(name, dual)


TRANSFORMS: list[Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = [
    lambda function, x: torch.func.jvp(function, (x,), (x,)),
    lambda function, x: torch.func.grad(function)(x),
    lambda function, x: torch.func.vmap(function)(x.expand(2, *x.shape)),
    lambda function, x: torch.func.jacfwd(function)(x),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
@each("student", FUSED)
def test_transforms_are_refused(loss: Loss, name: str, transform: Callable[..., Any]) -> None:
    with pytest.raises(NotImplementedError, match=r"inside a transform of torch.func .*by loss.backward\(\)"):
        transform(lambda x: loss(**{name: x}), loss.student[name])


@pytest.mark.parametrize("loss", FUSED)
def test_transforms_of_a_compiled_loss_are_refused(loss: Loss) -> None:
    name, x = next(iter(loss.student.items()))
    compiled = torch.compile(lambda x: loss(**{name: x}), backend="eager")
    with pytest.raises(NotImplementedError, match=r"does not work inside a transform of torch.func"):
        torch.func.jvp(compiled, (x,), (x,))


@every_reduction
def test_the_binary_loss_can_be_transformed(reduction: str) -> None:
    """It consists of torch's own operators."""
    logits, target, teacher = BINARY.student["logits"], *BINARY.constants.values()
    (gradient,) = BINARY.gradients(reduction=reduction)
    torch.testing.assert_close(torch.func.grad(lambda x: BINARY(logits=x, reduction=reduction).sum())(logits), gradient)
    _, derivative = torch.func.jvp(lambda x: BINARY(logits=x, reduction=reduction), (logits,), (teacher,))
    torch.testing.assert_close(derivative.sum(), gradient @ teacher)
    rows = torch.func.vmap(lambda x, y, t: BINARY(logits=x, target=y, teacher_logits=[t], reduction=reduction))
    torch.testing.assert_close(rows(logits, target, teacher), BINARY(reduction="none"))


@pytest.mark.launch  # compiles C++
def test_the_binary_loss_compiles_without_a_graph_break_and_once_for_all_weights() -> None:
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(BINARY, fullgraph=True, backend=counter)
    for distill_weight in (1.0, 0.5, 0.25, 0.75):
        torch.testing.assert_close(compiled(distill_weight=distill_weight), BINARY(distill_weight=distill_weight))
    assert counter.frame_count <= 2  # dynamo takes the first weight for a constant, later ones for a variable


# Tensors of inference mode.


@every_reduction
@every_loss
def test_tensors_of_inference_mode(loss: Loss, reduction: str) -> None:
    """Teachers' outputs and everything computed with them may be tensors of inference mode."""
    options = {name: torch.tensor(0.5) for name in loss.numbers if reduction == "mean" or name != "normalizer"}
    if loss is not BINARY:
        options["class_weight"] = torch.linspace(1, 2, 9)
    expected = loss.gradients(reduction=reduction, **options)
    with torch.inference_mode():
        options = {name: x.clone() for name, x in options.items()}
        constants = {name: x.clone() for name, x in loss.constants.items()}
    assert all(x.is_inference() for x in (*options.values(), *constants.values()))
    given = {name: [x] if name.startswith("teacher") else x for name, x in constants.items()}
    torch.testing.assert_close(loss.gradients(reduction=reduction, **given, **options), expected)


@every_reduction
def test_a_trunk_in_inference_mode(reduction: str) -> None:
    """The trunk is frozen, and the head learns."""
    with torch.inference_mode():
        hidden = LINEAR.student["hidden"].clone()
    weight = LINEAR.student["linear_weight"].clone().requires_grad_()
    LINEAR(hidden=hidden, linear_weight=weight, reduction=reduction).sum().backward()
    torch.testing.assert_close(weight.grad, LINEAR.gradients(reduction=reduction)[1])


@every_loss
def test_in_inference_mode(loss: Loss) -> None:
    with torch.inference_mode():
        inside = loss()
    torch.testing.assert_close(inside.clone(), loss())


# Arguments that are no tensor, no number, or several numbers.


@each("student")
@pytest.mark.parametrize("value", [None, [1.0]])
def test_a_student_that_is_no_tensor(loss: Loss, name: str, value: Any) -> None:
    if name == "linear_bias" and value is None:
        return
    with pytest.raises(TypeError, match=rf"^{name} is a {type(value).__name__}; pass a tensor"):
        loss.replacing(name, value)


@each("constants")
@pytest.mark.parametrize("value", [None, [1.0]])
def test_constants_that_are_no_tensors(loss: Loss, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name}(\[0\])? is a {type(value).__name__}; pass a tensor"):
        loss.replacing(name, value)


@each("numbers")
def test_numbers_that_are_no_numbers(loss: Loss, name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} is '1'; pass a number"):
        loss(**{name: "1"})
    with pytest.raises(ValueError, match=rf"^{name} has shape \[4\]; pass a number"):
        loss(**{name: torch.ones(4)})


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function that makes a DTensor of a tensor."""
    store = dist.FileStore(str(Path(tmp_path_factory.mktemp("store"), "store")), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    yield lambda tensor: distribute_tensor(tensor, mesh, [Replicate()])
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["student", "constants"])
@every_loss
def test_dtensors_are_refused(loss: Loss, kind: str, spread: Callable[[Tensor], Tensor]) -> None:
    for name, tensor in getattr(loss, kind).items():
        whole = spread(tensor)
        with pytest.raises(TypeError, match=rf"^{name}(\[0\])? is a DTensor; pass .*full_tensor\(\), or .*to_local\("):
            loss.replacing(name, whole)
        torch.testing.assert_close(loss.replacing(name, whole.full_tensor()), loss())


# One entry for each teacher.


class Lazy(Sequence[Any]):
    """Sequence that computes its elements on access, like the predictions of a session."""

    def __init__(self, elements: list[Any]) -> None:
        self.elements = elements

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, index: Any) -> Any:
        return self.elements[index]


@pytest.mark.parametrize("collected", [list, tuple, iter, lambda teachers: (one for one in teachers), Lazy])
@every_loss
def test_any_iterable_of_teachers(loss: Loss, collected: Callable[[list[Any]], Any]) -> None:
    given: dict[str, list[Any]] = {name: [x, 2 * x] for name, x in loss.constants.items() if name != "target"}
    given["teacher_weights"] = [1, 3]
    torch.testing.assert_close(loss(**{name: collected(x) for name, x in given.items()}), loss(**given))


@pytest.mark.parametrize("teachers", [3, "ab", {"first": torch.ones(4)}, {1}])
@every_loss
def test_teachers_without_an_order(loss: Loss, teachers: Any) -> None:
    kind = type(teachers).__name__
    for name in (list(loss.constants)[1], "teacher_weights"):
        with pytest.raises(TypeError, match=rf"^{name} is a {kind}; pass a list with one entry for each teacher"):
            loss(**{name: teachers})
