"""Exported models: other programs load the same weights, without the run's data and code."""

import json
import os
import resource
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import saved_models
from hpcdistill.data.tokens.store import StoredTokenizer, write_tokens
from hpcdistill.errors import UserError
from hpcdistill.models.export import SUFFIXES, export
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.state_file import load_state, save_state
from hpcdistill.tasks.registry import open_task

pytestmark = pytest.mark.alone

FACTORY = """
from transformers import GPT2Config, GPT2LMHeadModel

def make(store):
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=16, vocab_size=store.vocabulary,
                                      bos_token_id=None, eos_token_id=None, use_cache=False))
"""
TOKENS = torch.arange(10).view(2, 5)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a checkpoint of a GPT-2, whose head is its embedding, made by a factory; then remove data and factory."""
    data = saved_models.text(tmp_path / "data.h5")
    (tmp_path / "their_gpt.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    path = saved_models.save(tmp_path / "run", data, model={"name": "factory", "factory": "their_gpt:make"})
    data.unlink()
    (tmp_path / "their_gpt.py").unlink()
    del sys.modules["their_gpt"]
    return path


def state_of(checkpoint: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_state(checkpoint, "checkpoint")["state"]["model"]
    return state


def exported(checkpoint: Path, format: str) -> Path:
    output = checkpoint.parent.parent / f"out{SUFFIXES[format]}"
    export(SavedModel.load(checkpoint), format, output)
    return output


def expected_logits(checkpoint: Path) -> Tensor:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=16, vocab_size=256)).eval()
    model.load_state_dict(state_of(checkpoint))
    with torch.no_grad():
        return model(TOKENS).logits


def test_torch(checkpoint: Path) -> None:
    loaded = torch.load(exported(checkpoint, "torch"), weights_only=True)
    torch.testing.assert_close(loaded, state_of(checkpoint), rtol=0, atol=0)
    assert loaded["lm_head.weight"].data_ptr() == loaded["transformer.wte.weight"].data_ptr()


def test_safetensors(checkpoint: Path) -> None:
    output = exported(checkpoint, "safetensors")
    state = state_of(checkpoint)
    del state["lm_head.weight"]
    torch.testing.assert_close(load_file(output), state, rtol=0, atol=0)
    with safe_open(output, "pt") as file:
        facts = file.metadata()
    assert (facts["format"], facts["hpcdistill.step"], facts["lm_head.weight"]) == ("pt", "1", "transformer.wte.weight")
    assert json.loads(facts["hpcdistill.config"])["model"]["factory"] == "their_gpt:make"
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=16, vocab_size=256)).eval()
    load_model(model, output)  # by the means of safetensors for tied tensors
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected_logits(checkpoint))


def test_huggingface(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = exported(checkpoint, "huggingface")
    assert "no tokenizer is exported: " in caplog.text
    model = AutoModelForCausalLM.from_pretrained(output).eval()
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected_logits(checkpoint))
    assert type(model) is GPT2LMHeadModel
    assert model.config.use_cache  # which the factory turned off for training
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]


def test_the_tokenizer_of_the_store(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = {"<end>": 0, "to": 1, "be": 2}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<end>"))
    tokenizer.add_special_tokens(["<end>"])
    stored = StoredTokenizer(tokenizer.to_str(), "utf-8", "<end>")
    parts = [(part, np.arange(3, dtype=np.uint32), 8) for part in ("train", "validation")]
    data = SavedModel.load(checkpoint).config.data.path
    write_tokens(data, parts, "text", len(words), stored)
    loaded = AutoTokenizer.from_pretrained(exported(checkpoint, "huggingface"))
    assert (loaded("be")["input_ids"], loaded.eos_token_id) == ([2], 0)
    assert not caplog.text
    write_tokens(data, parts, "text", len(words), stored._replace(encoding="latin-1"))
    shutil.rmtree(checkpoint.parent.parent / "out")
    exported(checkpoint, "huggingface")
    assert "data.h5 are sequences of bytes" in caplog.text


@pytest.mark.parametrize("format", SUFFIXES)
def test_dtypes_are_kept(checkpoint: Path, format: str) -> None:
    content = load_state(checkpoint, "checkpoint")
    content["state"]["model"] = {name: tensor.bfloat16() for name, tensor in state_of(checkpoint).items()}
    save_state(checkpoint, "checkpoint", content)
    output = exported(checkpoint, format)
    loaded = {
        "torch": lambda: torch.load(output, weights_only=True),
        "safetensors": lambda: load_file(output),
        "huggingface": lambda: load_file(output / "model.safetensors"),
    }[format]()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}


def test_the_average_is_exported(checkpoint: Path) -> None:
    content = load_state(checkpoint, "checkpoint")
    average = {f"module.{name}": tensor + 1 for name, tensor in state_of(checkpoint).items()}
    content["state"]["average"] = {**average, "n_averaged": torch.tensor(3)}
    save_state(checkpoint, "checkpoint", content)
    loaded = torch.load(exported(checkpoint, "torch"), weights_only=True)
    torch.testing.assert_close(loaded, {name: tensor + 1 for name, tensor in state_of(checkpoint).items()})


def test_no_code_of_a_foreign_checkpoint_is_run(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    content = load_state(checkpoint, "checkpoint")
    config = json.loads(content["state"]["huggingface_config"])
    config |= {"auto_map": {"AutoModelForCausalLM": "x--y.Z"}, "attn_implementation": "someone/kernel"}
    content["state"]["huggingface_config"] = json.dumps(config)
    save_state(checkpoint, "checkpoint", content)
    output = exported(checkpoint, "huggingface")
    assert "auto_map" not in json.loads((output / "config.json").read_text())


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "MyGPT", "torch"])
def test_classes_that_transformers_does_not_have(checkpoint: Path, name: str) -> None:
    content = load_state(checkpoint, "checkpoint")
    config = json.loads(content["state"]["huggingface_config"]) | {"architectures": [name]}
    content["state"]["huggingface_config"] = json.dumps(config)
    save_state(checkpoint, "checkpoint", content)
    with pytest.raises(UserError, match=rf"transformers [\d.]+ cannot build a model of class {name}"):
        exported(checkpoint, "huggingface")


def test_a_model_that_is_not_of_transformers(tmp_path: Path) -> None:
    path = saved_models.save(tmp_path / "run", saved_models.text(tmp_path / "data.h5"))
    with pytest.raises(UserError, match=r"model.name = 'lstm'\); use --format torch or --format safetensors"):
        exported(path, "huggingface")
    model = SavedModel.load(path).build(open_task(tmp_path / "data.h5").store)
    for loaded in (torch.load(exported(path, "torch"), weights_only=True), load_file(exported(path, "safetensors"))):
        torch.testing.assert_close(loaded, dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("format", SUFFIXES)
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_exists_is_refused(checkpoint: Path, format: str, make: Callable[[Path], None]) -> None:
    output = checkpoint.parent / "out"
    make(output)
    with pytest.raises(UserError, match=r"out exists; choose another one, or remove it"):
        export(SavedModel.load(checkpoint), format, output)


@pytest.mark.parametrize(("format", "package"), [("safetensors", "safetensors.torch"), ("huggingface", "transformers")])
def test_a_missing_package(checkpoint: Path, format: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'hpcdistill\[huggingface\]'"):
        exported(checkpoint, format)


def test_a_file_has_the_rights_that_the_umask_leaves(checkpoint: Path) -> None:
    before = os.umask(0o027)
    try:
        files = [exported(checkpoint, "torch"), exported(checkpoint, "safetensors")]
        files += exported(checkpoint, "huggingface").iterdir()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_full_disk_leaves_nothing(checkpoint: Path, format: str) -> None:
    before = sorted(checkpoint.parent.parent.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # a larger file is an error, as on a full disk
    try:
        with pytest.raises(UserError, match=r"out.* cannot be written: .*File too large.*; choose another one"):
            exported(checkpoint, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(checkpoint.parent.parent.iterdir()) == before
