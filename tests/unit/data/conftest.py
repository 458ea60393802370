"""Fixtures of the tests of packed data."""

import pytest

from alexnet_nb.data.packing import pack
from helpers.packing import two_classes


@pytest.fixture(scope="module", params=[None, 90], ids=["pixels", "jpegs"])
def packed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "out"
    options = dict(quality=request.param, progress=lambda line: None)
    return pack(two_classes(600, 16), folder, 16, **options)
