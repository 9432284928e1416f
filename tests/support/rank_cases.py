"""Cases that all ranks of one process group run in turn; the error of each case, or null, is written as JSON."""

import json
import sys
import traceback
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import pytest

from launch import runtime
from pretrain import distributed

Case = Callable[[Path], None]


class Cases(dict[str, Case]):
    """Functions of a folder by name, each called on every rank."""

    def add(self, case: Case) -> Case:
        """Register a case under its name; a decorator."""
        self[case.__name__] = case
        return case

    def parameters(self, nightly: Container[str]) -> list[Any]:
        """Return the cases' names as parameters of a test, some of them marked as nightly."""
        return shortened(list(self), nightly)

    def main(self) -> None:
        """Run `SCRIPT FOLDER [CASE ...]` on this rank: write ``FOLDER/results-RANK.json`` and end the process."""
        runtime.prepare_environment(threads=1)
        runtime.prepare_torch(threads=1)
        from pretrain.engine.zero import init_distributed

        init_distributed()
        folder = Path(sys.argv[1])
        results: dict[str, str | None] = {}
        for name in sys.argv[2:] or self:
            own = folder / name
            own.mkdir(parents=True, exist_ok=True)
            distributed.barrier()
            error = None
            try:
                self[name](own)
            except Exception:
                error = traceback.format_exc()
                print(error, flush=True)  # the only output if other ranks are left waiting
            results[name] = next((one for one in distributed.gather_objects(error) if one), None)
        (folder / f"results-{distributed.rank()}.json").write_text(json.dumps(results))
        runtime.end_process(0)


def selected(request: pytest.FixtureRequest, test: Callable[..., None] | None = None) -> list[str]:
    """Return the cases that this session runs of a module, or of one of its tests, whose parameter is ``name``."""
    items = [item for item in request.session.items if item.module is request.module]
    return [item.callspec.params["name"] for item in items if test is None or item.originalname == test.__name__]


def shortened(names: Sequence[str], nightly: Container[str]) -> list[Any]:
    """Return names as parameters of a test, some of them marked as nightly."""
    return [pytest.param(name, marks=pytest.mark.nightly if name in nightly else ()) for name in names]
