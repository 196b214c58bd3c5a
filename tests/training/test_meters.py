"""Terms of the loss on a sample: the share of the distillation term in the gradient, and the cross-entropy."""

import pytest
import torch
from torch import Tensor

from hpcdistill.tasks.linear_objective import FusedSoftmax, Hidden
from hpcdistill.tasks.objective import Binary, Softmax
from hpcdistill.training.meters import SAMPLED, measure_terms

pytestmark = pytest.mark.alone

B, T, V, D = 2 * 64, 16, 7, 5


class Model(torch.nn.Module):
    """Model with hidden states and a head, as the fused objective needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(D, V)

    def hidden(self, inputs: Tensor) -> Tensor:
        return inputs


def expected(cross_entropy: Tensor, term: Tensor, weight: float) -> float:
    """Return the share from the gradients of both terms by the outputs of all targets, of which some are sampled."""
    c, d = (each.flatten(0, 1) if each.ndim == 3 else each for each in (cross_entropy, term))
    every = min(SAMPLED, len(c) // 64)
    c, d = c[::every].norm().item(), weight * d[::every].norm().item()
    return d / (c + d)


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_it_is_that_of_the_logits(weight: float) -> None:
    torch.manual_seed(0)
    outputs, teacher = torch.randn(B, T, V, requires_grad=True), torch.randn(B, T, V)
    target = torch.randint(V, (B, T))
    share, loss = measure_terms(Softmax(V), outputs, target, [teacher], weight, 1.0)
    probabilities = outputs.detach().softmax(-1)
    cross_entropy = probabilities - torch.nn.functional.one_hot(target, V)
    assert share.item() == pytest.approx(expected(cross_entropy, probabilities - teacher.softmax(-1), weight), rel=1e-5)
    every = min(SAMPLED, B * T // 64)
    sampled = torch.nn.functional.cross_entropy(outputs.flatten(0, 1)[::every], target.flatten()[::every])
    torch.testing.assert_close(loss, sampled.detach())
    assert outputs.grad is None


def test_it_is_that_of_binary_logits() -> None:
    torch.manual_seed(0)
    outputs, teachers = torch.randn(B, requires_grad=True), list(torch.randn(2, B))
    target = torch.randint(2, (B,)).float()
    share, loss = measure_terms(Binary(), outputs, target, teachers, 2.0, 1.0)
    probability = outputs.detach().sigmoid()
    mean = torch.stack(teachers).sigmoid().mean(0)
    assert share.item() == pytest.approx(expected(probability - target, probability - mean, 2.0), rel=1e-5)
    every = min(SAMPLED, B // 64)
    sampled = torch.nn.functional.binary_cross_entropy(probability[::every], target[::every])
    torch.testing.assert_close(loss, sampled)


def test_it_is_that_of_hidden_states_where_the_head_is_fused() -> None:
    torch.manual_seed(0)
    model, teacher = Model(), Hidden(torch.randn(B, T, D), torch.randn(V, D), torch.randn(V))
    objective = FusedSoftmax(V, model)
    outputs = objective.outputs(model, torch.randn(B, T, D, requires_grad=True))
    target = torch.randint(V, (B, T))
    share, loss = measure_terms(objective, outputs, target, [teacher], 2.0, 1.0)
    with torch.no_grad():
        probabilities = model.head(outputs.states).softmax(-1)
        taught = teacher.logits().softmax(-1)
        cross_entropy = (probabilities - torch.nn.functional.one_hot(target, V)) @ model.head.weight
        term = (probabilities - taught) @ model.head.weight
    assert share.item() == pytest.approx(expected(cross_entropy, term, 2.0), rel=1e-4)
    every = min(SAMPLED, B * T // 64)
    logits = model.head(outputs.states).detach().flatten(0, 1)[::every]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, target.flatten()[::every]))
    assert model.head.weight.grad is None
