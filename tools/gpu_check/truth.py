"""Command `truth`: builds of the kernels, and comparisons of their results with the formula."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from functools import partial

from gpu_check.environment import Environment
from gpu_check.report import Report
from gpu_check.steps import Action, Command, NotRunError, Steps

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


def run(steps: Steps, environment: Environment) -> None:
    """Run the steps of this command."""

    def probe(*command: str) -> Action:
        return lambda report, seconds: steps.probe(report, environment.probe(*command), seconds, environment.variables)

    set_up(steps, environment)
    for name in environment.implementations:
        chosen, right = ("--implementation", name), (f"{name}: first rows",)
        steps.run(right[0], probe("rows", "first", *chosen), limit=60)
        if name == "triton":
            action = partial(compile_ahead, steps, environment, "grid")
            steps.run("triton: compile", action, limit=120, least=30, needs=right)
        steps.run(f"{name}: grid", probe("rows", "grid", *chosen), limit=120, least=20, needs=right)
        steps.run(f"{name}: repeats", probe("repeats", *chosen), limit=45, least=15, needs=right)
    for tool in SANITIZERS:
        action = partial(sanitize, steps, environment, tool)
        steps.run(tool, action, limit=60, least=20, needs=() if environment.is_dry else ("cuda: first rows",))
    steps.run("tests", partial(run_tests, steps, environment), limit=300, least=60)
    steps.run("Horovod", partial(environment.finish_horovod, steps), limit=240, least=5, needs=("packages",))


def set_up(steps: Steps, environment: Environment) -> None:
    """Look at the machine, install the packages, build the kernels, and begin to build Horovod."""

    def look(report: Report, seconds: float) -> None:
        steps.probe(report, environment.probe("machine"), seconds, environment.variables)

    def build(report: Report, seconds: float) -> None:
        environment.build_kernels(steps, report, seconds)
        environment.start_horovod()

    steps.run("machine", look, limit=90)
    steps.run("packages", partial(environment.make_venv, steps), limit=60)
    steps.run("kernels", build, limit=150)


def compile_ahead(steps: Steps, environment: Environment, calls: str, report: Report, seconds: float) -> None:
    """Compile the kernels of Triton for these calls in several processes."""
    if environment.is_dry:
        raise NotRunError("it needs a GPU")
    count, end = min(16, len(os.sched_getaffinity(0))), time.monotonic() + seconds
    with steps.log.open("ab") as log:
        processes = [
            subprocess.Popen(
                [str(word) for word in environment.probe("rows", calls, "--share", f"{number}/{count}")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment.variables | {"OMP_NUM_THREADS": "1"},
            )
            for number in range(count)
        ]
        try:
            wrong = sum(process.wait(timeout=max(0.1, end - time.monotonic())) != 0 for process in processes)
        except subprocess.TimeoutExpired:
            raise TimeoutError("the rest is compiled when it is called first") from None
        finally:
            for process in processes:
                process.kill()
                process.wait()
    report.fact("processes", count)
    report.at_most("processes that failed", wrong, 0)


def run_tests(steps: Steps, environment: Environment, report: Report, seconds: float) -> None:
    """Run the tests of losses and kernels."""
    select = (
        ["tests/losses/test_buffers.py"]
        if environment.is_dry
        else ["-m", "not launch", "tests/kernels", "tests/losses"]
    )
    command: Command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *select]
    status, output = steps.output_of(command, seconds, environment.variables, environment.project)
    summary = output.strip().splitlines()[-1] if output.strip() else "no output"
    report.fact("pytest", summary)
    report.fact("skipped", re.findall(r"^SKIPPED .*", output, re.M))
    report.bar(
        "tests of losses and kernels", re.findall(r"^FAILED .*|^ERROR .*", output, re.M) or summary, "pass", not status
    )


def sanitize(steps: Steps, environment: Environment, tool: str, report: Report, seconds: float) -> None:
    """Run a few calls of the CUDA kernel under compute-sanitizer."""
    if environment.is_dry or shutil.which("compute-sanitizer", path=environment.variables["PATH"]) is None:
        raise NotRunError("compute-sanitizer is not on PATH" if not environment.is_dry else "it needs a GPU")
    options = ["--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kernel_substring=codistillation"]
    if tool == "memcheck":
        options += ["--leak-check", "no"]
    calls = environment.probe("rows", "sanitized", "--implementation", "cuda")
    # Without torch's cache, each tensor is an allocation of its own, beyond whose end nothing may be read.
    variables = environment.variables | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    status, output = steps.output_of(["compute-sanitizer", *options, *calls], seconds, variables)
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    report.fact("summary", summary or output[-300:])
    report.bar(f"{tool}: errors", (summary or [f"status {status}"])[-1], "none", not status and bool(summary))
