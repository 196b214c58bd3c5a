"""A session: inputs and outputs of its teachers, the schedule of the weight, states, and errors."""

import io
from collections import UserDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpcdistill import Codistillation, Groups, codistillation_loss
from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.errors import UserError
from hpcdistill.exchange import files
from pair import exchange_until, hear, joined, sole

INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture(autouse=True)
def quick_files_and_equal_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(files, "POLL_SECONDS", 0.01)


@pytest.fixture
def inert() -> Codistillation:
    return Codistillation(nn.Linear(4, 3), Groups.single(), burn_in=0)


class Structured(nn.Module):
    """Model of a dictionary and a named argument, which returns an object with logits, like Hugging Face models."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, batch: dict[str, torch.Tensor], *, scale: float) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(batch["features"]) * scale, other=None)


def two(make: Any) -> tuple[nn.Module, nn.Module]:
    return make(), make()


def linear() -> nn.Module:
    return nn.Linear(4, 3)


def test_inputs_may_be_structured_and_outputs_have_logits(world: Communicator, tmp_path: Path) -> None:
    models = two(Structured)
    with joined(world, tmp_path, models) as pair:
        hear(pair)
        batch = UserDict(features=INPUTS)
        (logits,) = pair[0].predict(batch, scale=2.0)
        assert torch.equal(logits, models[1](batch, scale=2.0).logits)
        assert not logits.requires_grad


def test_outputs_are_what_a_function_takes_of_the_model(world: Communicator, tmp_path: Path) -> None:
    models = two(linear)
    with joined(world, tmp_path, models, outputs=lambda model, inputs: {"twice": 2 * model(inputs)}) as pair:
        hear(pair)
        (outputs,) = pair[0].predict(INPUTS)
        assert torch.equal(outputs["twice"], 2 * models[1](INPUTS))


@pytest.mark.parametrize("precision", ["full", "bf16"])
def test_under_autocast_teachers_have_the_student_s_dtype(precision: str, world: Communicator, tmp_path: Path) -> None:
    models = two(linear)
    with joined(world, tmp_path, models, teacher_precision=precision) as pair:
        hear(pair)
        with torch.autocast("cpu", torch.bfloat16):
            student, (teacher,) = models[0](INPUTS), pair[0].predict(INPUTS)
        assert student.dtype == teacher.dtype == torch.bfloat16
        (teacher,) = pair[0].predict(INPUTS)
        assert teacher.dtype == torch.float32
        codistillation_loss(student.float(), TARGET, [teacher])


@pytest.fixture
def process_group() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_wrapped_students_are_unwrapped(world: Communicator, tmp_path: Path, process_group: None) -> None:
    inside = two(linear)
    wrapped = DistributedDataParallel(torch.compile(inside[0], backend="eager"))
    with joined(world, tmp_path, (wrapped, inside[1])) as pair:
        hear(pair)
        (teacher,) = pair[0].predict(INPUTS)
        assert torch.equal(teacher, inside[1](INPUTS))
        codistillation_loss(wrapped(INPUTS), TARGET, [teacher]).backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # which torch.compile looks at
def test_teachers_stay_outside_of_a_compiled_graph(world: Communicator, tmp_path: Path) -> None:
    compiling = []

    def outputs(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        compiling.append(torch.compiler.is_compiling())
        return model(inputs)

    models = two(linear)
    with joined(world, tmp_path, models, outputs=outputs) as pair:

        @torch.compile(backend="eager")
        def loss_of(inputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return codistillation_loss(models[0](inputs), target, pair[0].predict(inputs))

        alone = loss_of(INPUTS, TARGET).item()
        hear(pair)
        loss = loss_of(INPUTS, TARGET)
        assert loss.item() > alone
        expected = codistillation_loss(models[0](INPUTS), TARGET, [models[1](INPUTS).detach()])
        torch.testing.assert_close(loss, expected)
    assert compiling == [False]


def test_a_model_in_place_of_the_student_is_published(world: Communicator, tmp_path: Path) -> None:
    models, average = two(linear), linear()
    with joined(world, tmp_path, models, published=average) as pair:
        exchange_until(pair, lambda: bool(pair[1].staleness))
        (teacher,) = pair[1].predict(INPUTS)
    assert torch.equal(teacher, average(INPUTS))


def test_another_model_cannot_be_published(world: Communicator) -> None:
    with pytest.raises(
        ValueError, match=r"weight \[3, 4\] float32 against weight \[2, 4\] float32; publish an average"
    ):
        Codistillation(linear(), sole(world, 0), published=nn.Linear(4, 2))


def test_snapshots_are_tried_on_the_target(world: Communicator, tmp_path: Path) -> None:
    """Check a snapshot whose excess loss is accepted, and a later one whose is not."""
    excess = 0.4

    def excess_loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert target is TARGET
        return torch.tensor(excess)

    with joined(world, tmp_path, two(linear), excess_loss=excess_loss) as pair:
        hear(pair)
        with pytest.raises(ValueError, match=r"call predict\(..., target=target\)"):
            pair[0].predict(INPUTS)
        assert len(pair[0].predict(INPUTS, target=TARGET)) == 1
        excess = 0.6
        known = pair[0].staleness[1]
        exchange_until(pair, lambda: pair[0].staleness[1] < known + 1)
        exchange_until(pair, lambda: not pair[0].predict(INPUTS, target=TARGET))
        assert "0.6 nats worse than a constant prediction" in pair[0].quarantine[1]


def test_skipped_step_numbers_skip_no_publish(world: Communicator, tmp_path: Path) -> None:
    with joined(world, tmp_path, two(linear), interval=10) as (student, _):
        student.step(9)
        assert student.traffic.published == 0
        student.step(11)
        assert bool(student.traffic.published) == (world.rank == 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU: needs a side stream")
def test_on_a_gpu_a_reader_waits_for_the_side_stream(world: Communicator, tmp_path: Path) -> None:
    models = (linear().cuda(), linear().cuda())

    def outputs(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        if torch.cuda.current_stream() != torch.cuda.default_stream():
            torch.cuda._sleep(10**8)  # clock cycles: about a tenth of a second
        return model(inputs)

    with joined(world, tmp_path, models, outputs=outputs) as pair:
        hear(pair)
        inputs = INPUTS.cuda()
        (teacher,) = pair[0].predict(inputs)
        assert torch.equal(teacher, models[1](inputs))


def test_the_weight_rises_after_the_burn_in() -> None:
    session = Codistillation(nn.Linear(4, 3), Groups.single(), weight=2.0, burn_in=3, ramp=3)
    weights = []
    for _ in range(8):
        weights.append(session.weight)
        session.step()
    assert weights == [0, 0, 0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_without_peers_nothing_teaches(inert: Codistillation) -> None:
    with inert as peers:
        assert peers.predict(INPUTS, anything=1) == []
        peers.step()
        assert (peers.staleness, peers.quarantine, peers.weight, peers.traffic.published) == ({}, {}, 1.0, 0)


def train(steps: int, checkpoint: io.BytesIO | None = None) -> tuple[nn.Module, io.BytesIO]:
    """Train with a fixed teacher until `steps`, from `checkpoint` if given; return the model and its checkpoint."""
    torch.manual_seed(0)
    teacher, model = nn.Linear(4, 3).requires_grad_(False), nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    teachers = FixedTeachers([teacher])
    with Codistillation(model, Groups.single(), burn_in=3, ramp=9, teachers=teachers) as peers:
        first = 0
        if checkpoint:
            state = torch.load(checkpoint)
            first = state["peers"]["step"]
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            peers.load_state_dict(state["peers"])
        for _ in range(first, steps):
            codistillation_loss(model(INPUTS), TARGET, peers.predict(INPUTS), distill_weight=peers.weight).backward()
            optimizer.step()
            optimizer.zero_grad()
            peers.step()
        file = io.BytesIO()
        parts = {"model": model, "optimizer": optimizer, "peers": peers}
        torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    file.seek(0)
    return model, file


def test_a_resumed_run_is_bit_identical() -> None:
    straight, _ = train(10)
    _, checkpoint = train(6)
    resumed, _ = train(10, checkpoint)
    assert torch.equal(straight.weight, resumed.weight)
    checkpoint.seek(0)
    elsewhere, _ = train(6, checkpoint)
    assert not torch.equal(straight.weight, elsewhere.weight)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(4, 2), r"weight \[2, 4\] float32 there against weight \[3, 4\] float32 here"),
        (nn.Linear(4, 3, bias=False), "1 tensors there against 2 here"),
    ],
)
def test_the_state_of_another_model_is_refused(other: nn.Module, message: str, inert: Codistillation) -> None:
    with pytest.raises(UserError, match=f"the state is of another model: {message}"):
        inert.load_state_dict(Codistillation(other, Groups.single()).state_dict())
    with pytest.raises(UserError, match=r"holds 'step' and 'tensors', this one \['model'\]"):
        inert.load_state_dict({"model": {}})


def test_a_step_is_counted_once(inert: Codistillation) -> None:
    inert.step(3)
    inert.step()
    with pytest.raises(ValueError, match=r"step = 4 follows step 4; call step\(\) once after each optimizer step"):
        inert.step(4)


def test_nothing_is_predicted_after_the_end(inert: Codistillation) -> None:
    with inert:
        pass
    for call in (lambda: inert.predict(INPUTS), inert.step):
        with pytest.raises(RuntimeError, match="block has ended; predict and step inside it"):
            call()


def test_inputs_that_a_teacher_refuses_name_it(world: Communicator, tmp_path: Path) -> None:
    with joined(world, tmp_path, two(linear)) as pair:
        hear(pair)
        with pytest.raises(UserError, match=r"group 1 cannot predict for these inputs \(RuntimeError: .*") as raised:
            pair[0].predict(torch.zeros(5, 7))
        assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize("count", [2, 4])
def test_groups_with_other_models_are_refused_on_every_rank(count: int, world: Communicator) -> None:
    if world.size % count:
        pytest.skip(f"ranks: {world.size} do not make {count} groups")
    groups = Groups.split(world, (world.size // count,) * count, torch.device("cpu"))
    with pytest.raises(UserError, match=r"weight \[3, 5\] float32 there, weight \[3, 4\] float32 here"):
        Codistillation(nn.Linear(4 + (groups.group > 0), 3), groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval = 0 is too low; use 1 or more"),
        ({"weight": float("nan")}, "weight = nan is too low; use 0 or more"),
        ({"topology": "star"}, "topology = 'star' is unknown; use one of 'all', 'ring', 'pairs', 'k-random'"),
        ({"teacher_precision": "fp8"}, "teacher_precision = 'fp8' is unknown; use one of 'full', 'bf16'"),
        ({"teachers": "own"}, r"teachers = 'own' is unknown; use 'self', FixedTeachers\(...\), or None for peers"),
        ({"max_staleness": 50}, "max_staleness = 50 ends before the next snapshot"),
        ({"topology": "pairs"}, "topology = 'pairs' needs an even number of groups, not 3"),
        ({"topology": "k-random", "degree": 3}, "degree = 3 is more than the peers of a group; use at most 2"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str, world: Communicator) -> None:
    with pytest.raises(ValueError, match=message):
        Codistillation(nn.Linear(4, 3), sole(world, 0, 3), **options)


@pytest.mark.parametrize(
    ("transport", "message"),
    [
        ("window", "transport 'window' joins groups of one job"),
        ("files", "transport 'files' needs a folder"),
        ("pigeon", "there is no transport 'pigeon'; use one of files, window"),
    ],
)
def test_transports_that_cannot_work_are_refused(transport: str, message: str, world: Communicator) -> None:
    with pytest.raises(UserError, match=message):
        Codistillation(nn.Linear(4, 3), sole(world, 0), transport=transport)


def test_arguments_that_differ_between_ranks_are_refused(world: Communicator) -> None:
    if world.size == 1:
        pytest.skip("ranks: one cannot differ from others")
    groups = Groups.split(world, (world.size,), torch.device("cpu"))
    with pytest.raises(UserError, match=r"Codistillation differs between ranks: .*interval = 1, .* interval = 2"):
        Codistillation(nn.Linear(4, 3), groups, interval=1 + (world.rank > 0))
    each = Groups.split(world, (1,) * world.size, torch.device("cpu"))
    with pytest.raises(UserError, match=r"with peers = True, .* with peers = False"):
        Codistillation(nn.Linear(4, 3), each, weight=float(world.rank == 0))
    with pytest.raises(UserError, match=r"with its own model = True, .* with its own model = False"):
        Codistillation(nn.Linear(4, 3), groups, teachers="self" if world.rank == 0 else FixedTeachers())
