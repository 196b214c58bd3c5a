"""Configuration of a run, from a file and the command line; mistakes are named with a remedy."""

import json
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from hpcdistill.cli.main import build_parser
from hpcdistill.config import Config, load_config
from hpcdistill.errors import UserError
from hpcdistill.models.registry import config_class
from repository import ROOT

pytestmark = pytest.mark.alone

MINIMAL = 'run_dir = "runs/x"\n[data]\npath = "data.h5"\n'


PARSER = build_parser()


def load(tmp_path: Path, text: str, *options: str) -> Config:
    file = tmp_path / "run.toml"
    file.write_text(text)
    args = PARSER.parse_args(["train", str(file), *options])
    return load_config(args.config, config_class(), args)


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
    config = load_config(ROOT / "configs" / "demo.toml", config_class())
    assert config.groups == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (MINIMAL, ["--model.name=factory", "--model.factory=a:b", "--model.args=c=1"], r"args = 'c=1': not JSON .*'{"),
        (MINIMAL, ["--model.name=factory", "--model.factory=a:b", "--model.args=[1]"], r"args = \[1\]: .*dictionary"),
        (MINIMAL + "[optimizer]\nrate = 1\n", [], r"unknown key 'optimizer.rate'"),
        (MINIMAL + "[model]\nname = 'dnn'\nhidden = 3\n", [], r"unknown key 'model.hidden' of model.name = 'dnn'"),
        (MINIMAL + "[model]\nname = 'cnn'\n", [], r"model = .*'lstm', 'dnn', 'factory', 'huggingface', 'resnet'"),
        (MINIMAL, ["--codistill.teachers=checkpoints"], r"with 0 codistill.checkpoints; name checkpoints"),
        (MINIMAL, ["--codistill.checkpoints=a.h5"], r"teachers = 'peers' with 1 codistill.checkpoints"),
        ("goups = 2\n" + MINIMAL, [], r"unknown key 'goups' \(did you mean 'groups'\?\)"),
        (MINIMAL + "[codistil]\nweight = 1\n", [], r"unknown key 'codistil' \(did you mean 'codistill'\?\)"),
        (MINIMAL, ["--train.precision=fp16"], r"precision = 'fp16': .*loss scaler.* use --train.precision=bf16"),
        (MINIMAL + "[train]\nprecision = 'float16'\n", [], r"precision = 'float16': .*loss scaler"),
        (MINIMAL, ["--train.precision=bf16-weights", "--train.average=0.9"], r"average = 0.9 with .* use .*=bf16, or"),
        (MINIMAL, ["--train.clip_norm=0"], r"train.clip_norm = '0': .*greater than 0"),
        (MINIMAL, ["--train.accumulate=0"], r"train.accumulate = '0': .*greater than 0"),
        (MINIMAL, ["--train.steps=many"], r"train.steps = 'many': .*integer"),
        (MINIMAL, ["--optimizer.name=adam"], r"optimizer.name = 'adam': neither 'adamw' nor 'sgd'"),
        (MINIMAL + "[optimizer.args]\nlr = 1\n", [], r"optimizer.args has lr, which is .*; set optimizer.lr"),
        (
            MINIMAL,
            ["--train.profile_steps=2", "--train.profile_begin=1001"],
            r"profile_begin = 1001 is beyond train.st",
        ),
        (MINIMAL, ["--optimizer.decay=wsd"], r"decay = 'wsd' with optimizer.decay_steps = None; set"),
        (MINIMAL, ["--optimizer.decay_steps=3"], r"decay = 'none' with optimizer.decay_steps = 3; set"),
        (
            MINIMAL,
            ["--optimizer.decay=wsd", "--optimizer.decay_steps=800", "--optimizer.warmup=201"],
            r"warmup = 201 and optimizer.decay_steps = 800 are more steps than train.steps = 1000",
        ),
        (MINIMAL + "[optimizer]\nlr = -1\n", [], r"optimizer.lr = -1: .*greater than 0"),
        ("groups = 0\n" + MINIMAL, [], r"groups = 0: .*greater than 0"),
        (MINIMAL, ["--checkpoint.keep=1"], r"checkpoint.keep = '1': .*greater than or equal to 2"),
        ('run_dir = "x"\n', [], r"run.toml: data.path is missing; name a store with --data.path=…, or .*factory=…$"),
        (
            "data = {}\n",
            [],
            r"run_dir is missing; .*; data.path is missing; name a store with --data.path=…, or a func",
        ),
        (MINIMAL, ["--data.factory=a:b"], r"data.path = data.h5 and data.factory = 'a:b' exclude each other; omit one"),
        (MINIMAL, ["--data.workers=2"], r"data.workers = 2 is for data.factory, not for the store in data.path; omit"),
        (MINIMAL, ["--data.classes=9"], r"data.classes = 9 is for data.factory, not for the store in data.path; omit"),
        (MINIMAL, ['--data.args={"a": 1}'], r"data.args = {'a': 1} is for data.factory, not for the store .*; omit it"),
        (MINIMAL, ["--data.factory=b"], r"data.factory = 'b': .*pattern"),
        (MINIMAL, ["--model.name=factory"], r"model.factory is missing; .* --model.factory=…"),
        (MINIMAL + "[model]\nlayer = 2\n", [], r"unknown key 'model.layer' .*'lstm' \(did you mean 'model.layers'\?\)"),
        ("_env_file = 'x'\n" + MINIMAL, [], r"unknown key '_env_file'"),
        (MINIMAL, ["--model.name=resnet", "--model.layers=34"], r"model.layers = '34': .* 18 or 50"),
        (MINIMAL, ["--model.name=transformer", "--model.hidden=100", "--model.heads=4"], r"multiple of 8, or other --"),
        (
            MINIMAL,
            ["--model.name=transformer", "--model.heads=2", "--model.kv_heads=4"],
            r"toml: model.kv_heads = 4 does not",
        ),
        (MINIMAL, ["--codistill.temperature=inf"], r"codistill.temperature = .*inf.*finite number"),
        ("groups = 1\n" + MINIMAL, [], r"groups = 1 has no peers .*--codistill.weight=0 .*--codistill.teachers=self"),
        (MINIMAL, ["--codistill.teachers=self", "--codistill.checkpoints=a.h5"], r"'self' with 1 codistill.checkpoin"),
        (MINIMAL, ["--codistill.exchange_interval=0"], r"codistill.exchange_interval = '0': .*greater than 0"),
        (MINIMAL, ["--exchange.codec=int4"], r"exchange.codec = 'int4': .*'fp32', 'bf16' or 'int8'"),
        (MINIMAL, ["--codistill.max_staleness=50"], r"max_staleness = 50 ends before a teacher publishes again"),
        (MINIMAL, ["--groups=3", "--exchange.topology=pairs"], r"leaves one of groups = 3 without a partner"),
        (MINIMAL, ["--groups=3", "--exchange.topology=k-random", "--exchange.degree=3"], r"degree = 3, .* at most 2"),
        (MINIMAL, ["--group_sizes=3,1,2"], r"group_sizes = 3,1,2 has 3 numbers for groups = 2"),
        (MINIMAL, ["--group_sizes=2,0"], r"group_sizes.1 = .*0.*: .*greater than 0"),
        (MINIMAL, ["--group=2", "--exchange.transport=files"], r"group = 2, but groups = 2 are numbered from 0"),
        (MINIMAL, ["--seed=4294967296"], r"seed = '4294967296': .*less than 4294967296"),
        (MINIMAL, ["--group=0"], r"group = 0 makes this job one group.*add --exchange.transport=files"),
        ("groups = \n", [], r"not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, text, *options)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the configuration .*nowhere\.toml: No such file"):
        load_config(tmp_path / "nowhere.toml", config_class())


def test_every_key_has_help() -> None:
    for action in PARSER.parse_args(["train", "run.toml"]).parser._actions:
        assert len((action.help or "").split(" (")[0]) > 5, action.option_strings


# Other keys that must be set with a key, or its sample values would be refused.
OWN_DATA = {"data.path": None, "data.factory": "a.b:c"}
COMPANIONS: dict[str, dict[str, Any]] = {
    "data.factory": OWN_DATA,
    "data.args": OWN_DATA,
    "data.classes": OWN_DATA,
    "data.workers": OWN_DATA,
    "groups": {"codistill.weight": 0},
    "group": {"groups": 9, "exchange.transport": "files"},
    "model.kv_heads": {"model.heads": 8},
    "codistill.max_staleness": {"codistill.exchange_interval": 5},
    "codistill.checkpoints": {"codistill.teachers": "checkpoints"},
    "codistill.teachers": {"codistill.checkpoints": []},
    "optimizer.decay_steps": {"optimizer.decay": "wsd"},
}


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield each key with its type, and other keys that must be set with it."""
    for name, field in section.model_fields.items():
        key, type_ = prefix + name, field.annotation
        if name == "model":
            for model in get_args(type_):
                tag = model.family()
                needed = {"factory": {"model.factory": "a.b:c"}, "huggingface": {"model.path": "a"}}.get(tag, {})
                for below, its_type, more in keys(model, f"{key}."):
                    yield below, its_type, {"model.name": tag} | needed | more
        elif isinstance(type_, type) and issubclass(type_, BaseModel):
            yield from keys(type_, f"{key}.")
        else:
            yield key, type_, COMPANIONS.get(key, {})


def samples(type_: Any) -> dict[str, Any]:
    """Return sample values of a type: as text on the command line, and as JSON or TOML values."""
    origin, arguments = get_origin(type_), get_args(type_)
    if origin is Annotated:
        return samples(arguments[0])
    if origin is Literal:
        return {str(choice): choice for choice in arguments}
    if origin in (Union, UnionType):
        return {text: value for each in arguments for text, value in samples(each).items()}
    if origin is tuple and arguments[1:] == (...,):
        text, value = next(iter(samples(arguments[0]).items()))
        return {text: [value], f"{text},{text}": [value, value]}
    known: dict[Any, dict[str, Any]] = {
        dict: {'{"a": [1, true], "b": {"c": "d, e"}}': {"a": [1, True], "b": {"c": "d, e"}}, "{}": {}},
        bool: {"true": True, "false": False},
        int: {"8": 8},
        float: {"0.5": 0.5, "5e-1": 0.5},
        str: {"package.module:function": "package.module:function"},
        Path: {"a folder/file.h5": "a folder/file.h5"},
        NoneType: {"None": None},
    }
    return known[origin or type_]


EVERY_KEY = [
    (key, text, value, more) for key, type_, more in keys(config_class()) for text, value in samples(type_).items()
]


@pytest.mark.parametrize(
    ("key", "text", "value", "more"), EVERY_KEY, ids=[f"{key}={text}" for key, text, *_ in EVERY_KEY]
)
def test_every_key_is_an_option(tmp_path: Path, key: str, text: str, value: Any, more: dict[str, Any]) -> None:
    """Values on the command line and in the file give the same configuration."""
    if (key, value) == ("codistill.teachers", "checkpoints"):
        more = {"codistill.checkpoints": ["a.h5"]}
    if key == "group_sizes":
        more = {"groups": len(value or "12"), "codistill.weight": 0}
    if key == "optimizer.decay" and value == "wsd":
        more = {"optimizer.decay_steps": 9}
    if key == "optimizer.decay_steps" and value is None:
        more = {}
    if (key, value) == ("data.factory", None):
        more = {}
    if (key, value) == ("data.path", None):
        more = OWN_DATA
    base = {name: its for name, its in ({"run_dir": "x", "data.path": "y"} | more).items() if its is not None}
    base.pop(key, None)
    lines = [f"{each} = {json.dumps(its)}\n" for each, its in base.items()]
    config = load(tmp_path, "".join(lines), f"--{key}={text}")
    got = reduce(getattr, key.split("."), config)
    assert json.loads(json.dumps(got, default=str)) == value
    if value is not None:  # TOML has no null
        toml = json.dumps(value, separators=(", ", " = "))  # a dictionary is an inline table
        (tmp_path / "run.toml").write_text("".join([*lines, f"{key} = {toml}\n"]))
        assert load_config(tmp_path / "run.toml", config_class()) == config
