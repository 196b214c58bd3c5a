"""Speed of tokenising JSON lines: `hpcdistill prepare text --tokenizer`, compared with the library `tokenizers` alone.

    python benchmarks/bench_prepare_text.py

Writes JSON lines from the sources of Python's standard library, and a byte-level BPE tokenizer learned from some of
them. Then the programs run in turns, each in a new process: one that parses the lines with `json` and calls
`encode_batch_fast` for batches of documents, discarding the tokens; `prepare text`; and, where the texts fit in memory,
a program that has all texts in memory before the clock starts. All use all cores. Files are in the page cache.
On a machine with other load, the ratio of CPU times is more reliable than that of wall-clock times.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bench_prepare import run
from measure import machine, make_parser, ratio, write_json

VOCABULARY = 32_000
SAMPLE_BYTES = 10_000_000  # from which the vocabulary is learned
SEPARATOR = "<|endoftext|>"
LIBRARY = """
import json, sys
from itertools import islice
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    texts = (json.loads(line)["text"] for line in file)
    while batch := list(islice(texts, 1000)):
        tokenizer.encode_batch_fast(batch, add_special_tokens=False)
"""
IN_MEMORY = """
import json, sys, time
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    texts = [json.loads(line)["text"] for line in file]
begin = time.perf_counter()
for first in range(0, len(texts), 1000):
    tokenizer.encode_batch_fast(texts[first : first + 1000], add_special_tokens=False)
print(time.perf_counter() - begin)
"""


def main() -> None:
    """Measure, print and write the results."""
    parser = make_parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, metavar="MB", help="size of the text (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program, in turns (default: 3)")
    parser.add_argument("--in-memory", action="store_true", help="also run the program that has all texts in memory")
    parser.add_argument("--folder", type=Path, help="folder for the files (default: a temporary folder)")
    default = Path(__file__).parent / "results" / "prepare-text-cpu.json"
    parser.add_argument("--output", type=Path, default=default, help=f"raw results as JSON (default: {default})")
    options = parser.parse_args()
    facts = machine(torch.device("cpu"))
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        size = make_input(folder, options.megabytes * 1_000_000)
        print(f"{facts}\n{size / 1e6:,.0f} MB of text\n\n{'':<22}{'s':>8}{'CPU s':>8}{'MB/s':>8}{'peak, MB':>10}")
        results = compare(folder, size, options)
    finally:
        shutil.rmtree(folder)
    write_json(options.output, {"machine": facts, "results": results})


def compare(folder: Path, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure times and peak memory of the programs; print a line for each, and the ratios."""
    tokenizer, lines = str(folder / "tokenizer.json"), str(folder / "text.jsonl")
    ours = [sys.executable, "-m", "hpcdistill", "prepare", "text", "--input", lines, "--tokenizer", tokenizer]
    programs = {
        "tokenizers, JSON lines": [sys.executable, "-c", LIBRARY, tokenizer, lines],
        "prepare text": [*ours, "--output", str(folder / "data.h5")],
    }
    clock: dict[str, list[float]] = {name: [] for name in programs}
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    peak = dict.fromkeys(programs, 0)
    memory_clock = []
    for _ in range(options.rounds):
        for name, command in programs.items():
            seconds, of_cpu, nbytes = run(command)
            clock[name].append(seconds)
            cpu[name].append(of_cpu)
            peak[name] = max(peak[name], nbytes)
        if options.in_memory:
            command = [sys.executable, "-c", IN_MEMORY, tokenizer, lines]
            memory_clock.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
    for name in programs:
        seconds = statistics.median(clock[name])
        print(
            f"{name:<22}{seconds:>8.1f}{statistics.median(cpu[name]):>8.1f}{size / 1e6 / seconds:>8.2f}"
            f"{peak[name] / 1e6:>10.0f}"
        )
    if memory_clock:
        seconds = statistics.median(memory_clock)
        print(f"{'tokenizers, in memory':<22}{seconds:>8.1f}{'':>8}{size / 1e6 / seconds:>8.2f}")
    first, second = programs
    print(f"ratio of throughputs: {ratio(clock, first, second):.2f}; of CPU times: {ratio(cpu, second, first):.2f}")
    return {"nbytes": size, "clock": clock, "cpu": cpu, "peak_nbytes": peak, "in_memory_clock": memory_clock}


def make_input(folder: Path, size: int) -> int:
    """Write at least `size` bytes of text as JSON lines, and a tokenizer; return the size of the text in bytes."""
    sources = [*read_sources()]
    make_tokenizer(sources).save(str(folder / "tokenizer.json"))
    written = number = 0
    with (folder / "text.jsonl").open("w") as file:
        while written < size:
            copy, index = divmod(number, len(sources))
            text = f"# {copy}\n{sources[index]}"  # no two documents are equal
            file.write(json.dumps({"id": number, "text": text}) + "\n")
            written += len(text.encode())
            number += 1
    return written


def read_sources() -> Iterator[str]:
    """Yield the modules of the standard library that are UTF-8."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts:
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # tests of Python's have some
                continue


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """Learn a tokenizer like GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    count = size = 0
    while count < len(texts) and size < SAMPLE_BYTES:
        size += len(texts[count])
        count += 1
    tokenizer.train_from_iterator(texts[:count], trainer)
    return tokenizer


if __name__ == "__main__":
    main()
