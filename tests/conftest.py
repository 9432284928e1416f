"""Paths to data that a clone does not contain; tests that need them are skipped with a message."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# Examples have no time limit: what they take says nothing where other processes share the cores.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Before torch is loaded, here and in all processes that tests start: the waiting threads of OpenMP spin, and where
# processes share the cores, most of the processor time goes to that. Commands set what their config says.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before Triton is loaded, which torch's compiler does, too: without a GPU, kernels run in its interpreter alone.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Before torch's compiler is loaded, which would start a process for each core; each of them imports torch.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SPECTRALFORGE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs the test data folder '{name}' (set SPECTRALFORGE_TEST_DATA to where it is)")
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """Return the folder of the published models' outputs for deterministic weights."""
    return _folder("reference")


@pytest.fixture(scope="session")
def spectral_earth_sample() -> Path:
    """Return the folder of ten tiles in SpectralEarth's layout."""
    return _folder("spectral_earth_sample")


@pytest.fixture(scope="session")
def enmap_potsdam() -> Path:
    """Return the folder of eighteen real, labeled EnMAP tiles."""
    return _folder("enmap_potsdam")


@pytest.fixture(scope="session")
def enmap_l2a() -> Path:
    """Return the folder of the L2A product's band characterization."""
    return _folder("enmap_l2a")


@pytest.fixture(scope="session")
def scenes() -> Path:
    """Return the folder of real scenes of other imaging spectrometers."""
    return _folder("scenes")


@pytest.fixture(scope="session")
def emit() -> Path:
    """Return the folder of a cut of real EMIT reflectance."""
    return _folder("emit")
