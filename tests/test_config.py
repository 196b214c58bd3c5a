"""A run's configuration: the file, then the command line; mistakes are named and mended."""

from pathlib import Path

import pytest

from hpcdistill.cli import Parser, _parsers, main
from hpcdistill.config import Config, load_config
from hpcdistill.errors import UserError

MINIMAL = 'run_dir = "runs/x"\n[data]\npath = "data.h5"\n'


def load(tmp_path: Path, text: str, *options: str) -> Config:
    file = tmp_path / "run.toml"
    file.write_text(text)
    parser, _ = _parsers()
    args = parser.parse_args(["train", str(file), *options])
    return load_config(args.config, args.overrides, args)


def test_command_line_over_file_over_defaults(tmp_path: Path) -> None:
    text = MINIMAL + "[optimizer]\nname = 'sgd'\nlr = 0.5\n[train]\nsteps = 7\n"
    config = load(tmp_path, text, "--optimizer.lr=0.1", "--data.batch_size", "32")
    assert (config.optimizer.name, config.optimizer.lr) == ("sgd", 0.1)
    assert (config.data.path, config.data.batch_size) == (Path("data.h5"), 32)
    assert (config.train.steps, config.train.validate_every) == (7, 200)


def test_sizes_of_groups_are_a_list(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL, "--group_sizes=3,1").group_sizes == (3, 1)
    assert load(tmp_path, "group_sizes = [2, 4]\n" + MINIMAL).group_sizes == (2, 4)


def test_the_demo_configuration_is_valid() -> None:
    config = load_config(Path(__file__).parents[1] / "configs" / "demo.toml")
    assert config.groups == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (MINIMAL + "[optimizer]\nrate = 1\n", [], r"unknown key 'optimizer.rate'"),
        (MINIMAL + "[model]\nname = 'dnn'\nhidden = 3\n", [], r"unknown key 'model.hidden' of model.name = 'dnn'"),
        (MINIMAL + "[model]\nname = 'cnn'\n", [], r"model = .*'lstm', 'dnn', 'resnet', 'factory'"),
        (MINIMAL, ["--codistill.teachers=checkpoints"], r"with 0 codistill.checkpoints; name checkpoints"),
        (MINIMAL, ["--codistill.checkpoints=a.h5"], r"teachers = 'peers' with 1 codistill.checkpoints"),
        ("goups = 2\n" + MINIMAL, [], r"unknown key 'goups' \(did you mean 'groups'\?\)"),
        (MINIMAL + "[codistil]\nweight = 1\n", [], r"unknown key 'codistil' \(did you mean 'codistill'\?\)"),
        (MINIMAL, ["--train.steps=many"], r"train.steps = 'many': .*integer"),
        (MINIMAL + "[optimizer]\nlr = -1\n", [], r"optimizer.lr = -1: .*greater than 0"),
        ("groups = 0\n" + MINIMAL, [], r"groups = 0: .*greater than 0"),
        (MINIMAL, ["--checkpoint.keep=1"], r"checkpoint.keep = '1': .*greater than or equal to 2"),
        ('run_dir = "x"\n', [], r"data is missing"),
        ("groups = 1\n" + MINIMAL, [], r"groups = 1 has nobody to learn from.*--codistill.weight=0"),
        (MINIMAL, ["--codistill.exchange_interval=0"], r"codistill.exchange_interval = '0': .*greater than 0"),
        (MINIMAL, ["--exchange.codec=int4"], r"exchange.codec = 'int4': .*'fp32', 'bf16' or 'int8'"),
        (MINIMAL, ["--codistill.max_staleness=50"], r"max_staleness = 50 is over before a teacher is heard of again"),
        (MINIMAL, ["--groups=3", "--exchange.topology=pairs"], r"leaves one of groups = 3 without a partner"),
        (MINIMAL, ["--groups=3", "--exchange.topology=k-random", "--exchange.degree=3"], r"degree = 3 .* at most 2"),
        (MINIMAL, ["--group_sizes=3,1,2"], r"group_sizes = 3,1,2 has 3 numbers for groups = 2"),
        (MINIMAL, ["--group_sizes=2,0"], r"group_sizes.1 = .*0.*: .*greater than 0"),
        (MINIMAL, ["--group=2", "--exchange.transport=files"], r"group = 2, but groups = 2 are numbered from 0"),
        (MINIMAL, ["--group=0"], r"group = 0 makes this job one group.*add --exchange.transport=files"),
        ("groups = \n", [], r"not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, text, *options)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the configuration .*nowhere\.toml: No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_every_key_has_help() -> None:
    _, train = _parsers()
    assert isinstance(train, Parser)
    for action in train._actions:
        assert len((action.help or "").split(" (")[0]) > 5, action.option_strings


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["prepare"], ["report", "--output=x.html"]])
def test_incomplete_commands_raise_with_usage(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[BaseException] = []
    monkeypatch.setattr("hpcdistill.cli.end_job", said.append)
    main(arguments)
    assert "usage: hpcdistill" in str(said[0])
