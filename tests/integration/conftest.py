"""Fixtures for tests that train."""

import asyncio
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from hpcdistill.data.tokens.prepare_text import prepare_text
from small_run import SMALL, Run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare some hundred kilobytes of text: the source of a package of the standard library."""
    path = tmp_path_factory.mktemp("data") / "text.h5"
    prepare_text([Path(asyncio.__file__).parent], path, include="*.py")
    return path


@pytest.fixture
def train(mpirun: Run, data: Path, tmp_path: Path) -> Run:
    """Return `train(ranks, *options)`, which trains in a run folder of this test."""
    config = tmp_path / "small.toml"
    config.write_text(f'run_dir = "{tmp_path / "run"}"\n{SMALL}')

    def run(ranks: int, *options: str, **mpirun_options: object) -> CompletedProcess[str]:
        command = ("-m", "hpcdistill", "train", config, f"--data.path={data}", *options)
        return mpirun(ranks, *command, **mpirun_options)

    return run
