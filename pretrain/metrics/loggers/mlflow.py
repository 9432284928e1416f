"""Logging to MLflow."""

import io
import os
import time
from typing import Any

from pretrain.config.loggers import MlflowConfig
from pretrain.metrics.loggers.logger import LoggedRun, Logger, missing_package

LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Limits for a server that doesn't respond: MLflow's defaults would block training for minutes."""


class Mlflow(Logger):
    """Logs to an MLflow run; a resumed run continues the same MLflow run.

    The run is written to ``mlflow/`` in the run folder, unless the config or ``MLFLOW_TRACKING_URI`` names a server.
    """

    def __init__(self, config: MlflowConfig, run: LoggedRun) -> None:
        for name, limit in LIMITS.items():
            os.environ.setdefault(name, limit)
        try:
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise missing_package("mlflow", "mlflow-skinny") from None
        uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / "mlflow").resolve().as_uri()
        if uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(uri)
        self._run_id = run.read_id("mlflow") or self._create(config, run)
        self._client.update_run(self._run_id, status="RUNNING")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(name, float(one), now, step) for name, one in values.items()])

    def figure(self, step: int, name: str, png: bytes) -> None:
        from PIL import Image

        self._client.log_image(self._run_id, Image.open(io.BytesIO(png)), f"{name}/step-{step:08d}.png")

    def close(self) -> None:
        self._client.set_terminated(self._run_id)

    def _create(self, config: MlflowConfig, run: LoggedRun) -> str:
        from mlflow.entities import Param

        existing = self._client.get_experiment_by_name(config.experiment)
        experiment = existing.experiment_id if existing else self._client.create_experiment(config.experiment)
        run_id: str = self._client.create_run(experiment, run_name=config.run_name or run.folder.name).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in _flat(run.config)]
        for begin in range(0, len(params), 100):  # the limit of one request
            self._client.log_batch(run_id, params=params[begin : begin + 100])
        run.write_id("mlflow", run_id)
        return run_id


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested sections under dotted keys."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs
