"""A step: micro-batches, gradient norms, precision and compilation, against steps of plain torch."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from fake_gpu import recorded_copies
from hpcdistill import Codistillation, Groups
from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.config.schema import Config
from hpcdistill.data.batches import IGNORED, Batch
from hpcdistill.losses import ops
from hpcdistill.models.registry import config_class
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.tasks.linear_objective import FusedSoftmax
from hpcdistill.tasks.objective import Binary, Softmax, TrainingObjective
from hpcdistill.training.average import MovingAverage
from hpcdistill.training.forward import Forward
from hpcdistill.training.optimizer import build_optimizer
from hpcdistill.training.precision import to_bfloat16
from hpcdistill.training.recorder import NOISE_EVERY, RECORD_EVERY, TERMS_EVERY, Recorder
from hpcdistill.training.setup import Parts
from hpcdistill.training.step import StepResult, train_step
from synchronizations import recorded_synchronizations

pytestmark = pytest.mark.alone

CLASSES = 7


class Tiny(nn.Module):
    """Classifier with a trunk and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 8), nn.Linear(8, CLASSES)

    def hidden(self, inputs: Tensor) -> Tensor:
        return self.trunk(inputs).relu()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.hidden(inputs))


class Trainer:
    """One group of one rank, which takes steps with a fixed teacher."""

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        objective: TrainingObjective[Any],
        steps_before: int = 0,
        burn_in: int = 0,
        **settings: Any,
    ) -> None:
        values = {"run_dir": folder, "groups": 1, "data": {"path": folder}, "train": settings}
        self.config: Config = config_class()(codistill={"weight": 0}, **values)
        self.groups = replace(Groups.single(), device=next(model.parameters()).device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        outputs = torch.compile(objective.outputs) if self.config.train.compile else objective.outputs
        task, nothing = cast(Any, SimpleNamespace(unit="row", objective=objective)), cast(Any, None)
        self.parts = Parts(task, nothing, objective, Forward(outputs, model), model, None, optimizer, None)
        teacher = copy.deepcopy(model).requires_grad_(False)
        fixed = FixedTeachers([teacher], objective.outputs)
        self.peers = Codistillation(model, self.groups, burn_in=burn_in, teachers=fixed, outputs=objective.outputs)
        self.recorder = Recorder(self.config, self.groups, self.parts, {}, steps_before)

    def step(self, batch: Batch) -> StepResult:
        result = train_step(self.config, self.groups, self.parts, batch, self.peers, self.recorder)
        self.peers.step()
        return result


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Callable[..., Trainer]]:
    made: list[Trainer] = []

    def make(*arguments: Any, **settings: Any) -> Trainer:
        made.append(Trainer(tmp_path / str(len(made)), *arguments, **settings))
        return made[-1]

    yield make
    for each in made:
        each.recorder.__exit__()


def batch(items: int = 8) -> Batch:
    return Batch((torch.randn(items, 4),), torch.randint(CLASSES, (items,)))


def flat(tensors: Iterator[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


OBJECTIVES = {"softmax": lambda model: Softmax(CLASSES), "fused": lambda model: FusedSoftmax(CLASSES, model)}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_make_the_step_of_the_batch(objective: str, trainer: Callable[..., Trainer]) -> None:
    """Check micro-batches with different numbers of targets that count, and one that has none."""
    model = Tiny()
    whole, split = (
        trainer(each, OBJECTIVES[objective](each), accumulate=number)
        for each, number in ((model, 1), (copy.deepcopy(model), 4))
    )
    for _ in range(5):
        one = batch()
        one.target[torch.tensor([0, 1, 2, 5])] = IGNORED
        losses = [each.step(one).loss.item() for each in (whole, split)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(flat(split.parts.model.parameters()), flat(model.parameters()), rtol=0, atol=1e-6)


def test_micro_batches_of_binary_targets(trainer: Callable[..., Trainer]) -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    whole, split = trainer(model, Binary()), trainer(copy.deepcopy(model), Binary(), accumulate=3)
    one = Batch((torch.randn(8, 4),), torch.randint(2, (8,)).float())  # micro-batches of 3, 3 and 2
    assert whole.step(one).loss.item() == pytest.approx(split.step(one).loss.item(), rel=1e-6)
    torch.testing.assert_close(flat(split.parts.model.parameters()), flat(model.parameters()))


def test_gradients_are_clipped_as_torch_does(trainer: Callable[..., Trainer]) -> None:
    plain = Tiny()
    run = trainer(copy.deepcopy(plain), Softmax(CLASSES), clip_norm=0.1)
    one = batch()
    nn.functional.cross_entropy(plain(*one.inputs), one.target).backward()  # the teacher, equal, adds no gradient
    norm = clip_grad_norm_(plain.parameters(), 0.1)
    torch.optim.SGD(plain.parameters(), lr=0.5).step()
    assert norm > 0.2
    torch.testing.assert_close(run.step(one).gradient_norm, norm)
    torch.testing.assert_close(flat(run.parts.model.parameters()), flat(plain.parameters()))


def test_the_norm_is_computed_where_it_is_recorded(trainer: Callable[..., Trainer]) -> None:
    model = Tiny()
    run, other = (
        trainer(each, Softmax(CLASSES), number)
        for each, number in ((model, 0), (copy.deepcopy(model), RECORD_EVERY - 1))
    )
    one = batch()
    result = run.step(one)
    assert result.loss.shape == ()
    assert result.gradient_norm is None
    before = flat(other.parts.model.parameters())
    norm = other.step(one).gradient_norm
    after = flat(other.parts.model.parameters())
    torch.testing.assert_close(norm, (after - before).norm() / 0.5)
    assert torch.equal(after, flat(model.parameters()))  # as without the norm


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_forward_passes_are_bf16_and_losses_and_weights_float32(
    objective: str, trainer: Callable[..., Trainer]
) -> None:
    model = Tiny()
    exact, run = (
        trainer(each, OBJECTIVES[objective](each), precision=precision)
        for each, precision in ((model, "float32"), (copy.deepcopy(model), "bf16"))
    )
    outputs: list[Any] = []
    run.parts.forward.register_forward_hook(lambda *arguments: outputs.append(arguments[-1]))
    one = batch()
    losses = [each.step(one).loss for each in (exact, run)]
    assert (outputs[0] if objective == "softmax" else outputs[0].states).dtype == torch.bfloat16
    assert losses[1].dtype == torch.float32
    assert 0 < abs(losses[0] - losses[1]) < 0.02
    assert {parameter.dtype for parameter in run.parts.model.parameters()} == {torch.float32}
    torch.testing.assert_close(flat(run.parts.model.parameters()), flat(model.parameters()), rtol=0, atol=0.01)


def test_weights_in_bf16_have_gradients_in_bf16(trainer: Callable[..., Trainer]) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))
    to_bfloat16(model)
    run = trainer(model, Softmax(CLASSES), precision="bf16-weights", accumulate=2, clip_norm=1.0)
    dtypes = set()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: dtypes.add(parameter.grad.dtype))
    one, losses = batch(32), []
    for _ in range(20):
        losses.append(run.step(one).loss.item())
    assert dtypes == {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.timeout(300)  # torch's compiler takes 12 s on an idle core
def test_a_compiled_model_has_the_same_losses_and_names(trainer: Callable[..., Trainer]) -> None:
    model = Tiny()
    eager, compiled = (
        trainer(each, FusedSoftmax(CLASSES, each), NOISE_EVERY - 2, burn_in=2, accumulate=2, compile=compiles)
        for each, compiles in ((model, False), (copy.deepcopy(model), True))
    )
    for step in range(NOISE_EVERY - 1, NOISE_EVERY + 2):  # in the second one the noise is measured
        one = batch()
        with torch.compiler.set_stance("default" if step < NOISE_EVERY else "fail_on_recompile"):
            results = [each.step(one) for each in (eager, compiled)]
        torch.testing.assert_close(results[1].loss, results[0].loss, rtol=1e-5, atol=1e-6)
        for each, result in zip((eager, compiled), results, strict=True):
            each.recorder.record_step(step, one, *result, each.peers, flush=False)
    texts = [RunDir(each.config.run_dir).metrics(0).read_text() for each in (eager, compiled)]
    variances = [json.loads(text.splitlines()[-1])["gradient_variance"] for text in texts]
    assert variances[1] == pytest.approx(variances[0], rel=1e-3)
    assert compiled.parts.model.state_dict().keys() == model.state_dict().keys()


# What makes a host wait for its GPU.


@pytest.fixture
def scaled_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale gradients by any factor; a CPU looks first whether it is 1."""
    monkeypatch.setattr(ops, "scale", lambda gradient, factors: gradient.mul_(factors.unsqueeze(-1)))


@pytest.mark.usefixtures("scaled_as_on_a_gpu")
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.1, "accumulate": 2}, {"precision": "bf16"}])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_a_record_waits_for_a_gpu_and_once(
    objective: str, settings: dict[str, Any], trainer: Callable[..., Trainer]
) -> None:
    """Check steps up to one that ends a record, and in which the share of the distillation term is measured."""
    model = Tiny()
    run = trainer(model, OBJECTIVES[objective](model), TERMS_EVERY - 3, **settings)
    for step in range(TERMS_EVERY - 2, TERMS_EVERY + 1):
        one = batch()
        with recorded_synchronizations() as found:
            result = run.step(one)
            run.recorder.record_step(step, one, *result, run.peers, flush=False)
        assert found == (["tolist"] if step == TERMS_EVERY else [])
    record = json.loads(RunDir(run.config.run_dir).metrics(0).read_text().splitlines()[-1])
    assert {"loss", "gradient_norm", "distillation_share", "cross_entropy"} <= record.keys()


@pytest.mark.usefixtures("scaled_as_on_a_gpu")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.1, "accumulate": 2, "average": 0.9}])
def test_a_step_copies_nothing_between_host_and_gpu(
    objective: str, settings: dict[str, Any], trainer: Callable[..., Trainer]
) -> None:
    """Check ordinary steps on tensors without memory that claim to be on a GPU."""
    with torch.device("meta"):
        model, one = Tiny(), batch()
    run = trainer(model, OBJECTIVES[objective](model), **settings)
    with recorded_copies() as copies:
        object.__setattr__(run.parts, "optimizer", build_optimizer(run.config.optimizer, model))
        average = MovingAverage(model, settings["average"]) if "average" in settings else None
        object.__setattr__(run.parts, "average", average)
        copies.clear()
        for step in (1, 2):
            result = run.step(one)
            run.recorder.record_step(step, one, *result, run.peers, flush=False)
    assert copies == []
    assert result.loss.device.type == "meta"


@pytest.mark.usefixtures("scaled_as_on_a_gpu")
def test_measuring_noise_changes_no_weight_and_adds_no_wait(trainer: Callable[..., Trainer]) -> None:
    """Compare a step in which the noise is measured with one in which it is not."""
    model = Tiny()
    plain, measured = (
        trainer(each, Softmax(CLASSES), steps, burn_in=1000, accumulate=2)
        for each, steps in ((model, 0), (copy.deepcopy(model), NOISE_EVERY - 1))
    )
    one = batch()
    plain.step(one)
    with recorded_synchronizations() as found:
        measured.recorder.record_step(NOISE_EVERY, one, *measured.step(one), measured.peers, flush=False)
    assert found == ["tolist"]
    assert torch.equal(flat(measured.parts.model.parameters()), flat(model.parameters()))
    record = json.loads(RunDir(measured.config.run_dir).metrics(0).read_text().splitlines()[-1])
    assert record["gradient_variance"] > 0
    assert record["cross_entropy"] == record["loss"]
    assert list(record["part_seconds"]) == ["data", "teachers", "exchange", "averaging", "compute"]
    measured.step(one)
    assert measured.recorder._norms.of_parts is None


def test_noise_is_measured_without_distillation_only(trainer: Callable[..., Trainer]) -> None:
    model = Tiny()
    run = trainer(model, Softmax(CLASSES), NOISE_EVERY - 1, accumulate=2)
    run.step(batch())
    assert run.recorder._norms.of_parts is None


def test_calls_that_wait_are_found() -> None:
    """Check the check of the test above."""
    one, some = torch.ones(()), torch.tensor([0.0, 1.0])
    waiting = {
        "local_scalar_dense": lambda: [one.item(), bool(one), float(one), int(one), f"{one:.1f}", one in some],
        "nonzero": lambda: [some.nonzero(), torch.where(some > 0)],
        "index": lambda: [some[some > 0]],
        "equal": lambda: [torch.equal(some, some)],
        "to": lambda: [some.to("cpu"), some.to(device="cpu", dtype=torch.float64)],
        "cpu": lambda: [some.cpu()],
        "numpy": lambda: [some.numpy()],
        "tolist": lambda: [some.tolist()],
    }
    for name, calls in waiting.items():
        with recorded_synchronizations() as found:
            count = len(calls())
        assert found == [name] * count
    with recorded_synchronizations() as found:
        torch.stack([one.float(), some.sum().to(torch.float64)]).clamp(min=0)[some.argsort()].to(one.device)[1:]
    assert found == []
