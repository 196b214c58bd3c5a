"""The training loop."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hpcdistill.config import Config, OptimizerConfig
from hpcdistill.data.batches import Batch, Batches, validation_batches
from hpcdistill.data.store import TokenStore
from hpcdistill.events import require_tensorboard
from hpcdistill.exchange import open_exchange
from hpcdistill.exchange.topology import Topology
from hpcdistill.groups import Groups
from hpcdistill.loss import codistillation_loss
from hpcdistill.models import build_model
from hpcdistill.recorder import Recorder
from hpcdistill.restart import Restart
from hpcdistill.run_dir import make_run_dir
from hpcdistill.stop import StopRequest
from hpcdistill.teachers import Teachers


def train(config: Config, resume: str, stop: StopRequest) -> bool:
    """Train one model in each group, the groups teaching each other. Collective over the world, once per process.

    Args:
        config: the run.
        resume: "no" begins a new run; "yes" goes on from each group's newest usable checkpoint, or begins where
            there is none; "strict" accepts only the newest.
        stop: what ends the run before its last step, with a checkpoint.

    Returns:
        Whether this group has made its last step.

    Raises:
        UserError: bad input, or a loss that is not finite.
    """
    groups = Groups.create(config.groups, config.group_sizes, config.group)
    groups.from_leader(lambda: make_run_dir(config.run_dir))
    if config.train.tensorboard:
        groups.from_leader(require_tensorboard)
    store = TokenStore(config.data.path)
    groups.require_same(f"data.path = {config.data.path}", store.identity)
    batches = Batches(store, config.data, groups.group, groups.count, groups.rank, groups.size, config.seed)
    validation_data = validation_batches(store, config.data, groups.rank, groups.size)
    torch.manual_seed(config.seed * groups.count + groups.group)  # groups begin apart, ranks of a group together
    model = build_model(config.model, store.vocabulary).to(groups.device)
    torch.manual_seed(torch.initial_seed() * groups.size + groups.rank)  # dropout: each rank its own
    optimizer = groups.distribute(build_optimizer(config.optimizer, model), model)
    restart = Restart(config, groups, model, optimizer, batches)
    step = restart.resume(resume)
    groups.broadcast(model)
    topology = Topology(config.exchange.topology, groups.group, groups.count, config.exchange.degree, config.seed)

    with (
        open_exchange(config, groups, model, topology) as exchange,
        Recorder(config, groups, _facts(config, groups, store, model), step) as recorder,
        restart,
    ):
        teachers = Teachers(config.codistill, model, exchange, topology, groups)
        stopping = False
        while step < config.train.steps and not stopping:
            inputs, targets = (tokens.to(groups.device) for tokens in next(batches))
            with recorder.time("teachers"):
                teachers.predict(inputs, targets)
            loss = codistillation_loss(
                model(inputs),
                targets,
                teachers.logits(),
                weight=config.codistill.weight,
                temperature=config.codistill.temperature,
            )
            loss.backward()
            optimizer.step()  # averages the gradients inside the group first
            optimizer.zero_grad()
            step += 1
            with recorder.time("exchange"):
                teachers.advance(step)
            stopping = stop.agreed(groups.comm)
            finished = step == config.train.steps
            saves = stopping or finished or step % config.checkpoint.interval == 0
            recorder.stepped(step, loss, teachers, exchange.ledger, up_to_here=saves)
            if finished or step % config.train.validate_every == 0:
                validation = validation_loss(model, validation_data, groups)
                recorder.validated(step, validation)
                restart.validated(validation)
            if saves:
                with recorder.checkpoint(step):
                    restart.save(step, last=stopping or finished)
    return step == config.train.steps


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer of all parameters of `model`."""
    if config.name == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr)
    return torch.optim.SGD(model.parameters(), lr=config.lr)


@torch.no_grad()
def validation_loss(model: nn.Module, batches: list[Batch], groups: Groups) -> float:
    """Mean cross-entropy in nats per token over the group's validation batches. Collective over the group."""
    model.eval()
    total, count = 0.0, 0
    for inputs, targets in batches:
        logits = model(inputs.to(groups.device)).flatten(0, -2)  # [batch * time, V]
        labels = targets.to(groups.device).flatten()
        total += functional.cross_entropy(logits, labels, reduction="sum").item()
        count += labels.numel()
    model.train()
    return groups.sum(total) / groups.sum(count)


def _facts(config: Config, groups: Groups, store: TokenStore, model: nn.Module) -> dict[str, object]:
    """What a reader of the metrics has to know about the run."""
    return {
        "config": config.model_dump(mode="json"),
        "group": groups.group,
        "ranks_per_group": groups.size,
        "device": str(groups.device),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data_source": store.source,
        "training_tokens": store.size("train"),
    }
