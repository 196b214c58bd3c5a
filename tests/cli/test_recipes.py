"""Configurations that are named as a file, or as a recipe of the package."""

from pathlib import Path

import pytest

from hpcdistill.cli.main import parse_arguments
from hpcdistill.cli.recipes import RECIPES
from hpcdistill.errors import UserError
from repository import ROOT

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_package_has_the_recipes_of_the_repository() -> None:
    assert {path.name for path in RECIPES.glob("*.toml")} == {path.name for path in ROOT.glob("configs/*.toml")}


@pytest.mark.parametrize("name", ["demo", "demo.toml", "configs/demo.toml"])
def test_a_recipe_is_used_where_there_is_no_such_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_arguments(["train", name]).config == RECIPES / "demo.toml"
    said = f"hpcdistill: there is no file {name} in this folder; using the recipe {RECIPES / 'demo.toml'}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("name", ["demo", "demo.toml", "configs/demo.toml"])
def test_a_file_comes_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    assert parse_arguments(["train", name]).config == Path(name)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variable", ["PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"])
def test_rank_0_alone_says_so(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.setenv(variable, "1")
    assert parse_arguments(["train", "demo"]).config == RECIPES / "demo.toml"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(variable, "0")
    parse_arguments(["train", "demo"])
    assert "using the recipe" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["my/demo.toml", "/configs/demo.toml", "configs/my/demo.toml"])
def test_another_folder_is_not_searched(path: str) -> None:
    assert parse_arguments(["train", path]).config == Path(path)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'dmeo' is neither a file nor a recipe; name a file, or one of clicks, demo"):
        parse_arguments(["train", "dmeo"])
