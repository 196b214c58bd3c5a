"""The command export: what it writes where, and which names it refuses."""

from pathlib import Path

import pytest
import torch

import saved_models
from hpcdistill.cli.main import main, parse_arguments
from hpcdistill.errors import UserError
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import load_state
from without_modules import run_without

pytestmark = pytest.mark.alone


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save the models of groups 0 and 1; the data are removed."""
    monkeypatch.chdir(tmp_path)
    data = saved_models.text(tmp_path / "data.h5")
    for group in (0, 1):
        saved_models.save(tmp_path / "runs" / "a", data, group, seed=group)
    data.unlink()
    return Path("runs/a")


def test_the_output_is_named_after_the_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "runs/a:1", "--format=torch"]) == 0
    assert capsys.readouterr().out == "a-g1.pt: runs/a:1 after 1 steps\n"
    best = RunDir(run).best_checkpoint(1)
    torch.testing.assert_close(torch.load("a-g1.pt"), load_state(best, "checkpoint")["state"]["model"])
    assert main(["export", str(best), "--format=safetensors"]) == 0
    assert main(["export", "runs/a:0", "--format=safetensors", "--output=new/x", "--checkpoint=last"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"g1-best.safetensors: {best} after 1 steps",
        "new/x: runs/a:0 after 1 steps",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("runs/a --format=torch", r"runs/a names 2 models; choose one of runs/a:0, runs/a:1"),
        ("runs/a:2 --format=torch", r"names group 2, but runs/a has best checkpoints of group 0, 1 only"),
        ("runs/b:0 --format=torch", r"runs/b is no checkpoint file, and no run folder with a best checkpoint"),
        ("runs/a:0 --format=torch --output=runs", r"--output runs exists; choose another one"),
        ("runs/a:0 --format=onnx", r"invalid choice: 'onnx'"),
        ("runs/a:0", r"required: --format"),
    ],
)
def test_what_is_refused(run: Path, words: str, message: str) -> None:

    def export() -> None:
        args = parse_arguments(["export", *words.split()])
        args.command(args)

    with pytest.raises(UserError, match=message):
        export()


@pytest.mark.launch
def test_it_needs_torch_and_h5py_alone(run: Path) -> None:
    result = run_without(
        "mpi4py,horovod,matplotlib,tqdm,transformers,safetensors", "export", "runs/a:0", "--format=torch"
    )
    assert result.returncode == 0, result.stderr
