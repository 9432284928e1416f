"""Logging to Weights & Biases."""

import io

from pretrain.config.loggers import WandbConfig
from pretrain.metrics.loggers.logger import LoggedRun, Logger, missing_package


class Wandb(Logger):
    """Logs to a W&B run, with files in ``wandb/`` of the run folder; a resumed run continues the same W&B run.

    ``WANDB_API_KEY`` or ``wandb login`` selects the account. The x axis is ``step`` rather than W&B's own count: W&B
    drops records that go back in that count, as they do after a resume. An offline run leaves one folder for each
    start, all with the same ID; ``wandb sync --append`` joins them.
    """

    def __init__(self, config: WandbConfig, run: LoggedRun) -> None:
        try:
            import wandb
        except ImportError:
            raise missing_package("wandb", "wandb") from None
        self._wandb = wandb
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.run_name or run.folder.name,
            id=run.read_id("wandb"),
            resume="allow" if config.mode == "online" else None,
            mode=config.mode,
            dir=run.folder,
            config=run.config,
            settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )
        run.write_id("wandb", self._run.id)
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def figure(self, step: int, name: str, png: bytes) -> None:
        from PIL import Image

        self._run.log({"step": step, name: self._wandb.Image(Image.open(io.BytesIO(png)))})

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # waits for W&B's own process, which writes the files
