"""Restarts: only the same run resumes, and the best checkpoint holds the weights that were validated."""

import copy
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import saved_models
from hpcdistill import Codistillation
from hpcdistill.data.tokens.batches import sequence_batches
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.single import SingleProcess
from hpcdistill.errors import UserError
from hpcdistill.models.registry import build_model, config_class
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.checkpoints import KIND, Checkpoints
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import State, load_state
from hpcdistill.tasks.registry import open_task
from hpcdistill.training.optimizer import build_optimizer
from hpcdistill.training.precision import to_bfloat16
from hpcdistill.training.restart import Restart, require_finite
from hpcdistill.training.setup import training_share
from synchronizations import recorded_synchronizations

pytestmark = pytest.mark.alone


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return saved_models.text(tmp_path / "text.h5")


@contextmanager
def restart(run: Path, data: Path, model: nn.Module | None = None, seed: int = 0, **settings: Any) -> Iterator[Restart]:
    """Make the `Restart` of a run of one rank; `settings` are keys of the section [data]."""
    cut = {"path": data, "sequence_length": 8, "batch_size": 5, **settings}
    config = config_class()(
        run_dir=run, seed=seed, groups=1, data=cut, codistill={"weight": 0}, model=saved_models.MODELS["token"]
    )
    groups, task = Groups.split(SingleProcess(), (1,), torch.device("cpu")), open_task(data)
    model = model or build_model(config.model, task.store)
    batches = sequence_batches(task.store, config.data, training_share(config, groups))
    optimizer = build_optimizer(config.optimizer, model)
    with task.store, Restart(config, groups, model, None, optimizer, batches, task.store.identity) as made:
        yield made


def best(run: Path) -> State:
    state: State = load_state(run / "checkpoints" / "g0-best.h5", KIND)["state"]
    return state


def model_of(data: Path) -> nn.Module:
    with open_task(data).store as store:
        return build_model(
            config_class()(run_dir=data, data={"path": data}, model=saved_models.MODELS["token"]).model, store
        )


@torch.no_grad()
def become(model: nn.Module, number: float) -> None:
    for parameter in model.parameters():
        parameter.fill_(number)


def weights_of(state: State) -> set[float]:
    return {value for name, tensor in state["model"].items() if "weight" in name for value in tensor.unique().tolist()}


def test_the_best_checkpoint_is_of_the_weights_that_were_validated(data: Path, tmp_path: Path) -> None:
    model = model_of(data)
    with restart(tmp_path, data, model) as run:
        for step, loss in ((100, 2.5), (130, None), (200, 2.0), (260, None), (300, 2.25), (390, None)):
            become(model, step)
            run.save(step, math.nan if loss is None else loss, scheduled=loss is None, last=True)
    assert (best(tmp_path)["step"], best(tmp_path)["lowest_validation_loss"]) == (200, 2.0)
    assert weights_of(best(tmp_path)) == {200.0}
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(names) == ["g0-best.h5", "g0-step0000000260.h5", "g0-step0000000390.h5"]


def test_a_session_continues_with_its_snapshot(data: Path, tmp_path: Path) -> None:
    tokens, predictions, staleness = torch.randint(256, (2, 8)), [], []
    for start in range(2):
        model = model_of(data)
        session = Codistillation(model, Groups.single(), teachers="self", interval=5, burn_in=0)
        with restart(tmp_path, data, model) as run:
            run.attach(session, run.resume("yes"))
            if start == 0:
                session.step(5)
                session.step(7)
                run.save(7, last=True)
        predictions += session.predict(tokens)
        staleness.append(session.staleness)
    assert torch.equal(*predictions)
    assert staleness == [{0: 2}, {0: 2}]


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_loss_that_is_not_finite_never_wins(scheduled: bool, data: Path, tmp_path: Path) -> None:
    with restart(tmp_path, data) as run:
        for step, loss in enumerate((math.inf, math.nan, 3.0, math.nan, -math.inf, 3.5), start=1):
            run.save(step, loss, scheduled, last=True)
    assert (best(tmp_path)["step"], best(tmp_path)["lowest_validation_loss"]) == (3, 3.0)
    with restart(tmp_path, data) as run:  # which remembers it
        if scheduled:
            assert run.resume("yes") == 6
            run.save(7, 3.25, scheduled, last=True)
            run.save(8, math.nan, scheduled, last=True)
    assert best(tmp_path)["step"] == 3


def test_a_best_checkpoint_that_is_gone_is_no_measure(data: Path, tmp_path: Path) -> None:
    with restart(tmp_path, data) as run:
        run.save(1, 2.0, last=True)
    (tmp_path / "checkpoints" / "g0-best.h5").unlink()
    with restart(tmp_path, data) as run:
        run.resume("yes")
        run.save(2, 2.5, scheduled=False, last=True)
    assert best(tmp_path)["step"] == 2


def test_a_busy_disk_costs_a_checkpoint_but_not_the_best(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = threading.Event()
    with restart(tmp_path, data) as run:
        run._writing = threading.Thread(target=done.wait)
        run._writing.start()
        assert not run.save(1)
        assert "no checkpoint at step 1: the disk is still busy" in capsys.readouterr().err
        threading.Timer(0.1, done.set).start()
        assert run.save(2, 2.0, scheduled=False)
    assert best(tmp_path)["step"] == 2


def test_a_disk_that_never_answers_does_not_keep_the_run_from_ending(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpcdistill.training.restart.LAST_SECONDS", 0.1)
    answers = threading.Event()
    with restart(tmp_path, data) as run:
        run._writing = threading.Thread(target=answers.wait)
        run._writing.start()
    answers.set()
    assert "the last checkpoint has not been written in 0 s, and is abandoned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 7}, "seed = 0 there, 7 here"),
        ({"batch_size": 4}, r"data\.batch_size = 5 there, 4 here"),
        ({"sequence_length": 4}, r"data\.sequence_length = 8 there, 4 here"),
        ({"image_size": 32}, r"data\.image_size = None there, 32 here"),
        ({"partition": "same"}, r"data\.partition = disjoint there, same here"),
    ],
)
@pytest.mark.parametrize("mode", ["yes", "strict"])
def test_what_decides_on_the_batches_must_stay(
    mode: str, changed: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with restart(tmp_path, data) as run:
        run.save(1, last=True)
    with (
        restart(tmp_path, data, **changed) as other,
        pytest.raises(UserError, match=f"of another run: {message}; give the options of that run again, or choose"),
    ):
        other.resume(mode)


def test_other_data_of_the_same_kind_is_refused(data: Path, tmp_path: Path) -> None:
    with restart(tmp_path, data) as run:
        run.save(1, last=True)
    before = open_task(data).store.identity
    moved = data.replace(tmp_path / "moved.h5")
    with restart(tmp_path, moved) as run:
        assert run.resume("strict") == 1
    other = saved_models.text(tmp_path / "other.h5", b"abce")
    with (
        restart(tmp_path, other) as run,
        pytest.raises(
            UserError, match=rf"identity of the data = {before} there, {open_task(other).store.identity} here"
        ),
    ):
        run.resume("yes")


@pytest.mark.parametrize("lost", ["ranks", "batches_drawn", "model", "optimizer", "lowest_validation_loss"])
def test_a_checkpoint_without_a_part_is_refused(lost: str, data: Path, tmp_path: Path) -> None:
    with restart(tmp_path, data) as run:
        run.save(1, last=True)
    (path,) = (tmp_path / "checkpoints").glob("*step*")
    content = load_state(path, KIND)
    del content["state"][lost]
    Checkpoints(RunDir(tmp_path), 0, 2, content["owner"]).save(1, content["state"], is_best=False)
    with (
        restart(tmp_path, data) as run,
        pytest.raises(UserError, match=rf"checkpoint of step 1 of group 0 does not fit .*{lost}.*; restore another"),
    ):
        run.resume("yes")


def test_a_validation_that_was_not_made_is_remembered(data: Path, tmp_path: Path) -> None:
    for owes in (True, False):
        with restart(tmp_path / str(owes), data) as run:
            run.owes_validation = owes
            run.save(1, last=True)
        with restart(tmp_path / str(owes), data) as run:
            run.resume("yes")
            assert run.owes_validation == owes


def test_weights_in_bfloat16_resume_bit_for_bit(data: Path, tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        model = model_of(data)
        to_bfloat16(model)
        return model

    def train(run: Restart, steps: int) -> None:
        for _ in range(steps):
            batch = next(run._batches)
            logits = run._model(*batch.inputs)
            nn.functional.cross_entropy(logits.flatten(0, 1), batch.target.flatten()).backward()
            run._optimizer.step()
            run._optimizer.zero_grad()

    def tensors(run: Restart) -> list[torch.Tensor]:
        moments = [each for state in run._optimizer.state.values() for _, each in sorted(state.items())]
        return [*run._model.state_dict().values(), *moments]

    start, resumed = fresh(), fresh()
    with restart(tmp_path / "straight", data, copy.deepcopy(start)) as straight:
        train(straight, 6)
    with restart(tmp_path / "run", data, start) as run:
        train(run, 3)
        run.save(3, 1.0, last=True)
    with restart(tmp_path / "run", data, resumed) as run:
        assert run.resume("strict") == 3
        assert all(torch.equal(*pair) for pair in zip(resumed.parameters(), start.parameters(), strict=True))
        train(run, 3)
    assert all(torch.equal(*pair) for pair in zip(tensors(run), tensors(straight), strict=True))
    assert {tensor.dtype for tensor in resumed.state_dict().values()} == {torch.bfloat16}
    with restart(tmp_path / "run", data) as run, pytest.raises(UserError, match=r"float32"):
        run.resume("yes")
    with open_task(data).store as store:
        saved = SavedModel.load(RunDir(tmp_path / "run").best_checkpoint(0)).build(store)
    newest = [parameter.float() for parameter in start.parameters()]
    assert all(torch.equal(*pair) for pair in zip(saved.parameters(), newest, strict=True))


def test_the_state_of_a_reader_is_restored(data: Path, tmp_path: Path) -> None:
    for state in (torch.tensor([7, 8], dtype=torch.uint8), None):
        with restart(tmp_path / str(state is None), data) as run:
            run._batches.drawn, run._batches.reader_state = 3, state
            run.save(1, last=True)
        with restart(tmp_path / str(state is None), data) as run:
            run.resume("yes")
            assert run._batches.drawn == 3
            restored = run._batches.reader_state
            assert restored is None if state is None else torch.equal(restored, state)


def test_weights_are_read_from_a_gpu_once(data: Path, tmp_path: Path) -> None:
    """Check the search for weights that are not finite, which all checkpoints begin with."""
    model = model_of(data)
    assert len(list(model.parameters())) > 3
    with recorded_synchronizations() as found:
        require_finite(model, group=0, step=3)
    assert found == ["local_scalar_dense"]
    with torch.no_grad():
        list(model.parameters())[2].flatten()[-1] = math.nan
    name = list(dict(model.named_parameters()))[2]
    with pytest.raises(UserError, match=f"group 0: {name} is no longer finite at step 3"):
        require_finite(model, group=0, step=3)
