"""A Hugging Face model and a `datasets` folder, codistilled by a Trainer, in two groups.

mpirun -np 4 python examples/transformers_trainer.py FOLDER runs/trainer

FOLDER holds what `Dataset.save_to_disk` has written: rows with a column "text". Each group reads its own half of them,
and leaves its model in a folder of its own.
"""

import sys

from datasets import Dataset, load_from_disk
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from hpcdistill import Groups
from hpcdistill.integrations.transformers import CodistillationArguments, CodistillationTrainer

CONTEXT = 64


def blocks(texts: list[str]) -> Dataset:
    """Return the texts as blocks of UTF-8 bytes, which are the tokens here."""
    data = "\n".join(texts).encode()
    rows = [list(data[begin : begin + CONTEXT]) for begin in range(0, len(data) - CONTEXT + 1, CONTEXT)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def main(folder: str, output: str, steps: int = 100) -> CodistillationTrainer:
    """Train, evaluate and save the model of this process's group."""
    groups = Groups.create(2)
    set_seed(groups.group)  # other weights for each group
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    texts = load_from_disk(folder, keep_in_memory=True).train_test_split(0.1, seed=0)
    args = CodistillationArguments(
        groups=groups,
        output_dir=f"{output}/group-{groups.group}",
        seed=groups.group,
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=10,
        eval_strategy="steps",
        report_to="none",
    )
    trainer = CodistillationTrainer(
        model,
        args,
        train_dataset=blocks(texts["train"].shard(groups.count, groups.group)["text"]),
        eval_dataset=blocks(texts["test"]["text"]),
        codistillation={"interval": 5, "burn_in": 20},
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
