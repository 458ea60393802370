"""What a launch passes on, and what it says."""

import io
import sys

import pytest

from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import describe_failure, show_line, worker_environment


def test_a_signal_is_reported_before_the_errors_that_follow_from_it(tmp_path):
    error = dict(rank=0, time=1.0, trace="OSError: No space left on device")
    killed = "  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)\n"
    message = describe_failure(tmp_path, 1, [error], killed)
    assert "process 1 was killed by signal 9" in message
    assert "No space left" in describe_failure(tmp_path, 1, [error], "")


def test_a_setting_of_the_users_stays(monkeypatch, tmp_path):
    for name in (
        "PET_NNODES",
        "GROUP_RANK",
        "ROLE_WORLD_SIZE",
        "TORCHELASTIC_RESTART_COUNT",
    ):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("PETROL", "3")
    env = worker_environment(plan_placement(2, num_devices=0), str(tmp_path))
    assert env["PETROL"] == "3"
    assert (
        not {
            "PET_NNODES",
            "GROUP_RANK",
            "ROLE_WORLD_SIZE",
            "TORCHELASTIC_RESTART_COUNT",
        }
        & env.keys()
    )


@pytest.mark.parametrize("live", [True, False])
def test_a_terminal_without_block_characters_is_no_error(monkeypatch, live):
    """The bar of a run in a terminal that knows Latin-1 only."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    show_line("alexnet_nb~ ██░░ epoch 1\n", io.BytesIO(), live)
    sys.stdout.flush()
    assert raw.getvalue().startswith(b"???? epoch 1")
