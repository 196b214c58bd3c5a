"""What pyproject.toml cannot say: how CMake builds the compiled kernels. The metadata is there.

HPCDISTILL_NATIVE=auto builds them where it can and warns where it cannot (the loss then falls back to torch on CPUs),
1 insists on the one for CPUs, 0 leaves them out. The one for GPUs is optional even where there is an nvcc: it may be
too old, or not get on with the C++ compiler.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError


class BuildKernels(build_ext):
    """Each extension is a library that CMake knows by the same name."""

    def get_ext_filename(self, fullname: str) -> str:
        """Plain `lib….so`: no Python version is in it."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        """Build the library in CMake's own folder and put it where the package is put together."""
        build = Path(self.build_temp, "cmake").absolute()
        library = ext.name.rpartition(".")[2]
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF"]
        try:
            subprocess.run(["cmake", "-S", Path(__file__).parent, "-B", build, *options], check=True)
            subprocess.run(["cmake", "--build", build, "--target", library.removeprefix("lib")], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"{library} was not built: {error}") from None
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / "kernels" / target.name), str(target))


def extensions() -> list[Extension]:
    """The kernels that this machine can build."""
    native = os.environ.get("HPCDISTILL_NATIVE", "auto")
    if native not in ("auto", "0", "1"):
        raise SystemExit(f"HPCDISTILL_NATIVE is {native!r}; choose auto, 0 or 1")
    optional = {"cpu": native == "auto"} | ({"cuda": True} if shutil.which("nvcc") else {})
    kernels = {} if native == "0" else optional
    return [Extension(f"hpcdistill.kernels.libhpcdistill_{name}", [], optional=kernels[name]) for name in kernels]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
