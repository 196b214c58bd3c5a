"""Set-up on the GPU's machine, without network: packages from wheels, compiled kernels, and Horovod."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from gpu_check.folder import Packed, Work
from gpu_check.report import Report
from gpu_check.steps import Command, NotRunError, Steps

HOROVOD_JOBS = 12
AVERAGE = """
from mpi4py import MPI
import horovod.torch as hvd, torch
hvd.init(comm=MPI.COMM_WORLD)
average = hvd.allreduce(torch.full((9,), 3.0, device="cuda"))
print("yes" if hvd.nccl_built() and average.is_cuda and bool((average == 3).all()) else "no")
"""


class Environment:
    """Python of the machine with the carried packages above it, and the variables of all programs."""

    def __init__(self, packed: Packed, work: Work, is_dry: bool) -> None:
        self._packed, self._work = packed, work
        self.is_dry = is_dry
        self.project = work.project
        self.device = "cpu" if is_dry else "cuda"
        self.implementations = ("cpu",) if is_dry else ("triton", "cuda")

    @property
    def python(self) -> Path:
        """Python that sees the carried packages."""
        own = self._work.venv / "bin" / "python"
        return own if own.exists() else Path(sys.executable)

    @property
    def variables(self) -> dict[str, str]:
        """Environment of every program."""
        project = self.project
        paths = (project, project / "tools", project / "benchmarks", project / "tests" / "support")
        threads = {"OMP_NUM_THREADS": "1"} if self.is_dry else {}
        interpreter = {"TRITON_INTERPRET": "1"} if self.is_dry else {}
        return {
            **os.environ,
            **threads,
            **interpreter,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            "TRITON_CACHE_DIR": str(self._work.path / "triton"),
            "HF_HUB_OFFLINE": "1",
            "MPIR_CVAR_CH4_NETMOD": "ofi",
        }

    @property
    def _pip(self) -> Command:
        return [sys.executable, "-m", "pip", "--python", self.python]

    def probe(self, name: str, *arguments: str) -> Command:
        """Return the command that runs the program `probes/NAME.py`."""
        dry = ["--dry-run"] if self.is_dry else []
        return [self.python, "-m", f"gpu_check.probes.{name}", *arguments, "--device", self.device, *dry]

    def make_venv(self, steps: Steps, report: Report, seconds: float) -> None:
        """Install the carried wheels above the packages of this Python, unless that is done or none are carried."""
        wheels = sorted(self._packed.wheels.glob("*.whl"))
        report.fact("wheels", len(wheels))
        report.fact("python", f"{sys.executable} {sys.version.split()[0]}")
        if not wheels or (self._work.venv / "done").exists():
            return
        venv.create(self._work.venv, system_site_packages=True, clear=True)
        # This Python may be a virtual environment itself, whose packages a second one does not inherit. `addsitedir`
        # also runs their .pth files: one of setuptools brings distutils, which Horovod's build needs.
        (site,) = self._work.venv.glob("lib/python*/site-packages")
        parents = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        (site / "parent.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in parents))
        options = ["--no-index", "--no-deps", "--ignore-installed", "--no-compile", "--disable-pip-version-check"]
        command: Command = [*self._pip, "install", "--quiet", *options, *wheels]
        steps.call(command, seconds, self.variables)
        (self._work.venv / "done").touch()

    def build_kernels(self, steps: Steps, report: Report, seconds: float) -> None:
        """Compile the kernels for this GPU and this CPU, if they are not built yet."""
        kernels = self.project / "kernels"
        names = ("cpu",) if self.is_dry else ("cpu", "cuda")
        missing = [name for name in names if not (kernels / f"libhpcdistill_{name}.so").exists()]
        report.fact("built now", ", ".join(missing) or "nothing: all kernels were there")
        build = self._work.path / "kernels"
        if missing:
            options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF"]
            if not self.is_dry:
                options.append(f"-DHPCDISTILL_CUDA_ARCHITECTURES={self.architecture()}")
            steps.call(["cmake", "-S", self.project, "-B", build, *options], seconds / 4, self.variables)
        for name in names:
            try:
                if name in missing:
                    target = f"hpcdistill_{name}"
                    steps.call(["cmake", "--build", build, "--parallel", "--target", target], seconds, self.variables)
                    shutil.copy(build / "kernels" / f"libhpcdistill_{name}.so", kernels)
            except RuntimeError as error:
                report.bar(f"kernel {name} is built", str(error), "yes", False)
            else:
                report.bar(f"kernel {name} is built", "yes", "yes", True)

    def architecture(self) -> str:
        """Return the compute capability of the first GPU, such as 90."""
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
        return answer.split()[0].replace(".", "")

    def start_horovod(self) -> None:
        """Begin to build Horovod with NCCL in the background; `finish_horovod` waits for it."""
        source, folder = self._packed.horovod, self._work.horovod
        if source is None or self.is_dry or (folder / "log").exists():
            return
        folder.mkdir(parents=True)
        options = ["--no-deps", "--no-index", "--no-build-isolation", "--verbose"]
        command: Command = [*self._pip, "wheel", *options, "--wheel-dir", folder, source]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.variables | self._horovod_variables(),
            )
        self._horovod = process

    def finish_horovod(self, steps: Steps, report: Report, seconds: float) -> None:
        """Wait for the build of Horovod, and install it.

        Raises:
            NotRunError: its source is not carried, or an earlier command has not finished it.
            RuntimeError: the build has failed.
            TimeoutError: it has not ended in time, and was stopped.
        """
        folder, process = self._work.horovod, getattr(self, "_horovod", None)
        if process is not None:
            try:
                process.wait(timeout=max(1.0, seconds - 10))
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                shutil.rmtree(folder)
                raise TimeoutError(f"Horovod was not built in {seconds:.0f} s") from None
        wheels = sorted(folder.glob("horovod-*.whl"))
        if not wheels:
            if not (folder / "log").exists():
                raise NotRunError("it needs a GPU" if self.is_dry else "there is no source of Horovod here")
            raise RuntimeError(f"Horovod was not built: {(folder / 'log').read_text(errors='replace')[-1500:]}")
        options = ["--quiet", "--no-index", "--no-deps", "--ignore-installed", "--disable-pip-version-check"]
        command: Command = [*self._pip, "install", *options, wheels[0]]
        steps.call(command, 60, self.variables)
        status, output = steps.output_of([self.python, "-c", AVERAGE], 60, self.variables)
        answer = output.strip().splitlines()[-1:]
        report.bar("Horovod averages on the GPU, through NCCL", answer, "yes", not status and answer == ["yes"])

    def _horovod_variables(self) -> dict[str, str]:
        nccl = self._nccl_folder()
        links = self._work.path / "nccl"
        links.mkdir(exist_ok=True)
        if nccl is not None and not (links / "libnccl.so").exists():  # the wheel has no name without a version
            (links / "libnccl.so").symlink_to(nccl / "lib" / "libnccl.so.2")
        # The toolkit that nvcc itself names, since an nvcc on PATH may be a script that calls it.
        dry = subprocess.run(["nvcc", "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False)
        top = re.search(r"^#\$ TOP=(.*)", dry.stderr, re.M)
        cuda = Path(top[1]).resolve() if top else Path("/usr/local/cuda")
        return {
            "CMAKE_TOOLCHAIN_FILE": str(self.project / "tools" / "horovod.cmake"),
            "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
            "HOROVOD_CMAKE": shutil.which("cmake") or "cmake",
            "MAKEFLAGS": f"-j{HOROVOD_JOBS}",
            "MPI_HOME": str(self._work.venv),
            **dict.fromkeys(("HOROVOD_WITH_PYTORCH", "HOROVOD_WITH_MPI", "HOROVOD_WITHOUT_GLOO"), "1"),
            **dict.fromkeys(("HOROVOD_WITHOUT_TENSORFLOW", "HOROVOD_WITHOUT_MXNET"), "1"),
            "HOROVOD_CPU_OPERATIONS": "MPI",
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            **dict.fromkeys(("CUDA_HOME", "HOROVOD_CUDA_HOME"), str(cuda)),
            "HOROVOD_BUILD_CUDA_CC_LIST": self.architecture(),
            "HOROVOD_NCCL_INCLUDE": str(nccl / "include") if nccl else "",
            "HOROVOD_NCCL_LIB": str(links),
            "HOROVOD_NCCL_LINK": "SHARED",
        }

    def _nccl_folder(self) -> Path | None:
        """Return the folder of NCCL's wheel."""
        for name in ("purelib", "platlib"):
            folder = Path(sysconfig.get_path(name), "nvidia", "nccl")
            if folder.exists():
                return folder
        return None
