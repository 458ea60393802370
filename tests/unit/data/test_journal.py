"""The journal of packing, and the header of its file."""

import io

import numpy as np
import pytest

from alexnet_nb.data.journal import HEADER, npy_header


@pytest.mark.parametrize(
    "shape", [(0,), (2**50,), (5, 3, 8, 8), (14_197_122, 3, 1024, 1024)]
)
def test_a_header_has_its_size_whatever_the_shape(shape):
    header = npy_header(shape)
    assert len(header) == HEADER
    file = io.BytesIO(header)
    assert np.lib.format.read_magic(file) == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == (shape, False, np.uint8)
