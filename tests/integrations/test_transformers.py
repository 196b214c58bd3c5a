"""The Trainer that codistils, alone and in groups."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import horovod.torch as hvd
import pytest
import torch
import transformers_trainer as example
from datasets import Dataset
from mpi4py import MPI
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hpcdistill import Groups
from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.errors import UserError
from hpcdistill.integrations.transformers import CodistillationArguments, CodistillationTrainer
from repository import page_blocks

BURN_IN = 20  # of the example
NO_DROPOUT = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
SMALL = {"vocab_size": 17, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0}


def gpt2(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**SMALL, **TOKENS, **NO_DROPOUT))


def ragged(rows: int) -> Dataset:
    """Return rows of eight tokens; the first 0 to 6 labels of each are ignored."""
    torch.manual_seed(7)
    tokens = torch.randint(17, (rows, 8)).tolist()
    labels = [[-100] * (number % 7) + row[number % 7 :] for number, row in enumerate(tokens)]
    return Dataset.from_dict({"input_ids": tokens, "labels": labels})


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CodistillationTrainer]:
    """Return `make(model, session, temperature, **arguments)`, which makes the trainer of a process without peers."""

    def make(model: torch.nn.Module, session: Any = None, temperature: float = 1.0, **arguments: Any) -> Any:
        plain = {"output_dir": str(tmp_path), "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        args = CodistillationArguments(groups=Groups.single(), **(plain | arguments))
        options = {"codistillation": session, "temperature": temperature}
        return CodistillationTrainer(model, args, train_dataset=ragged(24), eval_dataset=ragged(8), **options)

    return make


def reference(model: torch.nn.Module, teacher: torch.nn.Module, rows: Dataset, temperature: float) -> torch.Tensor:
    """Return the loss of all rows by the functions of torch."""
    tokens, labels = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])[:, 1:]
    kept = labels != -100
    logits, taught = (each(input_ids=tokens).logits[:, :-1][kept] for each in (model, teacher))
    soft, target = (logits / temperature).log_softmax(-1), (taught.detach() / temperature).softmax(-1)
    return cross_entropy(logits, labels[kept]) + 0.5 * temperature**2 * kl_div(soft, target, reduction="batchmean")


@pytest.mark.alone
def test_the_loss_of_micro_batches_is_that_of_the_whole_batch(make: Callable[..., CodistillationTrainer]) -> None:
    """Compare an SGD step of 4 micro-batches, whose numbers of labels differ, with the gradient of all labels."""
    model, teacher = gpt2(0), gpt2(1)
    expected = copy.deepcopy(model)
    loss = reference(expected, teacher, ragged(24), temperature=2.0)
    loss.backward()
    trainer = make(
        model,
        {"teachers": FixedTeachers([teacher.eval()]), "burn_in": 0, "weight": 0.5},
        temperature=2.0,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=4,
        max_steps=1,
        max_grad_norm=0,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        logging_steps=1,
    )
    result = trainer.train()
    assert result.training_loss == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter - parameter.grad, atol=1e-5, rtol=0)
    assert trainer.state.log_history[0]["distill_weight"] == 0.5


@pytest.mark.alone
def test_the_evaluation_has_no_distillation_term(make: Callable[..., CodistillationTrainer]) -> None:
    model = gpt2(0)
    trainer = make(model, {"teachers": FixedTeachers([gpt2(1)]), "burn_in": 0}, max_steps=1)
    trainer.train()
    rows = ragged(8)
    loss = model.eval()(input_ids=torch.tensor(rows["input_ids"]), labels=torch.tensor(rows["labels"])).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.alone
def test_a_resumed_run_continues_the_session(make: Callable[..., CodistillationTrainer], tmp_path: Path) -> None:
    arguments = {
        "max_steps": 6,
        "per_device_train_batch_size": 6,
        "save_strategy": "steps",
        "save_steps": 4,
        "logging_steps": 1,
    }
    session = {"burn_in": 4, "ramp": 9}
    whole, resumed = gpt2(0), gpt2(1)
    make(whole, session, **arguments).train()
    trainer = make(resumed, session, **arguments)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert trainer.peers is not None
    assert trainer.peers.state_dict()["step"] == 6
    assert [log["distill_weight"] for log in trainer.state.log_history if log["step"] > 4 and "loss" in log] == [
        pytest.approx(share) for share in (0.1, 0.2)
    ]


@pytest.mark.alone
def test_a_replica_of_a_model_in_mixed_precision_predicts_with_its_own_weights(
    make: Callable[..., CodistillationTrainer],
) -> None:
    trainer = make(gpt2(0), max_steps=1, bf16=True, use_cpu=True)
    trainer.train()
    replica = copy.deepcopy(trainer.model).requires_grad_(False)
    for parameter in replica.parameters():
        parameter.zero_()
    tokens = torch.tensor(ragged(2)["input_ids"])
    assert not replica(input_ids=tokens).logits.any()
    expected = trainer.model(input_ids=tokens).logits
    replica.load_state_dict(trainer.model.state_dict())
    assert torch.equal(replica(input_ids=tokens).logits, expected)
    full = gpt2(0)
    full.load_state_dict(trainer.model.state_dict())
    assert not torch.equal(full(input_ids=tokens).logits, expected)


@pytest.mark.alone
def test_classes_of_images_are_not_shifted(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=4, patch_size=2, num_labels=5))
    rows = {"pixel_values": torch.randn(6, 3, 4, 4).tolist(), "labels": [0, 1, 2, 3, 4, 0]}
    args = CodistillationArguments(groups=Groups.single(), output_dir=str(tmp_path), report_to="none")
    trainer = CodistillationTrainer(model, args, eval_dataset=Dataset.from_dict(rows))
    expected = model(torch.tensor(rows["pixel_values"]), labels=torch.tensor(rows["labels"])).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fsdp": "full_shard"}, "fsdp = .* does not work with groups: a model that is split over ranks"),
        ({"deepspeed": "zero.json"}, "deepspeed = 'zero.json' does not work with groups: Horovod averages"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size = True does not work"),
    ],
)
def test_arguments_that_do_not_work_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        CodistillationArguments(groups=Groups.single(), output_dir=str(tmp_path), **arguments)


@pytest.mark.alone
def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(UserError, match="torchrun has started this process"):
        CodistillationArguments(groups=Groups.single(), output_dir=str(tmp_path))


@pytest.mark.alone
def test_other_arguments_are_refused(make: Callable[..., CodistillationTrainer], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="args is a TrainingArguments; pass CodistillationArguments"):
        CodistillationTrainer(gpt2(0), TrainingArguments(output_dir=str(tmp_path)))  # type: ignore[arg-type]
    args = CodistillationArguments(groups=Groups.single(), output_dir=str(tmp_path))
    with pytest.raises(UserError, match="compute_loss_func would replace the loss of codistillation"):
        CodistillationTrainer(gpt2(0), args, compute_loss_func=print)
    split = gpt2(0)
    split._tp_size = 2
    with pytest.raises(UserError, match="the model is split over ranks, and its parts cannot be published"):
        make(split)
    trainer = make(gpt2(0))
    with pytest.raises(UserError, match=r"a batch has \['input_ids'\], but no 'labels'"):
        trainer.compute_loss(trainer.model, {"input_ids": torch.zeros(1, 8, dtype=torch.int64)})


@pytest.mark.alone
@pytest.mark.parametrize("launcher", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "LOCAL_RANK", "WORLD_SIZE"])
def test_launchers_are_not_seen(launcher: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(launcher, "4")
    args = CodistillationArguments(groups=Groups.single(), output_dir=str(tmp_path), use_cpu=True)
    assert (args.world_size, args.process_index, args.device) == (1, 0, torch.device("cpu"))
    assert not torch.distributed.is_initialized()


class Numbers(IterableDataset[dict[str, int]]):
    """Rows 0 to 15."""

    def __iter__(self) -> Iterator[dict[str, int]]:
        return iter([{"labels": number} for number in range(16)])


@pytest.mark.alone
def test_ranks_share_an_iterable_dataset(tmp_path: Path) -> None:
    """Take the place of rank 1 of 2."""
    comm: Any = SimpleNamespace(rank=1, size=2)
    groups = Groups(Groups.single().world, comm, (1,), torch.device("cpu"), count=1)
    plain = {"per_device_train_batch_size": 4, "max_steps": 2, "remove_unused_columns": False, "report_to": "none"}
    args = CodistillationArguments(groups=groups, output_dir=str(tmp_path), **plain)
    assert not args.should_save
    loader = CodistillationTrainer(gpt2(0), args, train_dataset=Numbers()).get_train_dataloader()
    assert [batch["labels"].tolist() for batch in loader] == [[4, 5, 6, 7], [12, 13, 14, 15]]


@pytest.mark.alone
def test_the_page_s_python_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in page_blocks("integrations") if "transformers" in block)
    assert block.count("max_steps=10_000") == 1
    space = {"AutoModelForCausalLM": AutoModelForCausalLM, "set_seed": set_seed, "dataset": ragged(24)}
    exec(block.replace("10_000", "1"), space | {"config": GPT2Config(**SMALL, **TOKENS)})
    assert (tmp_path / "runs/mine/group-0/model.safetensors").exists()


@pytest.mark.alone
def test_the_example_without_a_launcher(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["Whether 'tis nobler in the mind to suffer"] * 40}).save_to_disk(tmp_path / "data")
    trainer = example.main(str(tmp_path / "data"), str(tmp_path / "out"), steps=1)
    assert trainer.groups.count == 1
    row = trainer.train_dataset[0]
    assert bytes(row["input_ids"]).startswith(b"Whether 'tis nobler in the mind to suffer\nWhether")
    assert row["labels"] == row["input_ids"]
    assert (tmp_path / "out/group-0/model.safetensors").exists()


class AtBurnIn(TrainerCallback):
    """Callback that keeps the weights at the end of the burn-in, and may end the training there."""

    def __init__(self, stops: bool = False) -> None:
        self._stops = stops
        self.weights = torch.empty(0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == BURN_IN:
            self.weights = flat(model)
            control.should_training_stop = self._stops


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("count", "gradients"), [(1, "horovod"), (1, "torch"), (2, "horovod")])
def test_the_example_in_groups(
    count: int, gradients: str, world: MPI.Intracomm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train a group of two ranks, then two groups of one; until the burn-in has ended a plain Trainer does the same."""
    if world.size != 2:
        pytest.skip("ranks: two make a group of two or two groups")
    folder = Path(world.bcast(str(tmp_path)))
    groups = Groups.from_world(count, gradients=gradients)
    callback = AtBurnIn()

    def make(model: torch.nn.Module, args: CodistillationArguments, **options: Any) -> CodistillationTrainer:
        make.begin = copy.deepcopy(model)
        args.set_optimizer("sgd", learning_rate=0.1)  # Adam would enlarge rounding errors
        return CodistillationTrainer(model, args, callbacks=[callback], **options)

    monkeypatch.setattr(example, "Groups", SimpleNamespace(create=lambda _: groups))
    monkeypatch.setattr(example, "blocks", lambda texts: ragged(64))
    monkeypatch.setattr(example, "GPT2Config", lambda **sizes: GPT2Config(**sizes, **NO_DROPOUT))
    monkeypatch.setattr(example, "CodistillationTrainer", make)
    if world.rank == 0:
        Dataset.from_dict({"text": ["Whether 'tis nobler"] * 20}).save_to_disk(folder / "data")
    world.Barrier()
    trainer = example.main(str(folder / "data"), str(folder / "out"), steps=30)
    evaluated, log = trainer.evaluate()["eval_loss"], trainer.state.log_history
    predicted = trainer.predict(ragged(70)).predictions  # 70 rows are no whole number of batches
    hvd.shutdown()
    assert torch.distributed.is_initialized() == (gradients == "torch")
    if gradients == "torch":
        torch.distributed.destroy_process_group()

    weights = world.allgather(flat(trainer.model))
    assert torch.equal(*weights) == (count == 1)
    teachers = [entry["distill_weight"] for entry in log if f"staleness_g{1 - groups.group}" in entry]
    assert teachers[-1:] == [1.0] * (count - 1)
    alone = TrainingArguments(
        output_dir=str(folder / "alone"),
        seed=groups.group,
        max_steps=30,
        per_device_train_batch_size=4 * groups.size,
        per_device_eval_batch_size=8 * groups.size,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=0.1,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )
    at_burn_in = AtBurnIn(stops=True)
    data = {"train_dataset": trainer.train_dataset, "eval_dataset": trainer.eval_dataset}
    reference = Trainer(make.begin, alone, callbacks=[at_burn_in], **data)
    reference._loss_shifts_labels = True  # it does not know that it counts labels for GPT2LMHeadModel
    reference.train()
    torch.testing.assert_close(callback.weights, at_burn_in.weights, atol=1e-6, rtol=0)
    reference.model.load_state_dict(trainer.model.state_dict())
    assert evaluated == pytest.approx(reference.evaluate()["eval_loss"], abs=1e-6)
    assert predicted == pytest.approx(reference.predict(ragged(70)).predictions, abs=1e-5)

    saved = folder / f"out/group-{groups.group}"
    assert torch.equal(flat(GPT2LMHeadModel.from_pretrained(saved)), weights[world.rank])
    names = {path.name for path in (saved / "checkpoint-30").iterdir()}
    assert {"optimizer.pt", f"rng_state_{groups.rank}.pth" if count == 1 else "rng_state.pth"} <= names
