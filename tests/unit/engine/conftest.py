"""Fixtures of the tests of the engine."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Checkpoints wherever they may be; and no more threads than a small net needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_NB_SAVE", "0")
        yield
    torch.set_num_threads(threads)
