"""The check on a GPU: its parts, and a dry run of its commands from the packed folder alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repository import ROOT

sys.path.append(str(ROOT / "tools"))

from gpu_check import pack as packing
from gpu_check.folder import Packed
from gpu_check.page import page
from gpu_check.report import Report
from gpu_check.speed import METRICS, metrics_of
from gpu_check.steps import NotRunError, Steps

pytestmark = [pytest.mark.launch, pytest.mark.timeout(600)]

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Pack the project without wheels; return a function that runs a command there, and returns its results."""
    folder = tmp_path_factory.mktemp("check")
    packed = packing.pack(folder / "packed", with_packages=False, curve_steps=8)
    for library in (ROOT / "kernels").glob("*.so"):
        shutil.copy(library, packed.project / "kernels")

    def run(command: str, *options: str) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        arguments = [command, "--dry-run", "--results", folder / "results", "--work", folder / "work", *options]
        done = subprocess.run(
            ["bash", packed.path / "run", *arguments],
            cwd=folder,
            env=environment | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=560,
            check=False,
        )
        log = (folder / "results" / f"{command}.log").read_text()
        assert done.returncode == 0, done.stdout + done.stderr + log
        results: dict[str, Any] = json.loads((folder / "results" / f"{command}.json").read_text())
        assert f"# gpu_check {command}" in (folder / "results" / f"{command}.md").read_text()
        return {step["name"]: step for step in results["steps"]}

    return run


def statuses(steps: dict[str, Any]) -> dict[str, str]:
    return {name: step["status"] for name, step in steps.items()}


def test_truth(run: Run) -> None:
    steps = run("truth")
    assert "work/project/hpcdistill/" in steps["machine"]["facts"]["package"]
    ran = {name: status for name, status in statuses(steps).items() if status != "not run"}
    assert ran == {
        **dict.fromkeys(("machine", "packages"), "done"),
        **dict.fromkeys(("kernels", "cpu: first rows", "cpu: grid", "cpu: repeats", "tests"), "pass"),
    }
    assert steps["cpu: grid"]["tables"]["calls"] == [{"implementation": "cpu", "compared": 48}]
    assert steps["memcheck"]["note"] == "it needs a GPU"


def test_speed(run: Run) -> None:
    steps = run("speed", "--only", "kernels", "table", "loss of hidden states")
    assert steps["ncu"]["note"] == "it was not asked for"
    assert steps["table"]["tables"]["fraction of the copy rate"][0]["ours, of copy"] > 0
    assert {row["N"] for row in steps["loss of hidden states"]["tables"]["loss of hidden states"]} == {0, 1}


def test_trainer(run: Run) -> None:
    steps = run("trainer", "--only", "packages", "two groups", "curve")
    assert [bar["passed"] for bar in steps["two groups"]["bars"]] == [True] * 3
    assert {row["precision"] for row in steps["curve"]["tables"]["validation losses"]} == {"bf16"}


def test_steps_keep_to_their_time_and_say_what_is_not_run(tmp_path: Path) -> None:
    steps = Steps("truth", tmp_path, seconds=1000)
    endless = ["sh", "-c", "echo begun; exec sleep 1000"]

    def not_here(report: Report, seconds: float) -> None:
        raise NotRunError("there is none")

    def missed(report: Report, seconds: float) -> None:
        report.at_most("error", float("nan"), 1)

    steps.run("long", lambda report, seconds: steps.call(endless, seconds, dict(os.environ)), limit=2)
    steps.run("absent", not_here, limit=1)
    steps.run("missed", missed, limit=1)
    steps.run("after", missed, limit=1, needs=("long", "missed"))
    steps.run("late", missed, limit=1, least=2000)
    results = json.loads((tmp_path / "truth.json").read_text())["steps"]
    assert [(step["status"], re.sub(r"^9\d\d s", "990 s", step["note"])) for step in results] == [
        ("not finished", "sh had not ended after 2 s"),
        ("not run", "there is none"),
        ("FAIL", ""),
        ("not run", "it needs long, missed"),
        ("not run", "990 s are left of the command's time, it takes 2000 s or more"),
    ]
    assert not steps.passed
    assert "begun" in (tmp_path / "truth.log").read_text()
    assert "0 of 1 bars passed; missed: missed: error." in (tmp_path / "truth.md").read_text()


def test_a_program_that_fails_leaves_what_it_has_found(tmp_path: Path) -> None:
    steps = Steps("truth", tmp_path, seconds=100)
    program = (
        "import sys; from pathlib import Path; from gpu_check.report import Report; "
        "report = Report(Path(sys.argv[2])); report.fact('found', 1); sys.exit('an error')"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    steps.run("probe", lambda report, s: steps.probe(report, [sys.executable, "-c", program], s, variables), limit=20)
    (step,) = steps.results["steps"]
    assert step["status"] == "FAIL"
    assert step["facts"] == {"found": 1}
    assert "an error" in step["note"]
    assert {path.name for path in tmp_path.iterdir()} == {"truth.json", "truth.md", "truth.log"}


def test_a_page_has_a_row_for_each_bar_and_cells_without_bars() -> None:
    report = Report()
    report.at_most("error", 3e-7, 2e-6)
    report.row("errors", where="V=1 | N=0", error=3e-7)
    report.row("errors", other=1)
    text = page({"command": "truth", "note": "", "steps": [{"name": "grid", "status": "pass", **report.as_dict}]})
    assert "| grid | error | 3e-07 | ≤ 2e-06 | pass |" in text
    assert "| V=1 \\| N=0 | 3e-07 |  |" in text
    assert "|  |  | 1 |" in text


def test_the_counters_of_ncu_are_read() -> None:
    lines = ['"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    lines += [f'"0","kernel","{name}","x","1,234.5"' for name in METRICS]
    assert metrics_of("\n".join(["==PROF== Connected", *lines])) == dict.fromkeys(METRICS.values(), 1234.5)


def test_variants_change_a_launch_that_reads_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_check.cases import VARIED
    from gpu_check.probes.variants import VARIANTS

    from hpcdistill.kernels.triton_codistillation import INTERPRETED, launch_options

    for classes, teachers in VARIED:
        launch = launch_options(classes, 1 + teachers, False, 2, True, INTERPRETED)
        assert not launch["WHOLE"]
        changed = {name: change(launch) for name, change in VARIANTS.items()}
        assert changed["as it is"] == launch
        assert 2 * changed["half the tile"]["HEIGHT"] == 2 * changed["half the warps"]["HEIGHT"] == launch["HEIGHT"]
        assert launch.keys() - changed["registers of the compiler's choice"].keys() == {"maxnreg"}


def test_all_packages_that_are_carried_are_locked() -> None:
    locked = (ROOT / "requirements.lock").read_text()
    assert not [name for name in packing.LOCKED if f"\n{name}==" not in locked]
    assert packing.horovod_requirement().startswith("horovod==0.")


def test_packing_keeps_what_is_not_its_own_and_replaces_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "check"
    monkeypatch.setattr(packing, "make_store", lambda packed: None)
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(SystemExit, match="holds something else; name another --output"):
        packing.pack(folder, with_packages=False, curve_steps=0)
    (folder / "mine").rename(folder / "manifest.json")
    packed = packing.pack(folder, with_packages=False, curve_steps=0)
    assert (packed.project / "hpcdistill" / "kernels").is_symlink()
    assert json.loads(packed.manifest.read_text())["bytes"] == {"project": Packed(packed.project).nbytes()}
    monkeypatch.setattr(packing, "LIMIT", 1000)
    with pytest.raises(SystemExit, match=r"bytes, more than 1000: \{'project': \d+"):
        packing.pack(folder, with_packages=False, curve_steps=0)
    assert packed.manifest.exists()
