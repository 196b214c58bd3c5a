"""Both gradient backends train alike, and the one of torch does without Horovod."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from hpcdistill.storage.checkpoints import KIND
from hpcdistill.storage.state_file import load_state
from small_run import ALONE, SMALL
from without_modules import SCRIPT

pytestmark = pytest.mark.launch

Run = Callable[..., CompletedProcess[str]]

ALIKE = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from hpcdistill import Groups
from hpcdistill.models.registry import config_class
from hpcdistill.training.recorder import Recorder
from hpcdistill.training.setup import build_parts, open_session
from hpcdistill.training.step import train_step

DATA, FOLDER = map(Path, sys.argv[1:])


def train(backend, steps, fused_linear=False, **settings):
    config = config_class()(
        run_dir=FOLDER / f"{GROUPS[backend].world.rank}",
        groups=2,
        data={"path": DATA, "batch_size": 16, "sequence_length": 8},
        model={"name": "lstm", "hidden": 8, "layers": 1, "dropout": 0.1},
        optimizer={"name": "sgd", "lr": 0.5, "args": {"momentum": 0.5}},
        codistill={"teachers": "unigram", "burn_in": 2, "fused_linear": fused_linear},
        train=settings,
    )
    groups = GROUPS[backend]
    parts = build_parts(config, groups, trust=False)
    start = flat(parts.model)
    with open_session(config, groups, parts) as peers, Recorder(config, groups, parts, {}, 0) as recorder:
        for _ in range(steps):
            train_step(config, groups, parts, next(parts.batches), peers, recorder)
            peers.step()
    assert (flat(parts.model).float() - start.float()).abs().max() > 0.05
    return parts.model.state_dict()


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


GROUPS = {"horovod": Groups.create(2), "torch": Groups.from_world(2, gradients="torch")}
for steps, settings in (
    (100, {}),
    (20, {"fused_linear": True, "precision": "bf16"}),
    (20, {"accumulate": 2, "clip_norm": 0.1}),
    (20, {"accumulate": 2, "precision": "bf16-weights"}),
):
    one, other = (train(backend, steps, **settings) for backend in GROUPS)
    torch.testing.assert_close(dict(one), dict(other), rtol=0, atol=1e-6)
print("alike", flush=True)
"""


def test_weights_after_100_steps_are_those_of_horovod(mpirun: Run, data: Path, tmp_path: Path) -> None:
    """Check two groups of two ranks: plain steps, autocast with a fused head, clipped micro-batches, bfloat16."""
    result = mpirun(4, "-W", "error", "-c", ALIKE, data, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("alike") == 4


@pytest.fixture
def train_without_horovod(mpirun: Run, data: Path, tmp_path: Path) -> Run:
    """Return `train(ranks, *options)`, which trains where `import horovod` fails."""
    config = tmp_path / "small.toml"
    config.write_text(f'run_dir = "{tmp_path / "run"}"\n{SMALL}')
    return lambda ranks, *options: mpirun(
        ranks, "-W", "error", "-c", SCRIPT, "horovod", "train", config, f"--data.path={data}", *options
    )


def test_two_groups_of_two_ranks_train_without_horovod(train_without_horovod: Run, tmp_path: Path) -> None:
    """Train them as peers; the names in checkpoints are the student's own."""
    result = train_without_horovod(4, "--gradients=torch", "--train.accumulate=2", "--train.average=0.9")
    assert result.returncode == 0, result.stderr
    for group in (0, 1):
        checkpoint = tmp_path / "run" / "checkpoints" / f"g{group}-step0000000040.h5"
        assert "head.weight" in load_state(checkpoint, KIND)["state"]["model"]


def test_without_horovod_the_default_names_the_remedy(train_without_horovod: Run) -> None:
    result = train_without_horovod(2, *ALONE)
    assert result.returncode == 2
    assert "groups of ranks need horovod, which is not installed; run make setup" in result.stderr
    assert "or use --gradients=torch" in result.stderr
    assert "Traceback" not in result.stderr


ONE_RAISES = """
import torch
from hpcdistill import Groups

groups = Groups.create(1, gradients="torch")
model = torch.nn.Linear(2, 2)
model, optimizer = groups.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1))
for step in range(10**6):
    if groups.rank == 1 and step == 5:
        raise RuntimeError("lightning")
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_an_exception_on_one_rank_ends_all(mpirun: Run) -> None:
    result = mpirun(2, "-c", ONE_RAISES)
    assert result.returncode != 0
    assert "[world rank 1 of 2] Traceback" in result.stderr
    assert "RuntimeError: lightning" in result.stderr
