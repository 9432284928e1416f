"""Files of HDF5 with damaged structures: h5py's errors become one line that names the file."""

import pytest

from shards.errors import SourceError
from shards.sources.products.hdf import damage


@pytest.mark.parametrize("error", [OSError("bad heap\nlist"), RuntimeError("bad tree"), KeyError("a"), TypeError("b")])
def test_errors_of_the_library_are_one_line(tmp_path, error):
    with (
        pytest.raises(SourceError, match=r"a\.nc: damaged \(.*\): download it again") as caught,
        damage(tmp_path / "a.nc"),
    ):
        raise error
    assert "\n" not in str(caught.value)
