"""Commands and Python of the documentation: all of them are tried.

A command runs on tiny data. Where that takes too long, or needs another site, only its arguments are checked, as the
program itself checks them. A command for which there is no rule fails, so that each new one gets a rule.
"""

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from hpcdistill import VocabParallel, linear_codistillation_loss
from hpcdistill.cli.main import build_parser, main
from hpcdistill.config import load_config
from hpcdistill.models.registry import config_class
from repository import ROOT
from slurm_cluster import Cluster, on_slurm
from tokenizer_files import write_tokenizer

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = (
    "--train.steps=6 --train.validate_every=3 --data.batch_size=8 --data.sequence_length=16 --model.hidden=8 "
    "--codistill.burn_in=2 --codistill.exchange_interval=2"
)
INLINE = "python|pytest|make|mpirun|hpcdistill|tools/[a-z_.]+|prepare|train|status|plan|report|compare|evaluate|churn"


@dataclass(frozen=True)
class Block:
    """Commands or Python of one place in a document."""

    place: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Commands without comments, each on one line."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [line for each in lines if (line := re.sub(r"\s+#.*|^#.*", "", each).strip())]


def fenced(document: Path) -> Iterator[Block]:
    text = document.read_text()
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(f"{document.name}:{line}", match[1] or "sh", match[2])


def inline(document: Path) -> Iterator[Block]:
    """Yield the commands within the text; the name of a program without arguments does not count as one."""
    prose = re.sub(r"^```.*?^```$", lambda match: "\n" * match[0].count("\n"), document.read_text(), flags=re.M | re.S)
    for match in re.finditer(rf"`((?:{INLINE})\s[^`…]*)`", prose):
        yield Block(f"{document.name}:{prose.count(chr(10), 0, match.start()) + 1}", "sh", " ".join(match[1].split()))


BLOCKS = [block for document in DOCUMENTS for block in [*fenced(document), *inline(document)]]
SHELL = [block for block in BLOCKS if block.language == "sh"]
# The Python of these pages has tests of its own: test_own_loop.py, test_extension.py in exchange/ and models/,
# test_factory.py in data/datasets/, and the tests of integrations/.
WITH_OWN_TESTS = ("own_loop", "extension", "data.md", "integrations")
PYTHON = [block for block in BLOCKS if block.language == "python" and not block.place.startswith(WITH_OWN_TESTS)]


@dataclass
class Workspace:
    """Folder in which commands find the files that they name."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    cluster: Callable[[], Cluster]
    script: list[str] = field(default_factory=list)
    """Commands that one shell runs together."""

    def scratch(self, command: str, name: str = "scratch") -> str:
        """Replace /scratch/me in a command by the folder `name`; the default one holds a run."""
        return command.replace("/scratch/me", f"{self.folder}/{name}")

    def run_script(self) -> None:
        script = "\n".join(["set -euo pipefail", *self.script, "for job in $(jobs -p); do wait $job; done"])
        done = subprocess.run(["bash", "-c", script], cwd=self.folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def run(workspace: Workspace, command: str) -> None:
    workspace.script.append(workspace.scratch(command).replace("tail -f", "tail"))


def train(workspace: Workspace, command: str) -> None:
    """Run it for a few steps; it makes the run that other commands read."""
    workspace.script.append(f"{command} {SHORT}")


def program(workspace: Workspace, command: str) -> None:
    """Run it in this process, which has imported all modules already."""
    assert main(shlex.split(workspace.scratch(command).removeprefix("python -m hpcdistill "))) == 0


def mentioned(workspace: Workspace, command: str) -> None:
    """Check that the command exists, and has these options."""
    words = shlex.split(re.sub(r"^(python -m )?hpcdistill ?", "", command))
    with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([*words, "--help"])
    require_options(words, output.getvalue())


def require_options(words: list[str], text: str) -> None:
    """Check that the help has each option; words before --help are parsed, but may be unknown."""
    for option in [word.split("=")[0] for word in words if word.startswith("-")]:
        assert re.search(rf"(?<!\S){option}\b", text), f"there is no {option}"


def make(workspace: Workspace, command: str) -> None:
    """Check that the targets exist."""
    subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, check=True, capture_output=True)


def benchmark(workspace: Workspace, command: str) -> None:
    """Check that it has these options, and takes their values."""
    path, *arguments = shlex.split(re.sub(r".*python (?=\w+/)|; done", "", command))
    workspace.monkeypatch.syspath_prepend(str((ROOT / path).parent))
    for each in sorted(ROOT.glob("benchmarks/study_*.py")) if "NAME" in path else [ROOT / path]:
        workspace.monkeypatch.setattr(sys, "argv", [str(each), *arguments, "--help"])
        with contextlib.redirect_stdout(io.StringIO()) as output, pytest.raises(SystemExit, match="0"):
            runpy.run_path(str(each), run_name="__main__")
        require_options(arguments, output.getvalue())


def tool(workspace: Workspace, command: str) -> None:
    """Check that the program exists; it has no options."""
    assert (ROOT / command.split("python ")[1].split()[0]).exists()


def configured(workspace: Workspace, command: str) -> None:
    """Check the arguments of the launcher and of the program, and the configuration, as a start does at first."""
    launcher, _, arguments = command.removesuffix(" &").partition(" -m hpcdistill ")
    if launcher.startswith("torchrun "):
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args([*shlex.split(launcher)[1:], "script"])
    args = build_parser().parse_args(shlex.split(arguments))
    load_config(args.config, config_class(), args)


def suite(workspace: Workspace, command: str) -> None:
    """Check that the tests exist."""
    named = re.findall(r"tests/[\w/]+\.py", command)
    assert named
    assert all((ROOT / each).exists() for each in named)


def gpu_check(workspace: Workspace, command: str) -> None:
    """Check that the script of the packed folder has the command; test_gpu_check.py runs it."""
    assert f'("{command.split()[2]}", ' in (ROOT / "tools/gpu_check/__main__.py").read_text()


def elsewhere(workspace: Workspace, command: str) -> None:
    """Leave out a command of another program, on another machine."""


def installed(workspace: Workspace, command: str) -> None:
    assert command in (ROOT / "tools/check_install.sh").read_text(), "run there, by `make install-check`"


def sbatch(workspace: Workspace, command: str) -> None:
    """Have Slurm estimate the start of the job, and hpcdistill read its configuration."""
    words = shlex.split(workspace.scratch(command, "new"))
    workspace.cluster().slurm("sbatch", "--test-only", *words[1:], cwd=workspace.folder)
    (at,) = [at for at, word in enumerate(words) if word.endswith(".sbatch")]
    name = {"train.sbatch": ["train"], "doctor.sbatch": ["doctor", "--slurm"]}[Path(words[at]).name]
    args = build_parser().parse_args([*name, *words[at + 1 :]])
    if name == ["train"]:
        load_config(args.config, config_class(), args)


def submit(workspace: Workspace, command: str) -> None:
    """Have Slurm estimate the start of the jobs, without GPUs, which its nodes do not have."""
    command = re.sub(r" --(partition=gpu|gpus-per-node=\d)", "", workspace.scratch(command, "new"))
    words = shlex.split(command)[3:]
    options = [word.removeprefix("--sbatch=") for word in words if word.startswith("--sbatch=")]
    workspace.monkeypatch.setenv("SLURM_CONF", workspace.cluster().environment["SLURM_CONF"])
    assert main([*words, f"--sbatch={' '.join(['--test-only', *options])}"]) == 0


def tensorboard(workspace: Workspace, command: str) -> None:
    """Have it print what it would show, instead of serving it."""
    run(workspace, f"{command} --inspect")


RULES: list[tuple[str, Callable[[Workspace, str], None]]] = [
    (r"^make \w", make),
    (r"^git clone … |^module load ", elsewhere),
    (r"^bash build/gpu-check/run ", gpu_check),
    (r"^pip install \.$", installed),
    (r"^\. tools/env\.sh$|^cp -r |^export |^tail ", run),
    (r"^tensorboard ", tensorboard),
    (r"^sbatch .*\.sbatch", sbatch),
    (r"^python -m hpcdistill submit ", submit),
    (r"^mpirun -np 4 python -m hpcdistill train configs/demo.toml ", train),
    (r"^(srun|torchrun|mpirun) .* -m hpcdistill train ", configured),
    (r"^python -m hpcdistill plan |^plan runs/", mentioned),  # needs a longer pilot
    (r"^python -m hpcdistill \w+ |^(status|report|compare|evaluate|churn) runs/", program),
    (r"^(python -m )?hpcdistill|^(prepare|train|evaluate) ", mentioned),
    (r"^(mpirun -np \d )?python (tools|examples)/\w+\.py( |$)", tool),
    (r"^torchrun .* examples/own_loop\.py$", elsewhere),
    (r"python benchmarks/\w+\.py", benchmark),
    (r"pytest .*tests/", suite),
]
TRAINING = next(block for block in SHELL if block.place.startswith("README") and "hpcdistill train" in block.text)


def execute(block: Block, workspace: Workspace) -> None:
    for command in block.commands:
        rule = next((rule for pattern, rule in RULES if re.search(pattern, command)), None)
        assert rule, f"{block.place}: there is no rule to test {command!r} by; add one to RULES"
        rule(workspace, command)
    workspace.run_script()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like the root of the repository, with data, a configuration, and the runs that commands name."""
    folder = tmp_path_factory.mktemp("workspace")
    for path in ROOT.iterdir():
        if path.name not in ("runs", "build") and not path.name.startswith(".git"):
            (folder / path.name).symlink_to(path)
    texts = folder / "my" / "texts"
    texts.mkdir(parents=True)
    for number in range(100):
        (texts / f"{number}.txt").write_text("All models teach each other what they have learnt.\n" * 20)
    write_tokenizer(folder / "my" / "tokenizer.json")
    config = (ROOT / "configs/demo.toml").read_text()
    (folder / "run.toml").write_text(config.replace("runs/demo/stdlib.h5", "data.h5").replace("runs/demo", "runs/new"))
    (folder / "slurm-1.out").touch()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        execute(TRAINING, Workspace(folder, monkeypatch, no_cluster))
    for name in ("runs/a", "runs/b", "runs/plain", "scratch/run"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(folder / "runs" / "mine")
    return folder


def no_cluster() -> Cluster:
    raise AssertionError("training in the README needs no Slurm")


def with_marks(block: Block) -> Any:
    slurm = any(re.match(r"(sbatch .*\.sbatch|python -m hpcdistill submit) ", each) for each in block.commands)
    marks = on_slurm if slurm else [pytest.mark.launch]
    return pytest.param(block, marks=marks, id=f"{block.place} {block.commands[0][:40]}")


@pytest.mark.parametrize("block", [with_marks(block) for block in SHELL])
def test_commands(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if block is TRAINING:
        assert (folder / "runs/mine/report.html").exists()
        return
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    execute(block, Workspace(folder, monkeypatch, lambda: request.getfixturevalue("cluster")))


@pytest.mark.alone
@pytest.mark.parametrize("document", DOCUMENTS, ids=[document.name for document in DOCUMENTS])
def test_tests_that_are_named_exist(document: Path) -> None:
    for path, words in re.findall(r"\b(tests/[\w/]+\.py)(?: -k (\w+))?", document.read_text()):
        assert (ROOT / path).exists(), path
        assert re.search(rf"^def test_\w*{words}", (ROOT / path).read_text(), re.M), f"no test {words} in {path}"


V, D = 11, 5
UNDER_MPIRUN = """
import torch
from hpcdistill import linear_codistillation_loss
torch.manual_seed(1)
my_rows, my_teacher_rows = torch.randn(11, 5, requires_grad=True), [torch.randn(11, 5)]
hidden, teacher_hidden, target = torch.randn(7, 5, requires_grad=True), [torch.randn(7, 5)], torch.arange(7)
"""
FOR_GROUPS = (
    "\nalone = linear_codistillation_loss(hidden, my_rows, target, teacher_hidden, my_teacher_rows)"
    "\ntorch.testing.assert_close(loss, alone)\nprint('as alone')"
)


class Model(nn.Module):
    """Trunk and head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(3, D), nn.Linear(D, V, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(inputs))


def names() -> dict[str, Any]:
    """Return the names that Python in the documentation presupposes."""
    student, teachers = Model(), [Model().requires_grad_(False) for _ in range(2)]
    inputs, targets = torch.randn(7, 3), torch.arange(7)
    return vars(
        SimpleNamespace(
            student=student,
            teachers=teachers,
            inputs=inputs,
            targets=targets,
            hidden=student.trunk(inputs),
            my_rows=student.head.weight,
            V=V,
            torch=torch,
            dist=dist,
            VocabParallel=VocabParallel,
        )
    )


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.launch
@pytest.mark.parametrize("block", PYTHON, ids=[block.place for block in PYTHON])
def test_python(block: Block, process_group: None, mpirun: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    if "Groups.create" in block.text:
        done = mpirun(2, "-c", UNDER_MPIRUN + block.text + FOR_GROUPS)
        assert done.stdout.count("as alone") == 2, done.stderr
        return
    space = names()
    exec(block.text, space)
    if "vocab_parallel" in space:
        student, teacher, inputs = space["student"], space["teachers"][0], space["inputs"]
        arguments = [student.trunk(inputs), student.head.weight, space["targets"], [teacher.trunk(inputs).detach()]]
        heads = [teacher.head.weight.detach()]
        loss = linear_codistillation_loss(*arguments, heads, vocab_parallel=space["vocab_parallel"])
        torch.testing.assert_close(loss, linear_codistillation_loss(*arguments, heads))
        return
    if space["student"].head.weight.grad is None:
        space["loss"].backward()
    assert space["student"].head.weight.grad.norm() > 0
    assert all(teacher.head.weight.grad is None for teacher in space["teachers"])
