"""A model of transformers from a local folder: it trains in two groups, resumes, and returns to transformers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hpcdistill.cli.main import main
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.metrics import read_metrics
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import load_state
from hpcdistill.tasks.registry import open_task
from small_run import Run

pytestmark = [pytest.mark.launch, pytest.mark.timeout(300)]  # two launches, which import transformers

OPTIONS = {
    "model.name": "huggingface",
    "model.pretrained": "true",
    "data.batch_size": 4,
    "data.sequence_length": 16,
    "codistill.burn_in": 2,
    "codistill.exchange_interval": 2,
    "codistill.fused_linear": "true",
    "train.average": 0.5,
    "train.validate_every": 5,
    "checkpoint.interval": 5,
}


@pytest.fixture(scope="module")
def run(mpirun: Run, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a pretrained GPT-2 in two groups, stop after 5 steps, resume up to 10; then remove its folder."""
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, n_positions=16, vocab_size=256, bos_token_id=None, eos_token_id=None
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    paths = {"model.path": folder / "model", "data.path": data, "run_dir": folder / "run"}
    (folder / "run.toml").touch()
    options = [f"--{key}={value}" for key, value in (OPTIONS | paths).items()]
    for more in (["--train.steps=5"], ["--train.steps=10", "--resume"]):
        result = mpirun(2, "-m", "hpcdistill", "train", folder / "run.toml", *options, *more)
        assert result.returncode == 0, result.stderr
    (folder / "model").rename(folder / "elsewhere")
    return folder / "run"


def test_transformers_reads_what_was_trained(run: Path, data: Path, tmp_path: Path) -> None:
    tokens = torch.randint(256, (3, 16))
    for group in (0, 1):
        _, records = read_metrics(RunDir(run).metrics(group))
        assert records[-1]["step"] == 10
        assert any(record.get("staleness") for record in records)
        output = tmp_path / str(group)
        words = [f"{run}:{group}", "--format=huggingface", f"--output={output}", "--checkpoint=last"]
        assert main(["export", *words]) == 0
        saved = SavedModel.load(RunDir(run).checkpoint(group, 10))
        mine, theirs = saved.build(open_task(data).store), AutoModelForCausalLM.from_pretrained(output).eval()
        with torch.no_grad():
            assert torch.equal(mine(tokens).logits, theirs(tokens).logits)


def test_safetensors_hold_the_average_with_tied_tensors_once(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    assert main(["export", f"{run}:0", "--format=safetensors", f"--output={output}", "--checkpoint=last"]) == 0
    state = load_state(RunDir(run).checkpoint(0, 10), "checkpoint")["state"]
    average = {name.removeprefix("module."): tensor for name, tensor in state["average"].items() if "module." in name}
    head, embedding = average.pop("lm_head.weight"), average["transformer.wte.weight"]
    assert torch.equal(head, embedding)
    torch.testing.assert_close(load_file(output), average, rtol=0, atol=0)
    assert not torch.equal(embedding, state["model"]["transformer.wte.weight"])
