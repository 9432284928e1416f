"""The states of all random generators of a process.

What a run draws is keyed by sample and doesn't depend on them. Libraries may use them all the same, and a resume at the
same world size restores them.
"""

import random

import numpy as np
import torch
from torch import Tensor


def random_state() -> dict[str, Tensor]:
    """Return the states of Python's, NumPy's, torch's and the device's generators, as flat tensors by name.

    Their sizes are the same in all processes.
    """
    version, words, gauss = random.getstate()
    assert version == 3
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([gauss or 0.0, gauss is not None], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss]),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restore the generators of this process to the states that `random_state` returned."""
    gauss = state["python_gauss"].tolist()
    has_cached = gauss[1] if len(gauss) == 2 else len(gauss)  # earlier versions saved () or (value,)
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if has_cached else None))
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy_gauss"].item()))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
