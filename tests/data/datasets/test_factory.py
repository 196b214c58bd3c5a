"""Data that a user's function returns: what it may return, and what is refused."""

import re
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

import own_data
from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Share
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.errors import UserError
from hpcdistill.tasks.registry import open_data
from repository import ROOT

pytestmark = pytest.mark.alone


def open_factory(function: str, share: Share | None = None, **options: Any) -> FactoryData:
    return FactoryData(own_data.config(function, **options), share or Share())


def test_the_face_of_a_store() -> None:
    data = open_factory("numbers", count=30)
    assert (data.size("train"), data.size("validation"), data.vocabulary) == (30, 12, own_data.CLASSES)
    assert data.setting == "data.factory = 'own_data:numbers'"
    assert data.identity.startswith("30 training and 12 validation examples, digest ")
    assert open_factory("stream").size("train") is None


def test_identity_is_of_the_function_its_arguments_and_the_lengths() -> None:
    one = open_factory("numbers", count=30).identity
    assert one == open_factory("numbers", count=30, batch_size=8, workers=2).identity
    others = [
        open_factory("numbers", count=31),
        open_factory("numbers", count=30, seconds=0.0),
        open_factory("drawn", count=30),
        open_factory("numbers", count=30, classes=9),
    ]
    assert len({one, *(other.identity for other in others)}) == 5


def test_a_function_gets_its_share_and_batch_size_if_it_takes_them() -> None:
    data = open_factory("loaders", Share(1, 2, 1, 2), batch_size=8)
    (first, _), *others = data.parts["train"]
    assert (first.flatten().tolist(), len(others)) == ([3, 7, 11, 15], 1)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("nothing", {}, r"data.factory = 'own_data:nothing' cannot be imported \(.*no attribute 'nothing'"),
        ("CLASSES", {}, r"'own_data:CLASSES' cannot be called with data.args = {} \(5 is not a callable"),
        ("numbers", {"size": 3}, r"cannot be called with data.args = {'size': 3} \(got an unexpected keyword.*'size'"),
        ("examples", {}, r"cannot be called with data.args = {} \(missing a required argument: 'kind'\); give what it"),
        ("raises", {}, r"data.factory = 'own_data:raises' failed: (.|\n)*own_data.py(.|\n)*OSError: the disk is gone"),
        ("no_pair", {}, r"returned Numbers; return a pair, training and validation data: each a dataset with __getit"),
        ("no_data", {}, r"returned int as validation data; return a pair"),
        (
            "without_length",
            {},
            r"the training data, NoLength, has __getitem__ but no __len__.* return a torch.utils.data.",
        ),
    ],
)
def test_what_is_no_data_is_refused(function: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_factory(function, **options)


def test_without_classes_there_is_no_vocabulary() -> None:
    with pytest.raises(UserError, match=r"has targets of 0 or 1, where a vocabulary is needed; set --data.classes"):
        _ = open_factory("numbers", classes=None).vocabulary


def test_the_task_follows_from_the_classes() -> None:
    classes = open_data(own_data.config("numbers"))
    assert classes.objective.uniform.shape == (own_data.CLASSES,)
    binary = open_data(own_data.config("numbers", classes=None))
    assert binary.objective.uniform.shape == ()
    with pytest.raises(UserError, match=r"data.factory = 'own_data:numbers' does not tell; use .*=uniform"):
        classes.unigram()
    with pytest.raises(UserError, match="for models that choose among classes, not for data of a factory"):
        binary.fused_objective(torch.nn.Identity())


def test_the_functions_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw from those whose packages are here; those of WebDataset and Mosaic are not."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    module = ModuleType("my_data")
    monkeypatch.setitem(sys.modules, "my_data", module)
    for block in blocks:
        if re.search("import webdataset|from streaming", block):
            compile(block, "data.md", "exec")
        else:
            exec(block, vars(module))
    for function in ("load", "load_by_loader"):
        config = DataConfig(factory=f"my_data:{function}", args={"length": 8}, classes=256, batch_size=4)
        share = Share(1, 2, 0, 2)
        task = open_data(config, share)
        assert next(task.batches(config, share)).target.shape == (2, 8)
        assert sum(int(batch.counted) for batch in task.validation(config, 0, 2)) == 25 * 7
