"""The example of a Hugging Face model trains and teaches."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from hpcdistill.data.tokens.prepare_text import prepare_text
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
