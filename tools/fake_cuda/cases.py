"""What to count: a config that we ship, with overrides, on a number of processes."""

from dataclasses import dataclass

from pretrain.config import PretrainConfig
from shards.config import load_config
from tools.fake_cuda.recorder import ROOT


@dataclass(frozen=True)
class Case:
    """One step to count.

    Attributes:
        name: of its row in the budgets.
        config: path within configs/pretrain, without its ending.
        overrides: ``key=value``; the global batch is one micro batch of each process unless they set it.
        world: processes of the fake group.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    world: int = 8

    def load(self) -> PretrainConfig:
        """Return the config of the run.

        Raises:
            ConfigError: the file or an override is wrong.
        """
        path = ROOT / "configs" / "pretrain" / f"{self.config}.yaml"
        return load_config(path, [f"data.shards={ROOT}", *self.overrides], PretrainConfig)
