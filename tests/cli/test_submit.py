"""Arguments that submit refuses before it calls sbatch, and the folder of its scripts."""

from pathlib import Path

import pytest

from hpcdistill.cli.main import parse_arguments
from hpcdistill.cli.submit import script_folder
from hpcdistill.errors import UserError
from repository import ROOT

pytestmark = pytest.mark.alone

CONFIG = ROOT / "configs" / "demo.toml"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes-per-group=0"], r"--nodes-per-group: '0' is not an integer > 0"),
        (["--nodes-per-group=-1"], r"--nodes-per-group: '-1' is not an integer > 0"),
        (["--ranks-per-node=0"], r"--ranks-per-node: '0' is not an integer > 0"),
        (["--ranks-per-node=two"], r"--ranks-per-node: 'two' is not an integer > 0"),
        (["--sbatch=--comment='a"], r"--sbatch=.*: no closing quotation; close each quote"),
        (["--sbatch=--time=1 --array=0-7"], r"--sbatch=.* has --array=0-7"),
        (["--sbatch=-a 0-7"], r"--sbatch=.* has -a"),
        (["--group=1"], r"--group=1: each job gets its --group"),
        (["--exchange.transport=window"], r"--exchange.transport=window: each job gets .*--exchange.transport=files"),
        (["--group_sizes=2,1"], r"group_sizes = 2,1, but each job gets 1 ranks"),
        (["--group_sizes=2,1", "--ranks-per-node=2"], r"but each job gets 2 ranks"),
        (["--nodes-per-grup=2"], r"did you mean '--nodes-per-group'\?"),
        (["--optimiser.lr=2"], r"did you mean '--optimizer.lr'\?"),
        (["--lr=2"], r"did you mean '--optimizer.lr'\?"),
        (["--groups=0"], r"groups = '0'"),
    ],
)
def test_what_cannot_be_submitted_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _run("submit", str(CONFIG), *options)


def _run(*arguments: str) -> None:
    args = parse_arguments(arguments)
    args.command(args)


def test_scripts_come_from_the_variable_else_this_folder_else_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPCDISTILL_SLURM", raising=False)
    assert script_folder() == CONFIG.parents[1] / "slurm"
    for folder in ("slurm", "mine"):
        Path(folder).mkdir()
        Path(folder, "groups.sbatch").touch()
    assert script_folder() == tmp_path / "slurm"
    monkeypatch.setenv("HPCDISTILL_SLURM", f"{tmp_path}/mine")
    assert script_folder() == tmp_path / "mine"
    monkeypatch.setenv("HPCDISTILL_SLURM", f"{tmp_path}/nowhere")
    with pytest.raises(UserError, match=r"no groups.sbatch in .*nowhere"):
        script_folder()
