"""Trainer of Hugging Face transformers that codistils, and its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hpcdistill.codistill.session import Codistillation
from hpcdistill.data.batches import IGNORED
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.integrations.checks import require_different, require_ranks_of_mpi
from hpcdistill.losses.codistillation import codistillation_loss

try:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import patch_environment, recursively_apply, send_to_device
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.trainer_pt_utils import nested_concat
except ModuleNotFoundError as error:
    raise UserError(
        f"hpcdistill.integrations.transformers needs {error.name}; pip install 'hpcdistill[huggingface]'"
    ) from error

REFUSED = {
    "fsdp": "a model that is split over ranks cannot be published",
    "deepspeed": "Horovod averages the gradients",
    "parallelism_config": "a model that is split over ranks cannot be published",
    "auto_find_batch_size": "one rank would begin again while the others wait for it",
}
"""Arguments that must be left out, with the reasons."""


class CodistillationArguments(TrainingArguments):
    """`TrainingArguments` for a rank of a group.

    transformers sees the group as its world: `process_index` is the rank, `world_size` the number of ranks, and only
    the leader logs and saves. No process group of torch.distributed is made, whatever the launcher. The device is that
    of the group's rank. Making the arguments is collective over the world.

    Args:
        groups: the groups.
        arguments: those of `TrainingArguments`, by name. `output_dir` and `seed` must differ between the groups.

    Raises:
        UserError: an argument does not work with groups, or does not differ between them.
    """

    def __init__(self, *, groups: Groups, **arguments: Any) -> None:
        self.groups = groups
        super().__init__(**arguments)

    def __post_init__(self) -> None:
        for name, reason in REFUSED.items():
            if value := getattr(self, name, None):
                raise UserError(f"{name} = {value!r} does not work with groups: {reason}; leave it out")
        if torch.distributed.is_torchelastic_launched():
            raise UserError("torchrun has started this process, but groups are made of MPI's ranks; use mpirun or srun")
        require_ranks_of_mpi(self.groups)
        if self.use_cpu and self.groups.device.type != "cpu":
            raise UserError(f"use_cpu = True, but the rank's device is {self.groups.device}; set CUDA_VISIBLE_DEVICES=")
        self.use_cpu = self.groups.device.type == "cpu"
        super().__post_init__()
        # Each rank reads its own share of an IterableDataset.
        self.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        require_different(self.groups, "output_dir", str(self.output_dir))
        require_different(self.groups, "seed", self.seed)

    @cached_property
    def _setup_devices(self) -> torch.device:
        """Make the group's ranks the processes of accelerate, and return the device.

        accelerate stays undistributed: it would look for launchers in the environment, and take all groups for one.
        """
        AcceleratorState._reset_state(reset_partial_state=True)
        with patch_environment(LOCAL_RANK=-1):
            state: Any = PartialState()
        state.device = self.groups.device
        state.num_processes = self.groups.size
        state.process_index = state.local_process_index = self.groups.rank
        self.distributed_state = state
        self._n_gpu = 0 if self.use_cpu else 1
        return self.groups.device

    @contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Run the block on the leader, then on the other ranks of the group. Collective over the group."""
        if not self.groups.is_leader:
            self.groups.comm.Barrier()
        yield
        if self.groups.is_leader:
            self.groups.comm.Barrier()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for `training_args.bin`, without the communicators."""
        return {name: value for name, value in vars(self).items() if name != "groups"}


class CodistillationTrainer(Trainer):
    """`Trainer` whose model codistils with those of the other groups.

    The ranks of a group train one model on shares of each batch; Horovod averages their gradients before they are
    clipped. The loss of a training step is `codistillation_loss`; the loss of an evaluation has no distillation term.
    The logs get `distill_weight`, and `staleness_g1` for each teacher, here group 1.

    All ranks of a group make the same calls. `train` ends when all groups of the job have ended it.

    Args:
        model: model whose forward returns logits, or an object that has them as `logits`.
        args: the arguments, with the groups.
        codistillation: arguments of the session by name, as `Codistillation` takes them: interval, burn_in, weight …
        temperature: temperature of the distillation term.
        shift_labels: True if the logits of a position predict the label of the next; by default, True for models that
            transformers trains so.
        options: other arguments of `Trainer`, by name.

    Raises:
        UserError: an argument does not work with groups.
    """

    def __init__(
        self,
        model: nn.Module | None,
        args: CodistillationArguments,
        *,
        codistillation: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        shift_labels: bool | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(args, CodistillationArguments):
            raise UserError(f"args is a {type(args).__name__}; pass CodistillationArguments(groups=groups, ...)")
        if (getattr(model, "tp_size", None) or 1) > 1 or getattr(
            model, "is_distributed_loading_by_transformers", False
        ):
            raise UserError("the model is split over ranks, and its parts cannot be published; load it whole")
        if options.get("compute_loss_func") is not None:
            raise UserError("compute_loss_func would replace the loss of codistillation; leave it out")
        self.groups = args.groups
        self._session = dict(codistillation or {})
        self._temperature = temperature
        self._averager: torch.optim.Optimizer | None = None
        self._distributed: nn.Module | None = None  # the student, as the gradient backend has wrapped it
        self._weight = 0.0  # of the distillation term in the last step
        self._closing = ExitStack()
        self.peers: Codistillation | None = None
        """Session of the running or last `train`."""
        super().__init__(model, args, **options)
        # The loss is computed here, so it takes the number of labels in all micro-batches, whatever the model takes.
        self.model_accepts_loss_kwargs = True
        # Trainer counts the labels by it, too.
        self._loss_shifts_labels = _shifts_labels(self._student) if shift_labels is None else shift_labels
        self.add_callback(_SessionSteps(self))

    def train(self, *args: Any, **options: Any) -> Any:
        """See `Trainer`."""
        with self._closing:
            return super().train(*args, **options)

    def open_session(self) -> None:
        """Open the session at the step of the training. Collective over the world."""
        self.peers = self._closing.enter_context(Codistillation(self._student, self.groups, **self._session))
        self.peers.load_state_dict(self.peers.state_dict() | {"step": self.state.global_step})

    def create_accelerator_and_postprocess(self) -> None:
        """See `Trainer`; the accelerator gathers from the ranks of the group."""
        super().create_accelerator_and_postprocess()
        self.accelerator.gather = self._gather

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """See `Trainer`; a second optimizer, which never steps, averages the gradients for the first one."""
        is_new = self._averager is None or self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new:
            self._distributed, self._averager = self.groups.distribute(
                self._student, optimizer, self.args.gradient_accumulation_steps
            )
        return optimizer

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        """See `Trainer`; after the last micro-batch, the gradients are those of the group."""
        loss: Tensor = super().training_step(*args, **options)
        if self.accelerator.sync_gradients:
            assert self._averager is not None
            with self.groups.averaged_gradients(self._averager):
                pass
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a micro-batch, with the distillation term in training, and the outputs if asked for.

        Args:
            model: the student, as the accelerator has prepared it.
            inputs: arguments of the model by name, and `labels`; -100 is the label of positions without a loss.
            return_outputs: return the loss and the outputs.
            num_items_in_batch: number of labels in all micro-batches of the step; None for the mean of this one's.
        """
        inputs = dict(inputs)
        if "labels" not in inputs:
            raise UserError(f"a batch has {sorted(inputs)}, but no 'labels'; let the data collator add them")
        labels, shifted = inputs.pop("labels"), inputs.pop("shift_labels", None)
        if shifted is not None:
            labels = shifted
        elif self._loss_shifts_labels:
            labels = pad(labels[..., 1:], (0, 1), value=IGNORED)
        # In the evaluation peers are not asked. On a GPU they predict while the student does.
        peers = self.peers if model.training else None
        teachers = peers.predict(**inputs, target=labels) if peers else ()
        self._weight = peers.weight if peers else 0.0
        is_wrapped = model.training and self._distributed is not None and model is self._student
        outputs = (self._distributed if is_wrapped else model)(**inputs)  # type: ignore[misc]
        if num_items_in_batch is not None:
            # By a rank's mean share of all labels: so the mean of the ranks' losses is the mean over all labels.
            shares = self.args.world_size if self.args.average_tokens_across_devices else 1
            num_items_in_batch = torch.as_tensor(num_items_in_batch, device=labels.device).clamp(min=1) / shares
        loss = codistillation_loss(
            getattr(outputs, "logits", outputs),
            labels,
            teachers,
            distill_weight=self._weight,
            temperature=self._temperature,
            label_smoothing=self.args.label_smoothing_factor,
            normalizer=num_items_in_batch,
        )
        if return_outputs:
            return loss, outputs if isinstance(outputs, dict) else {"logits": outputs}
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See `Trainer`; in checkpoints, no rank goes on before the leader has written the model."""
        super().save_model(output_dir, _internal_call)
        if _internal_call:
            self.groups.comm.Barrier()

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """See `Trainer`; with a training loss, which becomes the mean over the group, collective over the group."""
        for name in ("loss", "train_loss"):  # never both
            if name in logs:
                logs[name] = self.groups.sum(logs[name]) / self.groups.size
        if "loss" in logs and self.peers is not None:
            logs["distill_weight"] = self._weight
            logs.update({f"staleness_g{peer}": staleness for peer, staleness in self.peers.staleness.items()})
        super().log(logs, *args, **options)

    @property
    def _student(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    def _gather(self, value: Any) -> Any:
        """Return the tensors of all ranks of the group, concatenated along the first dimension, on this rank's device.

        Shorter ones are filled up along the second dimension with the label of positions without a loss.
        """
        parts = self.groups.comm.allgather(recursively_apply(lambda tensor: torch.atleast_1d(tensor).cpu(), value))
        return send_to_device(reduce(nested_concat, parts), self.args.device)


class _SessionSteps(TrainerCallback):
    """Callback that opens the session of a trainer, and counts its steps."""

    def __init__(self, trainer: CodistillationTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.open_session()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self._trainer.peers is not None
        self._trainer.peers.step(state.global_step)


def _shifts_labels(model: Any) -> bool:
    """Return whether transformers trains a model to predict the label of the next position."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside a model of peft
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return False
    is_causal = type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return is_causal or LOSS_MAPPING.get(getattr(base, "loss_type", "")) is ForCausalLMLoss
