"""Models in checkpoints, which may hold anything, and may belong to a user who is not trusted."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import saved_models
from hpcdistill.config.codistill import CodistillConfig
from hpcdistill.data.tokens.store import write_tokens
from hpcdistill.errors import UserError
from hpcdistill.evaluation.churn import churn
from hpcdistill.evaluation.evaluate import evaluate
from hpcdistill.models.huggingface_config import build_from_text
from hpcdistill.models.saved import SavedModel, describe_model
from hpcdistill.storage.state_file import load_state, save_state
from hpcdistill.tasks.registry import open_task
from hpcdistill.training.setup import fixed_teachers

pytestmark = pytest.mark.alone

FACTORY = """
import torch
from torch import nn

class Guess(nn.Module):
    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(1))

    def forward(self, dense, ids):
        return self.logit.expand(len(dense))

def make(store):
    return Guess()
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return saved_models.clicks(tmp_path / "data.h5")


def changed(path: Path, **state: Any) -> Path:
    """Replace values in the state of a checkpoint; return its path."""
    content = load_state(path, "checkpoint")
    content["state"] |= state
    save_state(path, "checkpoint", content)
    return path


@pytest.fixture
def by_factory(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a checkpoint of a model that is built by a factory."""
    (tmp_path / "their_model.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_model", raising=False)
    path = saved_models.save(tmp_path / "run", data)
    config = load_state(path, "checkpoint")["state"]["config"]
    config["model"] = {"name": "factory", "factory": "their_model:make"}
    return changed(path, config=config, model={"logit": torch.zeros(1)})


def test_code_is_run_for_an_own_checkpoint(by_factory: Path, data: Path) -> None:
    assert evaluate([str(by_factory)], data).predictions == 100


def test_code_is_run_for_a_foreign_checkpoint_only_when_told(
    by_factory: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    teaching = CodistillConfig(teachers="checkpoints", checkpoints=(by_factory,))
    task, name, cpu = open_task(data), str(by_factory), torch.device("cpu")
    for use in (
        lambda **trust: evaluate([name], data, **trust),
        lambda **trust: churn(name, name, data, **trust),
        lambda **trust: fixed_teachers(teaching, task, task.objective, cpu, **trust),
    ):
        sys.modules.pop("their_model", None)
        with pytest.raises(UserError, match=r"belongs to .*, and names code .* = 'their_model:make'; add --trust"):
            use()
        assert "their_model" not in sys.modules
        use(trust=True)
        assert "their_model" in sys.modules


def test_a_foreign_checkpoint_without_code_needs_no_trust(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved_models.save(tmp_path / "run", data)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert evaluate([str(path)], data).predictions == 100


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"state": 3},
        {"state": {"model": {}}},
        {"state": {"config": {}}},
        {"state": {"config": [], "model": {}}},
        {"state": {"config": {}, "model": {"a": 1}}},
        {"state": {"config": {}, "model": {}, "average": 3}},
        {"state": {"config": {"model": {"name": "none"}, "steps": 3}, "model": {}}},
    ],
)
def test_what_holds_no_model_is_refused_in_one_line(tmp_path: Path, content: dict[str, Any]) -> None:
    save_state(tmp_path / "x.h5", "checkpoint", content)
    with pytest.raises(UserError, match=r"x\.h5 (holds no model|is of another version of hpcdistill)") as caught:
        SavedModel.load(tmp_path / "x.h5")
    assert "\n" not in str(caught.value)


def test_tied_tensors_share_memory(tmp_path: Path, data: Path) -> None:
    model = torch.nn.ModuleDict({"b": torch.nn.Linear(3, 3), "a": torch.nn.Linear(3, 3), "c": torch.nn.Linear(3, 3)})
    model["a"].weight = model["b"].weight
    with torch.no_grad():
        model["c"].weight.copy_(model["b"].weight)  # equal, but not tied
    described = describe_model(model)
    assert described == {"tied": {"a.weight": "b.weight"}}
    path = changed(saved_models.save(tmp_path / "run", data), model=model.state_dict(), **described)
    weights = SavedModel.load(path).weights
    torch.testing.assert_close(weights, dict(model.state_dict()))
    pointers = [weights[f"{name}.weight"].data_ptr() for name in "abc"]
    assert pointers[0] == pointers[1] != pointers[2]


def test_a_model_of_transformers_is_built_without_its_folder(tmp_path: Path, data: Path) -> None:
    few, bytes_, folder = tmp_path / "few.h5", saved_models.text(tmp_path / "bytes.h5"), tmp_path / "model"
    write_tokens(few, [(part, np.arange(9) % 3, 9) for part in ("train", "validation")], "text", 3, None)
    GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=16).save_pretrained(folder)
    path = saved_models.save(tmp_path / "run", few, model={"name": "huggingface", "path": folder})
    shutil.rmtree(folder)
    saved = SavedModel.load(path)
    model = saved.build(open_task(few).store)
    torch.testing.assert_close(dict(model.state_dict()), saved.weights)
    assert not model.training
    with pytest.raises(UserError, match=r"for other data than .*bytes.h5.*its vocabulary is 3 there, and 256 here"):
        saved.build(open_task(bytes_).store)
    with pytest.raises(UserError, match=r"for other data than .*data.h5.*model.name = 'huggingface' there"):
        saved.build(open_task(data).store)


def test_the_configuration_of_transformers(tmp_path: Path) -> None:
    """A model is built from its configuration alone, and without any code that the configuration names."""
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=16, vocab_size=9, bos_token_id=0, eos_token_id=0)
    config.auto_map = {"AutoModel": "someone--model.Class"}
    text = describe_model(GPT2LMHeadModel(config))["huggingface_config"]
    built = build_from_text(text)
    assert type(built) is GPT2LMHeadModel
    assert built.config.n_positions == 16
    assert not hasattr(built.config, "auto_map")
    for wrong in ("{", "[]", "{}", text.replace("GPT2LMHeadModel", "Trainer"), text.replace(": 8", ': "eight"')):
        with pytest.raises(UserError, match=r"transformers .* cannot build a model of class"):
            build_from_text(wrong)
