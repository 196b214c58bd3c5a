"""Speed of preparing tables: `hpcdistill prepare`, compared with polars only reading the same files.

    pip install polars
    python benchmarks/bench_prepare.py

Writes a table of 12 columns as CSV and as Parquet, and Criteo's lines. Then the programs run in turns, each in a new
process, start-up included. Files are in the page cache. On a machine with other load, the ratio of CPU times is more
reliable than that of wall-clock times.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import torch

from measure import machine, make_parser, ratio, write_json

BLOCK = 1 << 18  # rows written at a time
FORMATS = {
    "CSV": ("table", "table.csv", "read_csv(FILE)"),
    "Parquet": ("table", "table.parquet", "read_parquet(FILE)"),
    "Criteo": ("criteo", "criteo.tsv", "read_csv(FILE, separator='\\t', has_header=False, infer_schema_length=10_000)"),
}


def main() -> None:
    """Measure, print and write the results."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--rows", type=int, default=6_000_000, help="rows of the table; a third as many lines of Criteo"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program, in turns (default: 3)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: all")
    parser.add_argument("--folder", type=Path, help="folder for the files (default: a temporary folder)")
    default = Path(__file__).parent / "results" / "prepare-cpu.json"
    parser.add_argument("--output", type=Path, default=default, help=f"raw results as JSON (default: {default})")
    options = parser.parse_args()
    facts = machine(torch.device("cpu"))
    print(f"{facts}\n\n{'':<9}{'rows':>12}{'polars, s':>11}{'ours, s':>9}{'ratio':>7}{'of CPU':>8}", end="")
    print(f"{'rows/s':>12}{'peak, MB':>10}")
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        make_table(folder, options.rows)
        make_criteo(folder / "criteo.tsv", options.rows // 3)
        results = [compare(name, folder, options) for name in options.formats]
    finally:
        shutil.rmtree(folder)
    write_json(options.output, {"machine": facts, "results": results})


def compare(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the times of both programs and the peak memory of ours; print a line."""
    kind, file, reading = FORMATS[name]
    path = folder / file
    command = [sys.executable, "-m", "hpcdistill", "prepare", kind, "--input", str(path)]
    command += ["--output", str(folder / "data.h5"), *(["--label", "label"] if kind == "table" else [])]
    polars = [sys.executable, "-c", f"import polars; polars.{reading.replace('FILE', repr(str(path)))}"]
    clock: dict[str, list[float]] = {"polars": [], "ours": []}
    cpu: dict[str, list[float]] = {"polars": [], "ours": []}
    peak = 0
    for _ in range(options.rounds):
        for program, line in (("polars", polars), ("ours", command)):
            seconds, of_cpu, memory = run(line)
            clock[program].append(seconds)
            cpu[program].append(of_cpu)
            peak = max(peak, memory if program == "ours" else 0)
    rows = options.rows // 3 if kind == "criteo" else options.rows
    ours, others = (statistics.median(clock[program]) for program in ("ours", "polars"))
    print(
        f"{name:<9}{rows:>12,}{others:>11.2f}{ours:>9.2f}{ratio(clock, 'ours', 'polars'):>7.1f}"
        f"{ratio(cpu, 'ours', 'polars'):>8.1f}{rows / ours:>12,.0f}{peak / 1e6:>10.0f}",
        flush=True,
    )
    nbytes = path.stat().st_size
    return {"format": name, "rows": rows, "nbytes": nbytes, "clock": clock, "cpu": cpu, "peak_nbytes": peak}


def run(command: list[str]) -> tuple[float, float, int]:
    """Return the wall-clock and CPU time of a command, in seconds, and the peak memory of a process, in bytes."""
    script = (
        "import json, resource, subprocess, sys, time; begin = time.perf_counter(); "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "took = time.perf_counter() - begin; used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(json.dumps([took, used.ru_utime + used.ru_stime, used.ru_maxrss << 10]))"
    )
    answer = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True)
    took, cpu, memory = json.loads(answer.stdout)
    return took, cpu, memory


def make_table(folder: Path, rows: int) -> None:
    """Write integers, reals, words with few and many different values, and a label, as CSV and as Parquet."""
    random = np.random.default_rng(0)
    csv = parquet = None
    for begin in range(0, rows, BLOCK):
        table = block_of_table(random, min(BLOCK, rows - begin))
        if csv is None or parquet is None:
            plain = pyarrow.csv.WriteOptions(quoting_style="none")
            csv = pyarrow.csv.CSVWriter(folder / "table.csv", table.schema, write_options=plain)
            parquet = pyarrow.parquet.ParquetWriter(folder / "table.parquet", table.schema)
        csv.write(table)
        parquet.write(table)
    assert csv is not None
    assert parquet is not None
    csv.close()
    parquet.close()


def block_of_table(random: np.random.Generator, rows: int) -> pyarrow.Table:
    """Return a block of rows."""
    columns: dict[str, Any] = {f"integer_{power}": random.integers(0, 10**power, rows) for power in (2, 3, 4)}
    columns |= {f"real_{number}": np.round(random.standard_normal(rows), 4) for number in range(4)}
    for different in (10, 1000, 30_000, 1_000_000):
        words = (different ** random.random(rows)).astype(np.int64)  # few words are frequent, most are rare
        columns[f"word_{different}"] = pyarrow.compute.binary_join_element_wise(
            "w", pyarrow.array(words).cast("string"), ""
        )
    return pyarrow.table(columns | {"label": random.integers(0, 2, rows)})


def make_criteo(path: Path, rows: int) -> None:
    """Write lines like those of Criteo; a fifth of the integers is missing."""
    random = np.random.default_rng(0)
    with path.open("w") as file:
        for begin in range(0, rows, BLOCK // 8):
            count = min(BLOCK // 8, rows - begin)
            integers = (10 ** (4 * random.random((count, 13)))).astype(int).astype(str)
            integers[random.random(integers.shape) < 0.2] = ""
            values = (10 ** (6 * random.random((count, 26)))).astype(np.uint64) * 2654435761 % 2**32
            for label, counts, categories in zip(random.integers(0, 2, count), integers, values.tolist(), strict=True):
                file.write("\t".join([str(label), *counts, *(f"{value:08x}" for value in categories)]) + "\n")


if __name__ == "__main__":
    main()
