"""Speeds, by the functions of benchmarks/: the fused loss, the loss of hidden states, and one kernel for a profiler."""

import argparse
from typing import Any

import torch

import bench_linear_loss
import bench_loss
from gpu_check import cases
from gpu_check.probes.options import make_parser
from gpu_check.report import Report
from measure import ratio, spread

COPY_BAR = {("H100", 1): 0.65, ("H200", 1): 0.50}
"""Estimated fraction of the copy rate for N = 1 in bfloat16, by card, at V = 32000 and more."""
LINEAR_BAR = {"ours": 1.20, "ours, 16-bit logits": 1.15}
"""Largest time of the loss of hidden states, in times of its GEMMs."""
CUDA_OVER_TRITON = 1.1
"""Speed of the CUDA kernel, in speeds of Triton's, from which "auto" should take it."""


def main() -> None:
    """Run the chosen measurement."""
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["table", "others", "linear", "one"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--call", nargs=3, help="implementation, V and N of the kernel for the profiler")
    options = parser.parse_args()
    report, device = Report(options.json), torch.device(options.device)
    torch._inductor.config.compile_threads = 1
    if options.what == "one":
        implementation, classes, teachers = options.call
        profile_one(implementation, int(classes), int(teachers), device)
    elif options.what == "linear":
        measure_linear(report, options, device)
    else:
        measure_table(report, options, device)


def measure_table(report: Report, options: argparse.Namespace, device: torch.device) -> None:
    """Report the speed of each setting; with "others", of a few settings beside eager torch and torch.compile."""
    ours_only = options.what == "table"
    settings = list(cases.table(options.dry_run))
    if not ours_only:
        settings = [setting for setting in settings if setting[0] in (1000, 32000, 128256) and setting[2] == "bf16"]
    megabytes, rounds = (0.1, 2) if options.dry_run else (512, options.rounds)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for V, N, dtype in settings:
        result = bench_loss.measure(bench_loss.Setting(V, N, dtype), megabytes, rounds, device, ours_only)
        seconds = result["seconds"]
        row: dict[str, Any] = {"V": V, "N": N, "dtype": dtype}
        row["copy GB/s"] = 2 * result["tensor_bytes"] / sorted(seconds["copy"])[len(seconds["copy"]) // 2] / 1e9
        for name in seconds:
            if name != "copy":
                row[f"{name}, of copy"] = bench_loss.of_copy(result, name)
        row["spread"] = max(spread(each) for each in seconds.values())
        row |= {f"host µs, {name}": 1e6 * each for name, each in result.get("host_seconds", {}).items()}
        row["launches of ours"] = sum(result.get("launches", {}).get("ours", {}).values())
        row["cannot run"] = "; ".join(f"{name}: {why[:60]}" for name, why in result.get("absent", {}).items())
        report.row("fraction of the copy rate" if ours_only else "beside others", **row)
        if ours_only:
            judge(report, result, card)
    if ours_only and device.type == "cuda":
        report.fact("where auto should take cuda", faster_with_cuda(report) or "nowhere")


def judge(report: Report, result: dict[str, Any], card: str) -> None:
    """Compare a setting with the estimates for this card, and its launches with one per kernel."""
    V, N, dtype = (result[name] for name in ("classes", "teachers", "dtype"))
    alone = [name for name in result["seconds"] if name.startswith("kernel ")]
    if wrong := bench_loss.wrong_launches(result):
        report.bar(f"V={V} N={N} {dtype}: launches", str(wrong), "one for each kernel", False)
    for name, limit in ((name, bar) for (name, teachers), bar in COPY_BAR.items() if name in card and teachers == N):
        if dtype == "bf16" and V >= 32000 and V % 8 == 0 and alone:
            best = max(bench_loss.of_copy(result, each) for each in alone)
            report.at_least(f"V={V} N={N} {dtype}: the faster kernel, of the copy rate ({name})", best, limit)


def faster_with_cuda(report: Report) -> str:
    """Return the settings in which the CUDA kernel is faster than Triton's by so much that "auto" should take it."""
    found = []
    for row in report.tables["fraction of the copy rate"]:
        cuda, triton = row.get("kernel cuda, of copy"), row.get("kernel triton, of copy")
        if cuda and triton and cuda >= CUDA_OVER_TRITON * triton:
            found.append(f"V={row['V']} N={row['N']} {row['dtype']} ({cuda / triton:.2f}×)")
    return ", ".join(found)


def measure_linear(report: Report, options: argparse.Namespace, device: torch.device) -> None:
    """Report the time of the loss of hidden states in times of its GEMMs."""
    for N in (0, 1):
        tokens, width, classes = (16, 8, 100) if options.dry_run else (8192, 4096, 128256)
        setting = bench_linear_loss.Setting(tokens, width, classes, N, "bf16")
        result = bench_linear_loss.measure(setting, 2 if options.dry_run else options.rounds, device, ours_only=True)
        seconds = result["seconds"]
        for name, peak in result["peak_extra_bytes"].items():
            of_gemms = ratio(seconds, name, "GEMMs")
            launched = sum(result.get("launches", {}).get(name, {}).values())
            milliseconds = 1e3 * sorted(seconds[name])[len(seconds[name]) // 2]
            values = {"N": N, "contender": name, "ms": milliseconds, "of the GEMMs": of_gemms, "launches": launched}
            report.row("loss of hidden states", **values, spread=spread(seconds[name]), peak_MB=peak / 1e6)
            if name in LINEAR_BAR and device.type == "cuda":
                report.at_most(f"{setting} {name}: times the GEMMs", of_gemms, LINEAR_BAR[name])


def profile_one(implementation: str, classes: int, teachers: int, device: torch.device) -> None:
    """Run one kernel between the calls that start and stop a profiler, after a first call that compiles it."""
    setting = bench_loss.Setting(classes, teachers, "bf16")
    student, others, target = bench_loss.random_inputs(setting, 512, device)
    works, absent = bench_loss.kernels(student.detach(), target, others)
    if implementation in absent:
        raise SystemExit(f"{implementation} cannot run: {absent[implementation]}")
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    works[f"kernel {implementation}"]()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
