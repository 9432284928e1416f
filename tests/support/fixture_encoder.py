"""The encoder of tests/fixtures/before: a narrow SpecViT under the name spec_vit_tiny.

As a script, it runs a command of the repository with this encoder: `python fixture_encoder.py MODULE [ARGUMENTS]`.
"""

import runpy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from pretrain.models import adapter, published

SIZE = published.ViTSize(width=16, depth=2, heads=1, mlp_hidden=32)
ADAPTER_LAYERS = ((1, 4, 7, 5), (4, 8, 7, 5), (8, adapter.CHANNELS, 5, 3))


def install_fixture_encoder(patch: pytest.MonkeyPatch) -> None:
    """Make the registry build the fixtures' encoder as spec_vit_tiny until ``patch`` is undone."""
    patch.setitem(published.SPEC_VITS, "spec_vit_tiny", SIZE)
    patch.setattr(adapter, "LAYERS", ADAPTER_LAYERS)


if __name__ == "__main__":
    install_fixture_encoder(pytest.MonkeyPatch())
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
