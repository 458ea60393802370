"""Which process takes which images, and where processes are placed."""

import pytest

from alexnet_nb.engine.config import Config
from alexnet_nb.engine.distributed import plan_placement, shard_batch
from alexnet_nb.engine.launch import worker_environment
from alexnet_nb.engine.run_dir import validate


def test_every_picture_is_taken_once():
    for n in range(1, 40):
        for many in range(1, 9):
            shares = [shard_batch(n, r, many) for r in range(many)]
            assert [i for s in shares if s.weight for i in range(n)[s.rows]] == list(
                range(n)
            )
            assert sum(s.weight for s in shares) == pytest.approx(many)
            assert all(
                s.of == n and len(range(n)[s.rows]) >= 1 for s in shares
            )  # nobody is idle, which would hold up the others


def test_layouts_in_words():
    for (gpus, found, together, machines), words in {
        (2, 1, False, 1): "1 CUDA device: both columns in one process",
        (4, 4, False, 1): "2 pairs of devices",
        (4, 0, False, 1): "2 pairs of CPU processes",
        (3, 8, True, 1): "the whole network on each of 3 devices",
        (16, 8, False, 2): (
            "8 pairs of devices with a column each, which share the batch, over NCCL, "
            "on 2 machines"
        ),
    }.items():
        assert words in str(plan_placement(gpus, found, together, machines))
    for gpus, found, together, machines in [
        (4, 2, False, 1),
        (2, 1, True, 1),
        (16, 4, True, 2),
    ]:
        with pytest.raises(
            ValueError,
            match=f"gpus: got {gpus}, expected at most .* "
            f"this machine has {found} CUDA",
        ):
            plan_placement(gpus, found, together, machines)
    (
        validate(Config(gpus=5, data_parallel=True)),
        validate(Config(gpus=64, recipe="paper", batch_size=8192)),
    )


@pytest.mark.parametrize(
    ("by_user", "threads", "passed_on"),
    [("3", 3, "3"), ("2,4", 1, "2,4"), ("", 1, "1"), (None, 1, "1")],
)
def test_the_threads_that_the_user_has_set_are_used(
    monkeypatch, tmp_path, by_user, threads, passed_on
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if by_user is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", by_user)
    placement = plan_placement(64, num_devices=0)
    assert placement.threads == threads
    environment = worker_environment(placement, str(tmp_path))
    assert environment["OMP_NUM_THREADS"] == passed_on
