"""Trainings one after another in one job, as the start of a process takes longer than a small training.

`mpirun -np 2 python benchmarks/train_many.py JOBS.json`: JOBS.json is a list of the arguments of `hpcdistill train`, of
runs with one rank in each group. A file FINISHED in a run's folder says that the run is complete.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hpcdistill.cli.main import build_parser
from hpcdistill.config.load import load_config
from hpcdistill.distributed.launch import end_job
from hpcdistill.distributed.stop import StopRequest
from hpcdistill.distributed.world import start_world
from hpcdistill.models.registry import config_class
from hpcdistill.training.loop import Outcome, train

FINISHED = "finished"


def main(jobs: Path) -> None:
    """Train the runs of `jobs`. Collective over the world."""
    world = start_world()
    with StopRequest() as stop:
        for arguments in json.loads(jobs.read_text()):
            args = build_parser().parse_args(["train", *arguments])
            config = load_config(args.config, config_class(), args)
            stopped = world.allreduce(train(config, args.resume, stop) is Outcome.STOPPED)
            if stopped:
                raise SystemExit(75)
            if world.rank == 0:
                (config.run_dir / FINISHED).touch()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (Exception, KeyboardInterrupt) as error:  # on one rank: the others would wait for it forever
        end_job(error)
