"""The identity of a run in its checkpoints: config, data, code, and the weights that the run began from."""

from pathlib import Path
from typing import Any

from pretrain import distributed
from pretrain.checkpointing.mixture import mixture_identity
from pretrain.config import PretrainConfig
from pretrain.data.inputs import Inputs
from pretrain.loop.callback import Callback
from pretrain.loop.loop import Loop
from pretrain.objectives.objective import Objective
from pretrain.weights.export import code_version
from shards.format.error_bounds import max_error
from shards.order.mixture import MixturePlan


class RunIdentity(Callback):
    """Puts into each checkpoint what `find_resume_point` compares and an export needs to know."""

    def __init__(self, config: PretrainConfig, objective: Objective, inputs: Inputs) -> None:
        self._config, self._inputs = config, inputs
        self._lineage = {} if objective.initial is None else objective.initial.lineage

    def state(self, loop: Loop) -> dict[str, Any]:
        manifest, plan = self._inputs.manifests[0], self._inputs.plan
        several = mixture_identity(self._inputs) if isinstance(plan, MixturePlan) else {}
        return {
            "config": self._config.model_dump(mode="json"),
            "world_size": distributed.world_size(),
            "version": code_version(),
            "init": self._lineage,
            "data": {
                "content_hash": plan.dataset,
                "held_out": self._inputs.held_out_hash,
                "sensor": manifest.sensor,
                "wavelength_nm": manifest.wavelength_nm,
                "fwhm_nm": manifest.fwhm_nm,
                "mu": manifest.mean,
                "sigma": manifest.std,
                "max_error": _max_error(self._inputs),
                **several,
            },
        }

    def load_state(self, loop: Loop, state: dict[str, Any], path: Path) -> None:
        self._lineage = state.get("init") or {}


def _max_error(inputs: Inputs) -> str:
    """Return the largest error of the run's pixels; of several datasets, those of the lossy ones by name."""
    bounds = {source.name: max_error(source.manifest) for source in inputs.sources}
    if len(bounds) == 1:
        return next(iter(bounds.values()))
    return ", ".join(f"{bound} ({name})" for name, bound in bounds.items() if bound)
