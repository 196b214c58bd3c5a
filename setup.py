"""Build of the compiled kernels by CMake, and the tag of the wheel; the metadata is in pyproject.toml.

HPCDISTILL_KERNELS=auto, the default, builds the kernels for CPUs and warns if that fails, as the loss then uses torch;
1 ends with an error if it fails; 0 builds none. The kernels for GPUs are built where there is an nvcc, and are always
optional: an nvcc may be too old, or not support the C++ compiler.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError


class BuildKernels(build_ext):
    """Build of each extension as the library of the same name in CMakeLists.txt."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return the file name of a library, which has no version of Python in it."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        """Build the library in a build folder of CMake, and copy it to where setuptools assembles the package."""
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


class AnyPythonWheel(bdist_wheel):
    """Wheel for every Python 3: ctypes loads the libraries, which use no ABI of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag: py3, none, and the platform, which is `any` where no library is built."""
        return "py3", "none", super().get_tag()[2]


def extensions() -> list[Extension]:
    """Return the kernels to build on this machine."""
    choice = os.environ.get("HPCDISTILL_KERNELS", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"HPCDISTILL_KERNELS is {choice!r}; choose auto, 0 or 1")
    if choice == "0":
        return []
    optional = {"cpu": choice == "auto"} | ({"cuda": True} if shutil.which("nvcc") else {})
    return [Extension(f"hpcdistill.kernels.libhpcdistill_{name}", [], optional=optional[name]) for name in optional]


setup(ext_modules=extensions(), cmdclass={"bdist_wheel": AnyPythonWheel, "build_ext": BuildKernels})
