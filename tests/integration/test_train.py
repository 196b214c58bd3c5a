"""The train command on real ranks: groups train, teach each other, restart, and end with clear errors."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.config.data import DataConfig
from hpcdistill.data.images.store import Kind, write_images
from hpcdistill.data.rows.prepare_synthetic import prepare_clicks
from hpcdistill.data.rows.store import RowStore
from hpcdistill.errors import UserError
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.metrics import read_metrics
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import State, load_state
from hpcdistill.tasks.registry import open_task
from hpcdistill.training.setup import dropout_seed
from small_run import ALONE, LSTM, SMALL, Run, wait_until

pytestmark = pytest.mark.launch

AVERAGED = ("--groups=1", "--train.average=0.9", "--codistill.teachers=self", "--codistill.exchange_interval=15")


@pytest.fixture(scope="module")
def finished(mpirun: Run, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train one model on two ranks for 40 steps, taught by its own average; return the run folder, which tests copy."""
    folder = tmp_path_factory.mktemp("finished")
    config = folder / "small.toml"
    config.write_text(f'run_dir = "{folder / "run"}"\n{SMALL}')
    result = mpirun(2, "-m", "hpcdistill", "train", config, f"--data.path={data}", *AVERAGED)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@given(st.integers(0, 2**70), st.lists(st.integers(1, 30), min_size=1, max_size=30))
def test_no_two_ranks_draw_the_same_dropout(seed: int, sizes: list[int]) -> None:
    ranks = [(group, rank) for group, size in enumerate(sizes) for rank in range(size)]
    seeds = {dropout_seed(seed, *rank) % 2**32 for rank in ranks}  # the generator of a CPU uses the last 32 bits
    assert len(seeds) == len(ranks)
    torch.manual_seed(dropout_seed(seed, *ranks[-1]))
    assert dropout_seed(seed + 1, *ranks[-1]) % 2**32 not in seeds


def load(path: Path) -> State:
    return load_state(path, "checkpoint")


def test_groups_train_and_teach_each_other(train: Run, tmp_path: Path) -> None:
    # Enough steps to recover from an early teacher, which stays for long if the peer is slow.
    result = train(4, "--train.steps=120")
    assert result.returncode == 0, result.stderr
    assert "120/120" in result.stderr  # the progress bar's last line
    for group in (0, 1):
        header, records = read_metrics(RunDir(tmp_path / "run").metrics(group))
        assert header["config"]["groups"] == 2
        assert header["ranks_per_group"] == 2
        validation = [record["validation_loss"] for record in records if "validation_loss" in record]
        assert validation[-1] < validation[0] < 5.5  # ln 256 = 5.545 is the loss of chance
        taught = [record for record in records if record.get("staleness")]
        assert taught, "no teacher ever arrived"
        assert all(record["step"] >= 10 and str(1 - group) in record["staleness"] for record in taught)
    checkpoints = [tmp_path / "run" / "checkpoints" / f"g{group}-step0000000120.h5" for group in (0, 1)]
    assert not torch.equal(*(load(path)["state"]["model"]["head.weight"] for path in checkpoints))  # began apart
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 10
    assert "asyncio" in page


def test_unequal_groups_learn_from_changing_peers_in_few_bytes(train: Run, tmp_path: Path) -> None:
    fancy = ("--exchange.topology=k-random", "--exchange.codec=int8", "--train.precision=bf16-weights")
    # An interval so long that even on a slow machine no publish is skipped because the last one is under way.
    apart = ("--train.steps=200", "--codistill.exchange_interval=25")
    result = train(4, "--groups=3", "--group_sizes=2,1,1", *apart, *fancy)
    assert result.returncode == 0, result.stderr
    for group, size in enumerate((2, 1, 1)):
        header, records = read_metrics(RunDir(tmp_path / "run").metrics(group))
        assert header["ranks_per_group"] == size
        last = [record for record in records if "bytes" in record][-1]
        assert len(last["staleness"]) == 1  # one teacher at a time
        published = last["bytes"]["published"] / (last["step"] // 25)
        assert header["parameters"] < published < 1.3 * header["parameters"]
        assert sum(last["bytes"]["fetched"].values()) > 0


def test_groups_that_are_jobs_of_their_own_teach_each_other(train: Run, tmp_path: Path) -> None:
    """Test jobs that start at different times: group 0 starts long after group 1."""
    alone = ("--exchange.transport=files", "--train.steps=400")
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(train, 2, "--group=1", *alone)]
        wait_until(lambda: read_metrics(RunDir(tmp_path / "run").metrics(1))[1] != [])
        jobs.append(pool.submit(train, 1, "--group=0", *alone))
        for job in jobs:
            assert job.result().returncode == 0, job.result().stderr
    _, records = read_metrics(RunDir(tmp_path / "run").metrics(0))
    taught = [record for record in records if record.get("staleness")]
    assert taught[-1]["bytes"]["fetched"]["1"] > 0
    assert (tmp_path / "run" / "report.html").exists()


def test_a_fused_head_learns_the_same(train: Run, tmp_path: Path) -> None:
    """Compare losses step by step, within the rounding errors that add up."""
    taught = ("--codistill.teachers=unigram", "--codistill.burn_in=5", "--codistill.weight=0.5", "--groups=1")
    for name, fused in (("plain", "false"), ("fused", "true")):
        options = (f"--codistill.fused_linear={fused}", f"--run_dir={tmp_path / name}")
        result = train(1, *taught, *options, "--model.dropout=0")
        assert result.returncode == 0, result.stderr
    plain, fused = (read_metrics(RunDir(tmp_path / name).metrics(0))[1] for name in ("plain", "fused"))
    for key in ("loss", "validation_loss"):
        expected, found = ([record[key] for record in records if key in record] for records in (plain, fused))
        assert found == pytest.approx(expected, rel=1e-3)
    assert found[-1] < found[0]


def test_peers_with_fused_heads_teach_each_other(train: Run, tmp_path: Path) -> None:
    result = train(2, "--codistill.fused_linear=true", "--codistill.teacher_precision=bf16", "--train.steps=100")
    assert result.returncode == 0, result.stderr
    _, records = read_metrics(RunDir(tmp_path / "run").metrics(0))
    validation = [record["validation_loss"] for record in records if "validation_loss" in record]
    assert validation[-1] < validation[0] < 5.5
    assert any(record.get("staleness") for record in records)
    assert not any(record.get("quarantine") for record in records)


def test_image_models_teach_each_other(train: Run, tmp_path: Path) -> None:
    """Train on horizontal and vertical stripes, which random shifts do not change."""
    labels = np.arange(64) // 2 % 2  # each group gets both labels
    lying = np.zeros((64, 1, 8, 8), np.uint8)
    lying[:, :, ::2] = np.random.default_rng(0).integers(50, 256, (64, 1, 1, 1))
    stripes = np.where(labels[:, None, None, None], lying.swapaxes(2, 3), lying)
    kind = Kind.of(["lying", "standing"], (1, 8, 8), np.bincount(stripes.ravel(), minlength=256)[None])
    pieces = [("train", stripes, labels), ("validation", stripes[:16], labels[:16])]
    write_images(tmp_path / "images.h5", pieces, kind, "")
    config = tmp_path / "small.toml"
    config.write_text(config.read_text().replace(LSTM, '[model]\nname = "resnet"\nlayers = 18\nwidth = 16\n'))
    sgd = ("--optimizer.name=sgd", "--optimizer.lr=0.005")
    result = train(2, f"--data.path={tmp_path / 'images.h5'}", *sgd, "--codistill.burn_in=40", "--train.steps=100")
    assert result.returncode == 0, result.stderr
    for group in (0, 1):
        header, records = read_metrics(RunDir(tmp_path / "run").metrics(group))
        assert header["unit"] == "image"
        losses = [record["validation_loss"] for record in records if "validation_loss" in record]
        assert losses[-1] < 0.5  # ln 2 = 0.693 is the loss of chance
        assert any(record.get("staleness") for record in records)


def test_click_models_teach_each_other(train: Run, tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.h5"
    prepare_clicks(clicks, 20_000)
    with RowStore(clicks) as store:
        best = store.bayes_log_loss("validation")
    model = ("--model.name=dnn", "--model.widths=32,16", "--model.embedding=4", "--optimizer.lr=0.003")
    config = tmp_path / "small.toml"
    config.write_text(config.read_text().replace(LSTM, ""))
    step = ("--train.precision=bf16", "--train.accumulate=2", "--train.clip_norm=1", "--data.batch_size=128")
    result = train(2, f"--data.path={clicks}", *model, *step, "--train.steps=100")
    assert result.returncode == 0, result.stderr
    for group in (0, 1):
        header, records = read_metrics(RunDir(tmp_path / "run").metrics(group))
        assert header["unit"] == "row"
        losses = [record["validation_loss"] for record in records if "validation_loss" in record]
        assert best < losses[-1] < losses[0]
        assert any(record.get("staleness") for record in records)


def test_a_saved_model_teaches(train: Run, data: Path, tmp_path: Path) -> None:
    """Compare a student with a large distillation weight to one without a teacher."""
    long = ("--groups=1", "--train.steps=150", "--codistill.burn_in=0")
    alone = ("--codistill.weight=0", "--exchange.topology=pairs")  # a group without peers needs no partner
    assert train(1, *long, *alone, "--seed=1", "--train.average=0.9").returncode == 0
    teacher = tmp_path / "run" / "checkpoints" / "g0-best.h5"
    taught = ("--codistill.teachers=checkpoints", f"--codistill.checkpoints={teacher}", "--codistill.weight=10")
    for name, options in (("taught", taught), ("alone", ("--codistill.weight=0",))):
        result = train(1, *long, *options, f"--run_dir={tmp_path / name}")
        assert result.returncode == 0, result.stderr
    task = open_task(data)
    batch = task.validation(DataConfig(path=data, sequence_length=16, batch_size=256))[0]

    def predictions(checkpoint: Path) -> torch.Tensor:
        logits: torch.Tensor = SavedModel.load(checkpoint).build(task.store)(*batch.inputs)
        return logits.softmax(-1)

    truth = predictions(teacher)
    distance = {
        name: (predictions(tmp_path / name / "checkpoints" / "g0-best.h5") - truth).abs().sum(-1).mean().item()
        for name in ("taught", "alone")
    }
    assert distance["taught"] < 0.8 * distance["alone"]


def test_a_saved_model_for_other_data_is_refused(train: Run, finished: Path, tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.h5"
    prepare_clicks(clicks, 2000)
    with RowStore(clicks) as store, pytest.raises(UserError, match=r"for other data than .* which is a store of rows"):
        SavedModel.load(finished / "checkpoints" / "g0-best.h5").build(store)
    result = train(
        1,
        "--groups=1",
        "--codistill.teachers=checkpoints",
        "--codistill.checkpoints=no.h5",
        f"--run_dir={tmp_path / 'taught'}",
    )
    assert result.returncode == 2
    assert "checkpoint no.h5 cannot be read" in result.stderr


def test_groups_do_not_wait_for_a_suspended_group(train: Run, tmp_path: Path) -> None:
    """Test both transports at once: most of the time the test waits."""
    with ThreadPoolExecutor() as pool:
        trials = [pool.submit(stand_still, train, tmp_path / name, name) for name in ("window", "files")]
    for trial in trials:
        trial.result()


def stand_still(train: Run, run: Path, transport: str) -> None:
    """Suspend a group; the other one trains on, its staleness grows, and the group finishes after it resumes."""
    paths = [RunDir(run).metrics(group) for group in (0, 1)]

    def last_step(group: int) -> int:
        return max((record["step"] for record in read_metrics(paths[group])[1]), default=0)

    with ThreadPoolExecutor() as pool:
        job = pool.submit(train, 2, f"--exchange.transport={transport}", "--train.steps=500", f"--run_dir={run}")
        wait_until(lambda: min(last_step(0), last_step(1)) >= 50)
        pid = read_metrics(paths[1])[0]["starts"][-1]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            stopped_at = last_step(1)
            wait_until(lambda: last_step(0) == 500)
            assert last_step(1) == stopped_at < 500
        finally:
            os.kill(pid, signal.SIGCONT)
        assert job.result().returncode == 0
    assert last_step(1) == 500
    staleness = [record["staleness"]["1"] for record in read_metrics(paths[0])[1] if "1" in record.get("staleness", {})]
    assert staleness[-1] > 500 - stopped_at - 10  # 10: steps between two records


def test_a_restart_is_bit_identical(train: Run, finished: Path, tmp_path: Path) -> None:
    assert train(2, *AVERAGED, "--train.steps=20").returncode == 0  # between two snapshots
    result = train(2, *AVERAGED, "--resume")
    assert result.returncode == 0, result.stderr
    straight, resumed = (
        load(run / "checkpoints" / "g0-step0000000040.h5")["state"] for run in (finished, tmp_path / "run")
    )
    for part in ("model", "average", "optimizer", "ranks", "session"):
        assert_equal(straight[part], resumed[part])
    _, records = read_metrics(RunDir(tmp_path / "run").metrics(0))
    assert [record["step"] for record in records if "loss" in record] == [10, 20, 30, 40]
    assert [record["staleness"] for record in records if "loss" in record] == [{}, {"0": 5}, {"0": 0}, {"0": 10}]


def test_a_signal_to_one_rank_ends_its_group_with_a_checkpoint(train: Run, tmp_path: Path) -> None:
    """The next start resumes at the step at which the signal has stopped the run."""
    run = RunDir(tmp_path / "run")
    step = stop(train, run, signal.SIGINT)
    assert train(2, *ALONE, f"--train.steps={step + 15}", "--resume").returncode == 0
    header, records = read_metrics(run.metrics(0))
    assert len(header["starts"]) == 2
    losses = [record for record in records if "loss" in record]
    covered = [range(record["step"] - record["steps"], record["step"]) for record in losses]
    assert [number for steps in covered for number in steps] == list(range(step + 15))


def stop(train: Run, run: RunDir, number: signal.Signals) -> int:
    """Train until a signal comes; return the step of the checkpoint."""
    path = run.metrics(0)
    with ThreadPoolExecutor() as pool:
        job = pool.submit(train, 2, *ALONE, "--train.steps=1000000", "--checkpoint.interval=1000000", "--resume")
        wait_until(lambda: job.done() or len(read_metrics(path)[1]) > 1)
        os.kill(read_metrics(path)[0]["starts"][-1]["pid"], number)
        result = job.result()
    assert result.returncode == os.EX_TEMPFAIL, result.stderr
    assert "stopped as asked, with checkpoints; --resume continues from there" in result.stdout
    step: int = load(next(iter(run.find_checkpoints(0).values())))["state"]["step"]
    return step


def test_signals_after_the_last_step_change_nothing(train: Run, tmp_path: Path) -> None:
    path = RunDir(tmp_path / "run").metrics(0)
    with ThreadPoolExecutor() as pool:
        job = pool.submit(train, 1, *ALONE)
        wait_until(lambda: job.done() or any("validation_loss" in r for r in read_metrics(path)[1] if r["step"] == 40))
        pid = read_metrics(path)[0]["starts"][0]["pid"]
        while not job.done():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.01)
    assert job.result().returncode == 0, job.result().stderr
    assert load(tmp_path / "run" / "checkpoints" / "g0-step0000000040.h5")["state"]["step"] == 40
    assert (tmp_path / "run" / "report.html").exists()


def assert_equal(left: object, right: object) -> None:
    if isinstance(left, dict) and isinstance(right, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        assert torch.equal(left, right)
    else:
        assert json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(train: Run, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "g0-step0000000040.h5"
    newest.write_bytes(newest.read_bytes()[:-1])
    result = train(2, *AVERAGED, "--resume")
    assert result.returncode == 0, result.stderr
    assert f"{newest} is damaged" in result.stderr
    assert load(newest)["state"]["step"] == 40  # written again


def test_a_run_is_never_overwritten_by_accident(train: Run, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    again = train(1, *AVERAGED)
    assert again.returncode != 0
    assert "holds a run already" in again.stderr
    foreign = train(1, *AVERAGED, "--resume", "--model.hidden=32")
    assert foreign.returncode != 0
    assert "tensors has embedding.weight [256, 16]" in foreign.stderr


SLOW_TO_VALIDATE = """
import os, sys, time
from pathlib import Path
import torch
from torch import nn
from hpcdistill.cli.main import main

class Model(nn.Module):
    def __init__(self, store):
        super().__init__()
        self.embedding = nn.Embedding(store.vocabulary, store.vocabulary)

    def forward(self, tokens):
        if not self.training and "SLOW" in os.environ:
            torch.save(self.state_dict(), Path(os.environ["SLOW"]) / str(os.getpid()))
            time.sleep(1)
        return self.embedding(tokens)

if __name__ == "__main__":
    sys.modules["slow_to_validate"] = sys.modules["__main__"]
    sys.exit(main(sys.argv[1:]))
"""


def test_a_validation_that_a_signal_ends_is_made_by_the_next_start(mpirun: Run, data: Path, tmp_path: Path) -> None:
    """Interrupt a validation that takes a second for each of its batches, and for which each rank saves its weights."""
    config, path = tmp_path / "small.toml", RunDir(tmp_path / "run").metrics(0)
    model = '[model]\nname = "factory"\nfactory = "slow_to_validate:Model"\n'
    config.write_text(f'run_dir = "{tmp_path / "run"}"\n{SMALL.replace(LSTM, model)}')
    weights = tmp_path / "weights"
    weights.mkdir()
    run = partial(mpirun, 2, "-c", SLOW_TO_VALIDATE, "train", config, f"--data.path={data}", *ALONE)
    with ThreadPoolExecutor() as pool:
        job = pool.submit(run, "--train.steps=20", env={"SLOW": str(weights)})
        wait_until(lambda: job.done() or any(weights.iterdir()))
        os.kill(read_metrics(path)[0]["starts"][0]["pid"], signal.SIGTERM)
        result = job.result()
    assert result.returncode == os.EX_TEMPFAIL, result.stderr
    assert "stopped as asked, with checkpoints" in result.stdout
    saved = load(tmp_path / "run" / "checkpoints" / "g0-step0000000020.h5")["state"]
    assert saved["owes_validation"]
    of_ranks = [torch.load(path) for path in weights.iterdir()]
    assert len(of_ranks) == 2
    for of_rank in of_ranks:
        assert_equal(of_rank, saved["model"])
    assert not (tmp_path / "run" / "checkpoints" / "g0-best.h5").exists()
    result = run("--train.steps=20", "--train.validation_items=30", "--resume")
    assert result.returncode == 0, result.stderr
    assert [record["step"] for record in read_metrics(path)[1] if "validation_loss" in record] == [20]
    assert load(tmp_path / "run" / "checkpoints" / "g0-best.h5")["state"]["step"] == 20
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    result = run("--train.steps=10", "--resume=strict")  # fewer than were made
    assert result.returncode == 0, result.stderr
    assert "20 steps of train.steps = 10 are made already: nothing to do" in result.stdout
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_second_start_touches_nothing_of_a_run_that_goes_on(train: Run, tmp_path: Path) -> None:
    run, path = tmp_path / "run", RunDir(tmp_path / "run").metrics(0)
    for_long = ("--train.steps=1000000", "--train.validate_every=1000000", "--checkpoint.interval=1000000")
    with ThreadPoolExecutor() as pool:
        job = pool.submit(train, 1, *ALONE, *for_long)
        wait_until(lambda: len(read_metrics(path)[1]) > 1)
        pid = read_metrics(path)[0]["starts"][0]["pid"]
        try:
            (header, *_), inode = path.read_bytes().splitlines(), path.stat().st_ino
            second = train(2, "--groups=2", "--resume")
            assert second.returncode != 0
            assert f"run_dir = {run} belongs to another run: pid {pid} on" in second.stderr
            assert "Traceback" not in second.stderr
            assert (path.read_bytes().splitlines()[0], path.stat().st_ino) == (header, inode)
            assert sorted(each.name for each in run.iterdir()) == ["metrics-g0.jsonl", "owner-g0.json"]
        finally:
            os.kill(pid, signal.SIGTERM)
        assert job.result().returncode == os.EX_TEMPFAIL
    assert not list(run.glob("owner-*"))


def test_a_start_that_fails_leaves_no_folder(train: Run, tmp_path: Path) -> None:
    result = train(2, "--data.path=/nowhere/data.h5", f"--run_dir={tmp_path / 'new' / 'run'}")
    assert result.returncode != 0
    assert "data.path = /nowhere/data.h5: no such file" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        (3, ["--group_sizes=2,2"], "group_sizes = 2,2 takes 4 ranks, but 3 were started"),
        (2, ["--optimizer.lr=1e30"], "the loss became nan in the 10 steps up to step 10"),
    ],
)
def test_bad_input_ends_every_rank_with_a_message(train: Run, ranks: int, options: list[str], message: str) -> None:
    result = train(ranks, *options)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_store_ends_the_job(train: Run, data: Path, tmp_path: Path) -> None:
    content = bytearray(data.read_bytes())
    with h5py.File(data) as file:  # all of the training part
        begin, count = file["train"].id.get_chunk_info(0).byte_offset, file["train"].id.get_storage_size()
    content[begin : begin + count : 1000] = bytes(len(content[begin : begin + count : 1000]))
    (tmp_path / "damaged.h5").write_bytes(content)
    result = train(2, f"--data.path={tmp_path / 'damaged.h5'}")
    assert result.returncode != 0
    assert "the file is damaged" in result.stderr


def test_mpi_without_threads_is_refused(train: Run) -> None:
    result = train(2, env={"MPI4PY_RC_THREAD_LEVEL": "serialized"})
    assert result.returncode != 0
    assert "unset MPI4PY_RC_THREAD_LEVEL (now serialized)" in result.stderr


ONE_NEVER_STARTS_MPI = """
import os, time
from hpcdistill.distributed import launch as job
job.START_SECONDS = 2
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
    time.sleep(1000)
job.start_mpi()
"""


def test_a_start_without_one_rank_times_out(mpirun: Run) -> None:
    result = mpirun(2, "-c", ONE_NEVER_STARTS_MPI)
    assert result.returncode != 0
    assert "Timeout (0:00:02)!" in result.stderr
    assert "in start_mpi" in result.stderr


RAISES_ON_RANK_3 = """
import sys
from mpi4py import MPI
import hpcdistill.tasks.objective
from hpcdistill.cli.main import main

def loss(*args, **options):
    if MPI.COMM_WORLD.rank == 3:
        raise RuntimeError("lightning")
    return real(*args, **options)

real, hpcdistill.tasks.objective.codistillation_loss = hpcdistill.tasks.objective.codistillation_loss, loss
main(sys.argv[1:])
"""


def test_one_rank_raising_ends_the_whole_job(mpirun: Run, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.toml"
    config.write_text(f'run_dir = "{tmp_path / "run"}"\n{SMALL}')
    result = mpirun(4, "-c", RAISES_ON_RANK_3, "train", config, f"--data.path={data}")
    assert result.returncode != 0
    assert "[world rank 3 of 4] Traceback" in result.stderr
    assert "RuntimeError: lightning" in result.stderr
