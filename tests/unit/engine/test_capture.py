"""Steps that only prepare a recording leave nothing behind."""

import torch

from alexnet_nb.engine.capture import with_state_restored
from alexnet_nb.engine.distributed import shard_batch
from alexnet_nb.learning import learning_rates
from helpers.runs import begin


def copies(trainer):
    """Return the tensors that a step of a trainer changes, copied."""
    return [tensor.clone() for tensor in trainer.step_state()]


def test_a_step_that_is_undone_changes_no_later_step(tmp_path, digits):
    """As before a recording: three steps that do not count, then one that does."""
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 64, 64) * 60, torch.arange(8)
    ends = []
    for name in ("cold", "warm"):
        trainer = begin(tmp_path / name, digits, precision="float16")
        trainer.set_rates(learning_rates(trainer.recipe, 0))
        before = copies(trainer)

        def three_steps(trainer=trainer):
            for _ in range(3):
                trainer.step_on(images, labels, shard_batch(8))

        if name == "warm":
            with_state_restored(trainer.step_state(), three_steps)
            assert all(map(torch.equal, before, copies(trainer)))
        trainer.step_on(images, labels, shard_batch(8))
        ends.append(copies(trainer))
    assert all(map(torch.equal, *ends))
    same = map(torch.equal, before, ends[1])
    assert sum(same) <= 2, "weights and momentum must have moved"
