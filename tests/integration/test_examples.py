"""Examples for `hpcdistill train` train, and teach: a Hugging Face model, and data of one's own."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from datasets import Dataset

from hpcdistill.data.tokens.prepare_text import prepare_text
from hpcdistill.evaluation.evaluate import evaluate
from hpcdistill.storage.metrics import read_metrics
from hpcdistill.storage.run_dir import RunDir

pytestmark = pytest.mark.launch

Run = Callable[..., CompletedProcess[str]]


def test_a_hugging_face_model(mpirun: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"To be, or not to be: that is the question. " * 500)
    prepare_text([tmp_path / "text.txt"], tmp_path / "data.h5")
    short = ("--train.steps=60", "--train.validate_every=30", "--data.sequence_length=32", "--data.batch_size=4")
    exchange = ("--codistill.burn_in=10", "--codistill.exchange_interval=5")
    data = (f"--data.path={tmp_path / 'data.h5'}", f"--run_dir={tmp_path / 'run'}")
    result = mpirun(2, "-m", "hpcdistill", "train", "examples/hugging_face.toml", *exchange, *short, *data)
    assert result.returncode == 0, result.stderr
    for group in (0, 1):
        _, records = read_metrics(RunDir(tmp_path / "run").metrics(group))
        losses = [record["validation_loss"] for record in records if "validation_loss" in record]
        assert losses[-1] < losses[0] < 5.5
        assert any(record.get("staleness") for record in records)


def test_data_of_one_s_own(mpirun: Run, tmp_path: Path) -> None:
    """Train, and evaluate without naming the data. The threads of the ranks read: processes take long to start."""
    texts = Dataset.from_dict({"text": [f"{number} bottles of beer" for number in range(60)]})
    texts.train_test_split(0.2, seed=0).save_to_disk(tmp_path / "texts")
    own = [
        "--data.args",
        json.dumps({"folder": str(tmp_path / "texts"), "length": 16}),
        "--data.batch_size=8",
        "--data.workers=0",
    ]
    own += ["--model.hidden=16", "--model.heads=2", "--model.layers=1", f"--run_dir={tmp_path / 'run'}"]
    short = ["--train.validate_every=10", "--codistill.burn_in=5", "--codistill.exchange_interval=5"]
    command = ["-m", "hpcdistill", "train", "examples/own_data.toml", *own, *short]
    result = mpirun(2, *command, "--train.steps=20")
    assert result.returncode == 0, result.stderr
    for group in (1, 0):
        _, records = read_metrics(RunDir(tmp_path / "run").metrics(group))
        losses = [record["validation_loss"] for record in records if "validation_loss" in record]
        assert losses[1] < losses[0] < 5.5
    found = evaluate([f"{tmp_path / 'run'}:0"], None, "last")
    assert (found.data, found.unit) == ("examples.own_data:load", "target")
    (scores,) = found.scores.values()
    assert scores["loss"] == pytest.approx(losses[1], rel=1e-5)
