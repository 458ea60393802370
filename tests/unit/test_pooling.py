"""How many windows fit, beside torch's count."""

import random

import pytest
from torch import empty
from torch.nn import functional as F

from alexnet_nb.pooling import output_size


@pytest.mark.parametrize("ceil", [False, True])
def test_output_size_equals_torchs(ceil):
    """But torch leaves out a last window that begins behind the image."""
    draw = random.Random()
    for _ in range(300):
        size, window = draw.randint(8, 64), draw.randint(1, 8)
        stride, pad = draw.randint(1, window), draw.randint(0, window // 2)
        image = empty(1, 1, size)
        expected = F.max_pool1d(image, window, stride, pad, ceil_mode=ceil).shape[-1]
        found = output_size(size, window, stride, pad, ceil)
        if (found - 1) * stride - pad >= size:
            expected += 1
        assert found == expected, (size, window, stride, pad)
