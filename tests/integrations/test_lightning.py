"""The callback and the strategies for Lightning, alone and in groups."""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import horovod.torch as hvd
import lightning_module as example
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import FSDPStrategy
from mpi4py import MPI
from torch import nn
from torch.distributed import ReduceOp
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from hpcdistill import Groups
from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.errors import UserError
from hpcdistill.integrations.lightning import CodistillationCallback, GroupDDPStrategy, HorovodStrategy
from repository import page_blocks

pytestmark = [
    # Small data in the process itself is right for tests and examples.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # of lightning's own code
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The `srun` command is available"),
]


def data(batch: int, **sampler: Any) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Return batches; with arguments of a DistributedSampler, this one takes the place of Lightning's."""
    torch.manual_seed(7)
    points = TensorDataset(torch.randn(48, 2), torch.randint(10, (48,)))
    return DataLoader(points, batch, sampler=DistributedSampler(points, **sampler) if sampler else None)


class Alone(LightningEnvironment):
    """Environment of a process alone: Lightning would ask mpi4py."""

    creates_processes_externally = True


def trainer(groups: Groups, folder: Path, strategy: Any = None, **options: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    strategy = strategy or HorovodStrategy(groups)
    return Trainer(strategy=strategy, default_root_dir=folder / f"group-{groups.group}", **(quiet | options))


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.alone
def test_a_resumed_run_continues_the_session(tmp_path: Path) -> None:
    groups = Groups.single()
    teachers = FixedTeachers([example.Sectors()])
    results = []
    for steps, checkpoint in ((12, None), (6, None), (12, tmp_path / "6.ckpt")):  # of 6 steps an epoch
        torch.manual_seed(0)
        module, callback = example.Sectors(), CodistillationCallback(groups, burn_in=3, ramp=19, teachers=teachers)
        run = trainer(
            groups, tmp_path, callbacks=[callback], max_steps=steps, accumulate_grad_batches=2, precision="bf16-mixed"
        )
        run.fit(module, data(4, num_replicas=1, rank=0, shuffle=False), data(8), ckpt_path=checkpoint)
        run.save_checkpoint(tmp_path / f"{steps}.ckpt")
        assert callback.peers is module.peers
        results.append((flat(module), module.peers.state_dict()["step"], module.peers.weight))
    whole, _, resumed = results
    assert torch.equal(whole[0], resumed[0])
    assert whole[1:] == resumed[1:] == (12, 0.5)


@pytest.mark.alone
def test_replicas_of_a_module_refer_to_its_session(tmp_path: Path) -> None:
    groups, module = Groups.single(), example.Sectors()
    trainer(groups, tmp_path, callbacks=[CodistillationCallback(groups)], max_steps=1).fit(module, data(4), data(8))
    assert copy.deepcopy(module).peers is module.peers


@pytest.mark.alone
def test_an_exception_ends_the_session_and_leaves_fit(tmp_path: Path) -> None:
    class Failing(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise ValueError("broken")

    groups, module = Groups.single(), example.Sectors()
    run = trainer(groups, tmp_path, callbacks=[CodistillationCallback(groups), Failing()], max_steps=1)
    with pytest.raises(ValueError, match="broken"):
        run.fit(module, data(4), data(8))
    with pytest.raises(RuntimeError, match="block has ended"):
        module.peers.step()


@pytest.mark.alone
def test_a_changing_number_of_accumulated_batches_is_refused(tmp_path: Path) -> None:
    run = trainer(Groups.single(), tmp_path, callbacks=[GradientAccumulationScheduler({1: 2})], max_epochs=2)
    with pytest.raises(UserError, match="GradientAccumulationScheduler does not work with HorovodStrategy"):
        run.fit(example.Sectors(), data(4), data(8))


@pytest.mark.alone
def test_a_strategy_that_takes_all_ranks_for_one_group_is_refused(tmp_path: Path) -> None:
    callback = CodistillationCallback(Groups(MPI.COMM_SELF, MPI.COMM_SELF, (1,), torch.device("cpu"), count=1))
    run = SimpleNamespace(world_size=4, global_rank=2, strategy=HorovodStrategy(Groups.single()))
    with pytest.raises(UserError, match="takes this process for rank 2 of 4, but it is rank 0 of 1 of its group"):
        callback.on_fit_start(run, example.Sectors())  # type: ignore[arg-type]


@pytest.mark.alone
def test_a_strategy_that_splits_the_model_is_refused() -> None:
    callback, strategy = CodistillationCallback(Groups.single()), FSDPStrategy()
    with pytest.raises(UserError, match="FSDPStrategy splits the model over ranks"):
        callback.on_fit_start(SimpleNamespace(strategy=strategy), example.Sectors())  # type: ignore[arg-type]


@pytest.mark.alone
@pytest.mark.parametrize("block", [block for block in page_blocks("integrations") if "lightning" in block])
def test_the_page_s_python_works(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    space: dict[str, Any] = {"nn": nn, "torch": torch, "LightningModule": LightningModule, "loader": data(8)}
    exec(block, space | {"seed_everything": seed_everything, "Trainer": partial(Trainer, **quiet)})
    assert (tmp_path / "runs/mine/group-0/checkpoints/epoch=2-step=18.ckpt").exists()


@pytest.fixture
def two(request: pytest.FixtureRequest, world: MPI.Intracomm) -> Iterator[Groups]:
    """Yield one group of two ranks, or two groups of one, with Horovod."""
    if world.size != 2:
        pytest.skip("ranks: two make a group of two or two groups")
    yield Groups.from_world(request.param)
    hvd.shutdown()


@pytest.mark.parametrize("two", [1], indirect=True)
def test_the_group_reduces(two: Groups) -> None:
    strategy = HorovodStrategy(two)
    mine = torch.tensor([two.rank, 3.0])
    for name, expected in (("mean", [0.5, 3]), ("sum", [1, 6]), ("max", [1, 3]), ("min", [0, 3])):
        assert strategy.reduce(mine, reduce_op=name).tolist() == expected
    assert strategy.reduce(torch.tensor(two.rank), reduce_op="mean") == 0.5
    assert strategy.reduce(mine, reduce_op=ReduceOp.SUM).tolist() == [1, 6]
    assert strategy.reduce_boolean_decision(two.rank == 0, all=False)
    assert not strategy.reduce_boolean_decision(two.rank == 0)
    assert strategy.all_gather(mine).tolist() == [[0, 3], [1, 3]]
    assert strategy.broadcast(two.rank, src=1) == 1
    with pytest.raises(UserError, match="gathers without gradients"):
        strategy.all_gather(mine, sync_grads=True)


@pytest.mark.parametrize("two", [1], indirect=True)
def test_two_ranks_are_one_process(two: Groups, world: MPI.Intracomm, tmp_path: Path) -> None:
    """Compare Horovod's and DDP's averages, accumulated and clipped, with those of a plain Trainer."""
    folder = Path(world.bcast(str(tmp_path)))
    options = {"max_epochs": 2, "accumulate_grad_batches": 3, "gradient_clip_val": 0.1}
    torch.manual_seed(0)
    begin = example.Sectors()
    weights = []
    for strategy in (HorovodStrategy(two), "auto", GroupDDPStrategy(two)):
        module = copy.deepcopy(begin)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        module.configure_optimizers = lambda one=optimizer, other=schedule: ([one], [other])
        is_alone = strategy == "auto"
        callbacks = [CodistillationCallback(Groups.single() if is_alone else two)]
        environment = {"plugins": [Alone()]} if is_alone else {}
        run = trainer(two, folder, strategy, callbacks=callbacks, **options, **environment)
        # Each rank gets every second item: two batches of 4 are one of 8.
        run.fit(module, data(8, num_replicas=1, rank=0) if is_alone else data(4), data(8))
        weights.append(flat(module))
    torch.distributed.destroy_process_group()
    horovod, alone, ddp = weights
    torch.testing.assert_close(horovod, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(ddp, alone, atol=1e-6, rtol=0)
    assert (alone - flat(begin)).abs().max() > 1e-3


@pytest.mark.parametrize("two", [2], indirect=True)
def test_the_example_in_two_groups(
    two: Groups, world: MPI.Intracomm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(world.bcast(str(tmp_path)))
    monkeypatch.setattr(example, "Groups", SimpleNamespace(create=lambda _: two))
    run = example.main(str(folder), epochs=1)
    peers = run.lightning_module.peers
    assert peers.staleness.keys() == {1 - two.group}
    assert peers.weight == 1.0
    assert run.callback_metrics["validation_loss"] < 2.3  # ln 10 is that of a constant prediction
    one, other = world.allgather(flat(run.lightning_module))
    assert not torch.equal(one, other)
    (checkpoint,) = (folder / f"group-{two.group}/checkpoints").glob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["callbacks"]["CodistillationCallback"]["step"] == saved["global_step"] == 128
