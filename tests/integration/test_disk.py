"""Disks that are full, read-only or damaged, and writers that are killed, cost no more than what they affect."""

import json
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from constant_model import Constant
from hpcdistill.data.batches import Share
from hpcdistill.data.tokens.batches import sequence_batches
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.single import SingleProcess
from hpcdistill.errors import UserError
from hpcdistill.exchange import files
from hpcdistill.exchange.files import FilesExchange
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.models.registry import build_model, config_class
from hpcdistill.storage.checkpoints import KIND, Checkpoints
from hpcdistill.storage.metrics import Metrics, read_metrics
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import State, load_state
from hpcdistill.training.optimizer import build_optimizer
from hpcdistill.training.restart import Restart
from killed_writer import kill_at_random
from small_run import ALONE, Run, wait_until

pytestmark = pytest.mark.launch

CPU = torch.device("cpu")
PAGE = mmap.PAGESIZE  # a tmpfs is filled by whole pages
IS_ROOT = os.geteuid() == 0
SYSTEM = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


@dataclass(frozen=True)
class Disk:
    """Filesystem that only the processes of one mount namespace see."""

    inside: Path
    """Path at which they see it."""
    pid: int
    """Process that keeps the namespace."""

    @property
    def path(self) -> Path:
        """Path at which this process sees it."""
        return Path(f"/proc/{self.pid}/root{self.inside}")

    @property
    def enter(self) -> list[str]:
        """Command that runs another command in the namespace."""
        user = [] if IS_ROOT else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.pid}", *user, "--mount", f"--wd={Path.cwd()}"]

    def mount(self, *arguments: str | Path) -> None:
        subprocess.run([*self.enter, "mount", *arguments], check=True)

    def fill(self, leave: int) -> None:
        """Fill the disk, except for `leave` bytes."""
        self.empty()
        free = os.statvfs(self.path)
        (self.path / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - leave))

    def empty(self) -> None:
        """Remove what `fill` has written."""
        (self.path / "ballast").unlink(missing_ok=True)

    def litter(self) -> list[Path]:
        return list(self.path.rglob(".*"))


@contextmanager
def mounted(inside: Path, *arguments: str | Path) -> Iterator[Disk]:
    """Mount a disk for the time of the block; it ends with this process, too."""
    inside.mkdir()
    namespace = ["unshare", "--mount", *([] if IS_ROOT else ["--user", "--map-root-user"])]
    command = [*namespace, "sh", "-c", 'mount "$@" && echo mounted && read -r _', "sh", *arguments, inside]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as holder:
        assert holder.stdout
        assert holder.stderr
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"no mount of our own: bad disks are NOT TESTED here; {holder.stderr.read()}")
        yield Disk(inside, holder.pid)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m", "tmpfs") as disk:
        yield disk


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Disk]:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    if not shutil.which("mkfs.ext4", path=SYSTEM["PATH"]):
        pytest.skip("no mkfs.ext4: a disk that breaks is NOT TESTED here; Debian, Ubuntu: apt install e2fsprogs")
    subprocess.run(["mkfs.ext4", "-q", image], check=True, env=SYSTEM)
    with mounted(tmp_path / "disk", "-o", "loop", image) as disk:
        yield disk


def newest_step(run: RunDir, group: int = 0, strict: bool = True) -> int:
    state = Checkpoints(run, group, keep=2, owner={}).newest(strict)
    assert state
    return int(state["step"])


# Full


def test_a_disk_that_fills_up_costs_checkpoints_and_records_but_not_the_run(train: Run, tmpfs: Disk) -> None:
    options = (*ALONE, f"--run_dir={tmpfs.inside}/run", "--checkpoint.interval=5")
    run = partial(train, 1, *options, within=tmpfs.enter)
    assert run("--train.steps=10").returncode == 0
    tmpfs.fill(leave=2 * PAGE)  # too little for a checkpoint, and later for the metrics
    full = run("--train.steps=200", "--train.validate_every=100", "--resume")
    assert full.returncode == 0, full.stderr
    for step in range(15, 201, 5):
        assert f"warning: no checkpoint at step {step}: " in full.stderr
    assert "[Errno 28] No space left on device" in full.stderr
    assert full.stderr.count("warning: records are missing from") == 1
    assert "warning: no report: [Errno 28]" in full.stderr
    assert "Traceback" not in full.stderr
    assert tmpfs.litter() == []
    assert newest_step(RunDir(tmpfs.path / "run")) == 10
    *lines, end = RunDir(tmpfs.path / "run").metrics(0).read_text().split("\n")
    assert end == ""
    assert all(json.loads(line) for line in lines)
    tmpfs.empty()
    assert run("--train.steps=20", "--resume=strict").returncode == 0
    assert newest_step(RunDir(tmpfs.path / "run")) == 20
    header, records = read_metrics(RunDir(tmpfs.path / "run").metrics(0))
    assert [start["step"] for start in header["starts"]] == [0, 10, 10]
    assert [record["step"] for record in records if "loss" in record] == [5, 10, 15, 20]


def test_a_checkpoint_fails_cleanly_wherever_the_disk_becomes_full(tmpfs: Disk) -> None:
    """Check every page, because HDF5 itself does not survive this: see `hdf5._Disk`."""
    checkpoints = Checkpoints(RunDir(tmpfs.path), group=0, keep=2, owner={})
    state = {"step": 1} | {str(layer): {"weight": torch.randn(2000), "betas": [0.9, 0.999]} for layer in range(20)}
    checkpoints.save(1, state, is_best=True)
    files_before = list(tmpfs.path.rglob("*"))
    needed = RunDir(tmpfs.path).checkpoint(0, 1).stat().st_size // PAGE
    for pages in range(needed):
        tmpfs.fill(leave=pages * PAGE)
        with pytest.raises(OSError, match="No space left on device"):
            checkpoints.save(2, state, is_best=True)
        tmpfs.empty()
        assert list(tmpfs.path.rglob("*")) == files_before
    assert newest_step(RunDir(tmpfs.path)) == 1
    tmpfs.fill(leave=(needed + 1) * PAGE)
    checkpoints.save(2, state, is_best=True)


def test_metrics_that_cannot_be_begun_again_are_left_as_they_were(tmpfs: Disk) -> None:
    path = tmpfs.path / "metrics-g0.jsonl"
    Metrics(path, {"group": 0}, step=0).close()
    before = path.read_bytes()
    tmpfs.fill(leave=PAGE)
    with pytest.raises(UserError, match=r"metrics-g0\.jsonl cannot be written: No space left on device"):
        Metrics(path, {"group": 0, "long": "x" * PAGE}, step=0)
    assert path.read_bytes() == before
    assert tmpfs.litter() == []


def test_a_full_disk_costs_the_snapshots_of_its_time(tmpfs: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    model, heard = Constant(), []
    writer, reader = (exchange(group, tmpfs.path / "exchange", model) for group in (0, 1))
    reader.set_peers([0])
    for step, leave in ((1, 20 * PAGE), (2, PAGE), (3, 0), (4, 20 * PAGE)):
        tmpfs.fill(leave)
        model.become(step)
        assert writer.publish(step)
        while writer._offered:  # bounded by the test's timeout, as the next one
            time.sleep(1e-3)
        while step in (1, 4) and step not in heard:
            heard += [snapshot.step for snapshot in reader.collect()]
    assert heard == [1, 4]
    for each in (writer, reader):
        each.free()
    said = capsys.readouterr().err
    for step in (2, 3):
        assert f"group 0: no snapshot at step {step} for its peers: [Errno 28] No space left on device" in said
    assert tmpfs.litter() == []


def exchange(group: int, folder: Path, model: Constant) -> FilesExchange:
    return FilesExchange(Groups.alone(SingleProcess(), group, 2, CPU), WeightPayload(model), folder)


# Full or read-only from the start


def be_full(disk: Disk) -> None:
    disk.fill(leave=0)


def be_read_only(disk: Disk) -> None:
    """Mount read-only over the first mount, which cannot be changed while files are open, nor without root."""
    spare = disk.inside.with_name("spare")
    spare.mkdir()
    disk.mount("--bind", disk.inside, spare)
    disk.mount("-o", "remount,bind,ro", spare)
    disk.mount("--bind", spare, disk.inside)


@pytest.mark.parametrize(
    ("be_bad", "reason"), [(be_full, "No space left on device"), (be_read_only, "Read-only file system")]
)
def test_a_disk_that_takes_nothing_is_refused_at_the_start(
    be_bad: Callable[[Disk], None], reason: str, train: Run, tmpfs: Disk
) -> None:
    be_bad(tmpfs)
    result = train(2, f"--run_dir={tmpfs.inside}/run", within=tmpfs.enter)
    assert result.returncode != 0
    remedy = "make room there, or choose another --run_dir"
    assert f"error: run_dir = {tmpfs.inside}/run cannot be written to: {reason}; {remedy}" in result.stderr
    assert "Traceback" not in result.stderr


# Read-only from one moment on


def break_down(disk: Disk) -> None:
    """Abort the filesystem as ext4 does after a hardware error: open files cannot be written either."""
    disk.mount("-o", "remount,abort", disk.inside)


@pytest.mark.parametrize(
    ("kind", "go_bad", "lost"),
    [
        ("tmpfs", be_read_only, ["no checkpoint at step", "no report"]),
        ("ext4", break_down, ["no checkpoint at step", "no report", "records are missing from"]),
    ],
)
def test_a_disk_that_becomes_read_only_does_not_end_the_run(
    kind: str, go_bad: Callable[[Disk], None], lost: list[str], train: Run, request: pytest.FixtureRequest
) -> None:
    if kind == "ext4" and not IS_ROOT:
        pytest.skip("not root: a disk that breaks is NOT TESTED here")
    disk = request.getfixturevalue(kind)
    run = RunDir(disk.path / "run")
    with ThreadPoolExecutor() as pool:
        options = (f"--run_dir={disk.inside}/run", "--train.steps=300", "--train.validate_every=300")
        job = pool.submit(train, 2, *options, within=disk.enter)
        wait_until(lambda: job.done() or run.find_groups() == [0, 1])
        go_bad(disk)
        result = job.result()
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    for what in lost:
        assert f"warning: {what}" in result.stderr
    assert "[Errno 30] Read-only file system" in result.stderr
    for group in (0, 1):
        assert newest_step(run, group) < 300


# Damaged


@pytest.fixture
def restart_files(data: Path, tmp_path: Path) -> RunDir:
    """Make a run folder with real checkpoints of steps 1 and 2."""
    config = config_class()(
        run_dir=tmp_path, groups=1, data={"path": data}, codistill={"weight": 0}, model={"hidden": 8}
    )
    groups, store = Groups.split(SingleProcess(), (1,), CPU), TokenStore(data)
    model = build_model(config.model, store)
    optimizer = build_optimizer(config.optimizer, model)
    batches = sequence_batches(store, config.data, Share())
    with Restart(config, groups, model, None, optimizer, batches, store.identity) as restart:
        for step in (1, 2):
            model(*next(batches).inputs).sum().backward()
            optimizer.step()
            restart.save(step, last=True)
    return RunDir(tmp_path)


def places(path: Path) -> dict[str, int]:
    """Return the offset of a byte in each part of a state file: datasets, user block, HDF5's structures."""
    content, found = path.read_bytes(), {}

    def note(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset) and item.size:
            begin = item.id.get_offset()
            assert content[begin : begin + item.nbytes] == item[()].tobytes()
            found[name] = begin + item.nbytes // 2

    with h5py.File(path) as file:
        file.visititems(note)
    marks = {"kind": b"hpcdistill", "digest": b"blake2b ", "HDF5": b"\x89HDF", "name": b"wire", "attribute": b"dtype"}
    found |= {f"<{name}>": content.index(mark) + len(mark) + 1 for name, mark in marks.items() if mark in content}
    return found | {"<user block's end>": 511, "<end>": len(content) - 1}


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found(restart_files: RunDir) -> None:
    path = restart_files.checkpoint(0, 2)
    content, parts = path.read_bytes(), places(path)
    assert {name.split("/")[1] for name in parts if "/" in name} >= {"model", "optimizer", "ranks", "step"}
    for place in parts.values():
        path.write_bytes(flipped(content, place))
        assert_refused(restart_files, path)


def test_a_truncated_checkpoint_is_refused_at_every_length(restart_files: RunDir) -> None:
    path = restart_files.checkpoint(0, 2)
    content = path.read_bytes()
    for length in sorted({0, 1, 100, 512, 513, 520, 608, len(content) // 2, *places(path).values()}):
        path.write_bytes(content[:length])
        assert_refused(restart_files, path)
    path.write_bytes(content)
    assert newest_step(restart_files) == 2


def assert_refused(run: RunDir, path: Path) -> None:
    with pytest.raises(UserError, match=r"is damaged|is not a checkpoint"):
        load_state(path, KIND)
    assert newest_step(run, strict=False) == 1


def test_a_flipped_bit_anywhere_in_a_snapshot_is_found(tmp_path: Path) -> None:
    writer = exchange(0, tmp_path, Constant())
    assert writer.publish(1)
    writer.free()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert load_state(path, files.KIND)["step"] == 1
    assert places(path).keys() > {"codec", "step", "tensors", "wire"}
    for place in places(path).values():
        path.write_bytes(flipped(content, place))
        with pytest.raises(UserError, match=r"is damaged|is not a snapshot"):
            load_state(path, files.KIND)


# Killed


def save_for_ever(checkpoints: Checkpoints, complete: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
    for step in range(int(complete[0]) + 1, 1 << 30):
        is_best = step % 3 == 0
        checkpoints.save(step, state_of(step), is_best)
        complete[is_best] = complete[0] = step


def state_of(step: int) -> State:
    return {"step": step, "model": {"weight": torch.full((300_000,), step % 256, dtype=torch.uint8)}}


def assert_whole(state: State) -> int:
    assert (state["model"]["weight"] == state["step"] % 256).all()
    return int(state["step"])


def test_a_checkpoint_writer_killed_at_any_moment_costs_one_checkpoint_at_most(tmp_path: Path) -> None:
    checkpoints, folder = Checkpoints(RunDir(tmp_path), group=0, keep=2, owner={}), tmp_path / "checkpoints"
    complete = np.frombuffer(mmap.mmap(-1, 16), np.int64)  # the newest and the best step; shared with the writer
    random, interrupted = Random(0), 0
    for _ in range(60):
        kill_at_random(partial(save_for_ever, checkpoints, complete), random, lambda: complete[1] > 0)
        newest = checkpoints.newest(strict=True)
        assert (assert_whole(newest) if newest else 0) >= complete[0]
        interrupted += any(folder.glob(".*"))
        checkpoints.remove_temporary_files()
        steps = {path.name: assert_whole(load_state(path, KIND)["state"]) for path in folder.glob("*")}
        best = steps.pop("g0-best.h5", 0)
        assert best >= complete[1]
        assert best % 3 == 0
        assert len(steps) <= 3  # two are kept; one may not have been removed yet
    assert interrupted
    assert complete[1] > 0
