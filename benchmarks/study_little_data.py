"""Little data for the compute: two codistilled beside other ways to spend the same.

At equal total cost, in which each teacher's forward pass counts: one model, one with twice or four times the batch, two
that codistil on the same data, one that learns from its own earlier self, one with smoothed labels, and an ensemble of
two. All validate a moving average of their weights. Each is tuned over the same learning rates and weight decays on one
seed; the results are from others.
"""

from __future__ import annotations

import argparse
import random
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from equal_cost import Arm, Found, Regime, as_json, best_of, compare, table
from hpcdistill.data.rows.store import RowStore, write_rows
from study import CLICKS, RUNS, Study, add_seeds, interval, prepare, prepare_clicks

ONE, DOUBLE, FOURFOLD = "one", "one, twice the batch", "one, four times the batch"
WEIGHTS = (0.3, 1.0)
"""Weights of the distillation term."""

TEXT_BYTES, VALIDATION_BYTES = 50_000, 25_600
CLICK_ROWS, VALIDATION_ROWS = 20_000, 10_000
IMAGE_SIZE = 16
COMMON = ("--data.partition=same", "--train.average=0.98")
"""Options of all regimes."""


def arms() -> dict[str, Arm]:
    """Return the arms by their names in tables."""
    apart = ("--codistill.weight=0",)
    smoothed = ("--codistill.teachers=uniform", "--codistill.weight=0.1", "--codistill.burn_in=0")
    return {
        ONE: Arm("one", options=apart),
        DOUBLE: Arm("double", batch=2, options=apart),
        FOURFOLD: Arm("fourfold", batch=4, options=apart),
        **{
            f"two codistilled, weight {weight:g}": Arm(
                f"codistilled{weight:g}", groups=2, teachers=1, options=(f"--codistill.weight={weight:g}",)
            )
            for weight in WEIGHTS
        },
        **{
            f"one, its own teacher, weight {weight:g}": Arm(
                f"self{weight:g}", teachers=1, options=("--codistill.teachers=self", f"--codistill.weight={weight:g}")
            )
            for weight in WEIGHTS[1:]
        },
        "one, smoothed labels": Arm("smoothed", options=smoothed),
        "ensemble of two apart": Arm("apart", groups=2, options=apart, is_ensemble=True),
        "each of two apart (half the cost)": Arm("apart", groups=2, options=apart),
    }


def clicks() -> Regime:
    """Return the regime of few rows."""
    options = (f"--data.path={prepare_rows(CLICK_ROWS)}", "--optimizer.decay=linear", *COMMON)
    return Regime("clicks", "clicks", options, 128, 3000, rates=(3e-3, 6e-3), decays=(0.5, 2.0))


def prepare_rows(count: int) -> Path:
    """Prepare a store of the first `count` rows of the synthetic clicks, and return its path."""
    prepare_clicks()
    path = RUNS / "data" / f"clicks-{count}.h5"
    if not path.exists():
        with RowStore(CLICKS) as store:
            sizes = {"train": count, "validation": VALIDATION_ROWS}
            pieces = [(part, store.read(part, 0, size)) for part, size in sizes.items()]
            write_rows(path, pieces, store.fields, f"the first rows of {CLICKS.name}")
    return path


def text(file: Path | None) -> Regime:
    """Return the regime of little text: the beginning of a file, by default of the standard library's modules."""
    path = RUNS / "data" / f"little-{file.stem if file else 'stdlib'}.h5"
    if not path.exists():
        content = file.read_bytes() if file else _modules()
        cut = path.with_suffix("")
        cut.mkdir(parents=True, exist_ok=True)
        (cut / "train.txt").write_bytes(content[:TEXT_BYTES])
        (cut / "validation.txt").write_bytes(content[TEXT_BYTES : TEXT_BYTES + VALIDATION_BYTES])
        prepare(path, "text", "--input", str(cut / "train.txt"), "--validation", str(cut / "validation.txt"))
    options = (
        *(f"--data.path={path}", *COMMON, "--model.hidden=96"),
        *("--optimizer.decay=cosine", "--train.clip_norm=1"),
    )
    return Regime("text", "language", options, 8, 18_000, rates=(1e-2, 2e-2), decays=(0.25, 0.5))


def images(folders: Sequence[Path] | None, count: int) -> Regime:
    """Return the regime of `count` images; see `prepare_subset`."""
    path = prepare_subset(folders, count)
    options = (f"--data.path={path}", *COMMON, "--model.layers=18", "--model.width=8", "--optimizer.warmup=20")
    return Regime(f"images-{count}", "images", options, 64, 6000, rates=(0.03, 0.1), decays=(5e-4, 5e-3))


def prepare_subset(folders: Sequence[Path] | None, count: int) -> Path:
    """Prepare a store of `count` training images, as many of each class, and return its path.

    Args:
        folders: of training and of validation images, each with a folder for each class.
        count: number of training images; the first of each class are taken.

    Raises:
        SystemExit: no folders are named, or one has too few files.
    """
    if folders is None:
        raise SystemExit("no folders of images are named; use --images TRAINING VALIDATION")
    training, validation = folders
    path = RUNS / "data" / f"images-{count}.h5"
    if not path.exists():
        chosen = path.with_suffix("")
        classes = sorted(each for each in training.iterdir() if each.is_dir())
        for each in classes:
            files = sorted(each.iterdir())[: count // len(classes)]
            if len(files) < count // len(classes):
                raise SystemExit(f"{each} has {len(files)} files, fewer than {count} / {len(classes)}; add more")
            (chosen / each.name).mkdir(parents=True, exist_ok=True)
            for file in files:
                link = chosen / each.name / file.name
                if not link.exists():
                    link.symlink_to(file.resolve())
        size = ("--size", str(IMAGE_SIZE))
        prepare(path, "images", "--input", str(chosen), "--validation", str(validation), *size)
    return path


def _modules() -> bytes:
    """Return the source of the standard library's modules, in an order drawn at random."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(0).shuffle(files)
    return b"".join(file.read_bytes() for file in files)


def draw(found: Mapping[str, Found], regime: Regime) -> Figure:
    """Draw each arm's losses by seed, their mean and its 95 % interval."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for place, each in enumerate(found.values()):
        mean, half = interval(each.losses)
        axes.plot(each.losses, [place] * len(each.losses), ".", color="#99a")
        axes.errorbar(mean, place, xerr=half, fmt="k|", capsize=4)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set(title=regime.name, xlabel="lowest validation loss, in nats")
    return figure


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    regimes = ("clicks", "text", "images-2500", "images-10000")
    parser.add_argument(
        "--regimes", nargs="+", choices=regimes, default=["clicks", "text"], help="default: the first two"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="text (default: the standard library's source)")
    add_images(parser)
    add_seeds(parser)


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the option that names folders of images."""
    parser.add_argument(
        "--images",
        type=Path,
        nargs=2,
        metavar=("TRAINING", "VALIDATION"),
        help="folders of images, each with a folder for each class; needed for images",
    )


def main() -> None:
    """Train all arms in each regime and write the results."""
    study = Study("little_data", __doc__, add_options)
    options = study.options
    makers: dict[str, Callable[[], Regime]] = {
        "clicks": clicks,
        "text": lambda: text(options.text),
        "images-2500": lambda: images(options.images, 2500),
        "images-10000": lambda: images(options.images, 10_000),
    }
    for regime in [makers[name]() for name in options.regimes]:
        found, runs = compare(study, regime, arms(), range(1, 1 + options.seeds))
        base = best_of(found, (ONE, DOUBLE, FOURFOLD))
        study.write_figure(draw(found, regime), part=regime.name)
        study.write_results(runs, table(found, base), part=regime.name, **as_json(regime, found))


if __name__ == "__main__":
    main()
