"""Facts of the machine: driver, versions, and the two rates that all others are compared with."""

import ctypes
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import metadata

import torch

import hpcdistill
from device_events import EventTimer
from gpu_check.probes.options import make_parser
from gpu_check.report import Report

PACKAGES = ("torch", "triton", "numpy", "h5py", "mpi4py", "pytest", "hypothesis", "cmake", "ninja", "liger_kernel")
PROGRAMS = ("nvcc", "cmake", "ninja", "ncu", "compute-sanitizer", "nvidia-smi", "mpirun", "c++")


def main() -> None:
    """Write the report."""
    options = make_parser(__doc__).parse_args()
    report, device = Report(options.json), torch.device(options.device)
    report.fact("system", f"{platform.platform()}, Python {platform.python_version()}")
    report.fact("package", hpcdistill.__file__)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            report.fact(name, metadata.version(name))
    for name in PROGRAMS:
        report.fact(name, shutil.which(name) or "not on PATH")
    if device.type == "cuda":
        describe_gpu(report, device)
    measure_rates(report, device, options.dry_run)


def describe_gpu(report: Report, device: torch.device) -> None:
    """Report the driver and the properties of the GPU."""
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,compute_cap,clocks.sm",
        "--format=csv,noheader",
    ]
    with suppress(OSError):
        report.fact(
            "nvidia-smi says", subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        )
    try:
        ctypes.CDLL("libcuda.so.1")
        report.bar("libcuda.so.1 loads", "yes", "yes", True)
    except OSError as error:
        report.bar("libcuda.so.1 loads", str(error), "yes", False)
    try:
        ctypes.CDLL("libcuda.so")
        report.fact("libcuda.so", "loads")
    except OSError as error:
        report.fact("libcuda.so", f"{error}; Horovod with NCCL opens it by this name")
    properties = torch.cuda.get_device_properties(device)
    report.fact("GPU", properties.name)
    report.fact("multiprocessors", properties.multi_processor_count)
    report.fact("L2 bytes", properties.L2_cache_size)
    report.fact("CUDA of torch", torch.version.cuda)


def measure_rates(report: Report, device: torch.device, is_dry: bool) -> None:
    """Report the rate of a copy, bytes read and written, and of a product of matrices in bfloat16."""
    count, width = (1 << 20, 128) if is_dry else (1 << 32, 8192)
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
    destination = torch.empty_like(source)
    copy = median_seconds(partial(destination.copy_, source), device)
    report.fact("copy GB/s", 2 * count / copy / 1e9)
    del source, destination
    left, right = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = median_seconds(partial(torch.mm, left, right), device)
    report.fact(f"GEMM {width}³ bf16 TFLOP/s", 2 * width**3 / product / 1e12)


def median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of ten calls after three to warm up."""
    for _ in range(3):
        work()
    if device.type == "cuda":
        return statistics.median(EventTimer(device).seconds({"work": work}, 10)["work"])
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
