"""The environment variables that the shipped configs name."""

from collections.abc import Iterator

import pytest
from support.shipped_configs import VARIABLES


@pytest.fixture(scope="module")
def variables() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, f"/data/{name}")
        yield
