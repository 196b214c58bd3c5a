"""Steps of two groups of two ranks: micro-batches, clipping, and weights in bfloat16."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.launch

STEPS = """
import sys
from pathlib import Path
import torch
from hpcdistill import Groups
from hpcdistill.data.batches import Batch
from hpcdistill.models.registry import config_class
from hpcdistill.training.recorder import Recorder
from hpcdistill.training.setup import build_parts, open_session
from hpcdistill.training.step import train_step

DATA, FOLDER = map(Path, sys.argv[1:])
ALL, ALONE = Groups.create(2), Groups.single()


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train(groups, state=None, batches=None, **settings):
    config = config_class()(
        run_dir=FOLDER / f"{ALL.world.rank}",
        groups=groups.count,
        data={"path": DATA, "batch_size": 16, "sequence_length": 8},
        model={"name": "lstm", "hidden": 8, "layers": 1},
        optimizer={"name": "sgd", "lr": 0.5},
        codistill={"teachers": "unigram", "burn_in": 2},
        train=settings,
    )
    parts = build_parts(config, groups, trust=False)
    if state:
        parts.model.load_state_dict(state)
    start = {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}
    batches = batches or [next(parts.batches) for _ in range(6)]
    with open_session(config, groups, parts) as peers, Recorder(config, groups, parts, {}, 0) as recorder:
        results = []
        for batch in batches:
            results.append(train_step(config, groups, parts, batch, peers, recorder))
            peers.step()
    losses, norms = zip(*results)
    losses = groups.sum(torch.stack(losses).detach().numpy()) / groups.size
    return start, batches, flat(parts.model), torch.from_numpy(losses), norms


def equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def of_the_group(batch):
    inputs, targets = zip(*ALL.comm.allgather((batch.inputs[0], batch.target)))
    return Batch((torch.cat(inputs),), torch.cat(targets))


start, batches, weights, losses, norms = train(ALL)
assert set(norms) == {None}
assert (weights - torch.cat([tensor.flatten() for tensor in start.values()])).abs().max() > 0.01
_, _, split_weights, split_losses, _ = train(ALL, accumulate=4)
equal(split_weights, weights)
equal(split_losses, losses)

_, _, clipped, clipped_losses, norms = train(ALL, accumulate=2, clip_norm=0.1)
assert min(norms) > 0.2 and (clipped - weights).abs().max() > 0.01
_, _, alone, alone_losses, alone_norms = train(ALONE, start, list(map(of_the_group, batches)), clip_norm=0.1)
equal(clipped, alone)
equal(clipped_losses, alone_losses)
equal(torch.stack(norms), torch.stack(alone_norms))

_, _, rounded, rounded_losses, _ = train(ALL, precision="bf16-weights", accumulate=2)
assert rounded.dtype == torch.bfloat16
torch.testing.assert_close(rounded_losses, losses, rtol=2**-7, atol=0)  # roundings of 2**-8, of weights and logits
mine, other = ALL.comm.allgather(rounded.float().numpy())
assert (mine == other).all()
print("equal", flush=True)
"""


def test_steps_of_a_group_are_those_of_one_process(
    mpirun: Callable[..., CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    """Check micro-batches, clipping after averaging, and that ranks with weights in bfloat16 stay together."""
    result = mpirun(4, "-W", "error", "-c", STEPS, data, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("equal") == 4
