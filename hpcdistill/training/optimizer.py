"""Optimizers by their names."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hpcdistill.config.optimizer import OptimizerConfig
from hpcdistill.discovery import import_named
from hpcdistill.errors import UserError

CLASSES: dict[str, type[Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Classes that update all parameters on a GPU by one kernel if asked to."""


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """Return the configured optimizer of all parameters of `model`.

    Weight decay applies to parameters with two or more dimensions: it is meant for matrices, not for biases and the
    scales of norms.

    Raises:
        UserError: the class cannot be imported, is no optimizer of torch, or refuses its arguments.
    """
    class_ = optimizer_class(config)
    arguments = _arguments(config, class_, any(parameter.is_cuda for parameter in model.parameters()))

    def __init__(self: Optimizer, params: Iterable[dict[str, Any]]) -> None:  # noqa: N807
        class_.__init__(self, params, **arguments)

    # Horovod makes the optimizer a second time, from its class and the parameter groups alone.
    bound = type(class_.__name__, (class_,), {"__init__": __init__})
    try:
        optimizer: Optimizer = bound(_parameter_groups(model, "weight_decay" in arguments))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer.name = {config.name!r} with optimizer.args = {config.args}: {error}") from None
    return optimizer


def optimizer_class(config: OptimizerConfig) -> type[Optimizer]:
    """Return the class that `optimizer.name` means.

    Raises:
        UserError: it cannot be imported, is no optimizer of torch, or needs a closure.
    """
    if config.name in CLASSES:
        return CLASSES[config.name]
    found = import_named(config.name, "optimizer.name")
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UserError(
            f"optimizer.name = {config.name!r} is no subclass of torch.optim.Optimizer; name one, such as "
            "torch.optim:Adagrad"
        )
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"optimizer.name = {config.name!r} computes the loss several times in a step, which this program does not "
            "do; choose an optimizer whose step() needs no closure"
        )
    return found


def load_optimizer_state(config: OptimizerConfig, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a result of `optimizer.state_dict()`, but keep the configured arguments.

    Of the parameter groups only those values are loaded that are no arguments of the optimizer's class, as the
    counters of some optimizers: a resumed run obeys its configuration, not that of the run before.

    Raises:
        ValueError: the state is of another model.
    """
    arguments = {"lr", "weight_decay", *config.args, *_names(optimizer_class(config))}
    current = optimizer.state_dict()["param_groups"]
    groups = [
        mine | {name: value for name, value in saved.items() if name not in arguments}
        for saved, mine in zip(state["param_groups"], current, strict=True)
    ]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def _parameter_groups(model: nn.Module, decays: bool) -> list[dict[str, Any]]:
    """Return the parameters in groups with and without weight decay; in one group if the class has none."""
    parameters = list(model.parameters())
    if not decays:
        return [{"params": parameters}]
    matrices = [each for each in parameters if each.ndim >= 2]
    others = [each for each in parameters if each.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _arguments(config: OptimizerConfig, class_: type[Optimizer], on_gpu: bool) -> dict[str, Any]:
    """Return the arguments of the class beside the parameters.

    Raises:
        UserError: the class does not take one of them.
    """
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in config.args.items()}
    names = _names(class_)
    if config.weight_decay or "weight_decay" in names:
        arguments["weight_decay"] = config.weight_decay
    if class_ in FUSED and on_gpu and not {"fused", "foreach"} & arguments.keys():
        arguments["fused"] = True
    takes_any = any(each.kind is each.VAR_KEYWORD for each in inspect.signature(class_).parameters.values())
    unknown = [] if takes_any else [name for name in arguments if name not in names]
    if unknown:
        raise UserError(
            f"optimizer.name = {config.name!r} does not take {', '.join(unknown)}; it takes "
            f"{', '.join(name for name in names if name != 'params')}"
        )
    return {"lr": config.lr, **arguments}


def _names(class_: type[Optimizer]) -> list[str]:
    """Return the names of the parameters of a class's constructor."""
    return [
        name
        for name, each in inspect.signature(class_).parameters.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
