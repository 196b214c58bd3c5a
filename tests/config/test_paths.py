"""Paths on the command line and in the configuration: expanded as by a shell, and outputs that can be written."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.cli.main import build_parser, parse_arguments
from hpcdistill.config import load_config
from hpcdistill.config.paths import expanded, model_names, output_path
from hpcdistill.errors import UserError
from hpcdistill.models.registry import config_class

pytestmark = pytest.mark.alone

PARSER = build_parser()
OUTPUTS = [
    "prepare text --input x --output",
    "prepare clicks --synthetic --rows=1 --output",
    "prepare criteo --input x --output",
    "prepare table --input x --label=y --output",
    "prepare images --input x --output",
    "report x --output",
    "compare x --output",
    "compare x --json",
    "evaluate x --data x --json",
    "churn x x --data x --json",
]
UNFIT = {
    "folder": "exists and is a folder",
    "pipe": "exists and is not a regular file",
    "socket": "exists and is not a regular file",
    "dangling": "cannot be written: No such file",
    "file/x.h5": "cannot be written: Not a directory",
    "new/": "names a folder",
    "": "the path is empty",
    "/dev/null": "exists and is not a regular file",
    "/proc/new/x.h5": "cannot be written",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home folder, with one file of each kind, and run the test there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "/scratch/me")
    monkeypatch.setenv("EMPTY", "")
    Path("folder").mkdir()
    Path("file").write_text("kept")
    os.mkfifo("pipe")
    Path("dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "{home}"),
        ("~/run", "{home}/run"),
        ("~root/run", f"{Path('~root').expanduser()}/run"),
        ("$PLACE/run", "/scratch/me/run"),
        ("${PLACE}2/run$PLACE", "/scratch/me2/run/scratch/me"),
        ("a~b/~", "a~b/~"),
        ("./~", "~"),
        ("cost$1 and $", "cost$1 and $"),
        ("a$$PLACE", "a$PLACE"),
    ],
)
def test_a_path_means_what_it_means_to_a_shell(folder: Path, text: str, path: str) -> None:
    assert expanded(text) == Path(path.format(home=folder))


@pytest.mark.parametrize(
    "text", ["", " ", "$UNKNOWN/run", "${UNKNOWN}", "$EMPTY/run", "${}", "~nobody-here/run", "a\0b"]
)
def test_a_path_that_means_nothing_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"empty|UNKNOWN|EMPTY|~nobody-here|null|not set"):
        expanded(text)


def test_a_name_with_a_dollar_sign_is_found(folder: Path) -> None:
    Path("a$UNKNOWN").mkdir()
    assert expanded("a$UNKNOWN") == Path("a$UNKNOWN")
    assert expanded("$PLACE") == Path("/scratch/me"), "a variable comes first"
    assert model_names("a$UNKNOWN:0,~/b:1,$PLACE") == f"a$UNKNOWN:0,{folder}/b:1,/scratch/me"


@given(st.text(st.sampled_from("~$a{}/. \\\n"), min_size=1).filter(lambda name: str(Path(name)).strip()))
def test_a_configuration_reads_back_the_paths_that_it_has_written(name: str) -> None:
    config = config_class()(run_dir=Path(name), data={"path": Path("/data", name)})
    assert config_class()(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize("command", OUTPUTS)
@pytest.mark.parametrize("output", UNFIT)
def test_an_output_that_cannot_be_is_refused_before_the_work(folder: Path, command: str, output: str) -> None:
    there = sorted(Path().iterdir())
    with pytest.raises(UserError, match=UNFIT[output]):
        PARSER.parse_args([*command.split(), output])
    assert sorted(Path().iterdir()) == there
    assert Path("pipe").is_fifo()


def test_an_output_may_be_new_or_take_the_place_of_a_file(folder: Path) -> None:
    Path("link").symlink_to("file")
    for output in ("file", "link", "new", "new/folder/x.h5"):
        assert output_path(output) == Path(output)
    assert output_path("~/new") == folder / "new"
    assert not Path("new").exists()
    assert Path("file").read_text() == "kept"


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("prepare text --input folder ./file --output file", r"--output file would take the place of input file"),
        ("prepare table --input file --label=y --output link", r"--output link .* input file"),
        ("prepare images --input folder --validation file --output file", r"--output file .* validation file"),
        ("evaluate link --data folder --json file", r"--json file .* models link"),
        ("churn link b --data folder --json file", r"--json file .* a link"),
        ("evaluate a --data link --json file", r"--json file .* data link"),
        ("compare a b --output new.html --json ./new.html", r"--json new.html .* output new.html"),
    ],
)
def test_an_output_takes_the_place_of_nothing_that_is_read(folder: Path, command: str, place: str) -> None:
    Path("link").symlink_to("file")
    with pytest.raises(UserError, match=place):
        parse_arguments(command.split())


@pytest.mark.parametrize("where", ["file", "command line"])
def test_paths_of_a_configuration_are_expanded(folder: Path, where: str) -> None:
    values = {"run_dir": "~/run", "data.path": "$PLACE/data.h5", "codistill.checkpoints": "~/a.h5,b.h5"}
    lines, options = ['codistill.teachers = "checkpoints"'], [f"--{key}={value}" for key, value in values.items()]
    if where == "file":
        lines += ['run_dir = "~/run"', 'data.path = "$PLACE/data.h5"', 'codistill.checkpoints = ["~/a.h5", "b.h5"]']
        options = []
    Path("run.toml").write_text("\n".join(lines))
    args = PARSER.parse_args(["train", "~/run.toml", *options])
    config = load_config(args.config, config_class(), args)
    assert (config.run_dir, config.data.path) == (folder / "run", Path("/scratch/me/data.h5"))
    assert config.codistill.checkpoints == (folder / "a.h5", Path("b.h5"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--run_dir=", r"run_dir = '': the path is empty"),
        ("--run_dir=$UNKNOWN/x", r"run_dir = '\$UNKNOWN/x': the variable UNKNOWN is not set"),
        ("--data.path=${UNKNOWN}", r"data.path = .*UNKNOWN is not set"),
    ],
)
def test_a_path_of_a_configuration_that_means_nothing_is_named(folder: Path, option: str, message: str) -> None:
    Path("run.toml").write_text('run_dir = "x"\ndata.path = "data.h5"\n')
    args = PARSER.parse_args(["train", "run.toml", option])
    with pytest.raises(UserError, match=message):
        load_config(args.config, config_class(), args)
