"""Runs of MLflow with the numbers of the metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hpcdistill.storage.metrics import Record
from hpcdistill.training.trackers.tracker import RunFacts, Tracker

TAG = "hpcdistill.identity"
MOST = 1000  # metrics that a server takes at once


class MLflow(Tracker):
    """Run of one group, in the folder `mlruns` of the run's, or where MLFLOW_TRACKING_URI says.

    A thread writes, because a server may take its time. A training that is resumed goes on with its run.

    Args:
        experiment: name of the experiment; it is made if there is none.
        folder: folder of the run.
        facts: facts of this training.

    Raises:
        Exception: the run cannot be made.
    """

    def __init__(self, experiment: str, folder: Path, facts: RunFacts) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without it, MLflow 3 takes no folder
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"
        )  # MLflow's 7 attempts of 120 s would delay the end
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder.absolute() / "mlruns").as_uri()
        super().__init__(f"MLflow at {uri}")
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._run_id = self._open(experiment, facts)
        self._pending: list[Any] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._writing: Future[None] | None = None

    def _open(self, experiment: str, facts: RunFacts) -> str:
        """Return the ID of the run of this training, which an earlier start may have made."""
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        if runs := self._client.search_runs([number], f"tags.`{TAG}` = '{facts.identity}'"):
            self._client.update_run(runs[0].info.run_id, status="RUNNING")
            return str(runs[0].info.run_id)
        name = f"{facts.name}-g{facts.group}"
        run = self._client.create_run(number, run_name=name, tags={TAG: facts.identity})
        for key, value in _flat(facts.header):
            self._client.log_param(run.info.run_id, key, value)
        return str(run.info.run_id)

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._pending += [Metric(name, number, now, step) for name, number in numbers.items()]
        if self._writing is None or self._writing.done():
            self._send()

    def _send(self) -> None:
        """Begin to write pending metrics. Raises what the write before has raised."""
        if self._writing is not None:
            self._writing.result()
        batch, self._pending = self._pending[:MOST], self._pending[MOST:]
        self._writing = self._writer.submit(self._client.log_batch, self._run_id, batch)

    def _close(self) -> None:
        with self._writer:
            while self._pending:
                self._send()
            if self._writing is not None:
                self._writing.result()
            self._client.set_terminated(self._run_id)


def _flat(values: Record, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
