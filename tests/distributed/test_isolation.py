"""A run on one machine opens no door.

Its listeners, its environment, the current folder, and what libraries print.
"""

import base64
import os
import pickle
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from alexnet_nb.engine.config import Config
from alexnet_nb.engine.launch import train
from helpers import ROOT, gone
from helpers.runs import TINY

pytestmark = pytest.mark.distributed


TRAIN = """
from alexnet_nb.engine.config import Config
from alexnet_nb.engine.launch import train
train(Config(out_dir="run", width_mult=1 / 16, {}))
"""


def start(folder, settings, **env):
    """Train in a process of its own, in a folder of its own."""
    command = [sys.executable, "-c", TRAIN.format(settings)]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL)


def descendants(pid):
    """The ids of a process and of all that it has started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(
                stat.read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            continue
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def listeners(pids):
    """Address and port of every TCP socket on which one of these processes listens.

    As (hexadecimal, number).
    """
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(descriptor))
            except OSError:
                continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in inodes:
                address, port = local.split(":")
                found.add((address, int(port, 16)))
    return found


def on_loopback(address):
    """127.x.x.x, ::1 or ::ffff:127.x.x.x as /proc/net/tcp writes them."""
    return address.endswith("7F") or address == "0" * 24 + "01000000"


class Attack:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def attack(port, path):
    """Put a pickle where torchrun would look for its peers' state.

    As a stranger could who reaches this port. 127.0.0.2 answers only what listens on
    every interface.
    """
    try:
        socket.create_connection(("127.0.0.2", port), timeout=2).close()
    except OSError:
        return False
    try:
        store = dist.TCPStore(
            "127.0.0.2",
            port,
            None,
            False,
            timeout=timedelta(seconds=5),
            wait_for_workers=False,
        )
        for key in store.list_keys():
            if key.startswith("torch.rendezvous") and "/" not in key:
                store.set(key, base64.b64encode(pickle.dumps(Attack(path))).decode())
    except (RuntimeError, dist.DistError):
        pass  # a port that is no store
    return True


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_run_listens_on_loopback_only(tmp_path, gpus):
    process = start(tmp_path, f"gpus={gpus}, epochs=400")
    metrics, end = tmp_path / "run/metrics.jsonl", time.monotonic() + 120
    try:
        while not metrics.exists():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        found = listeners(descendants(process.pid))
        assert gpus == 1 or found, "gloo listens somewhere"
        reached = [port for _, port in found if attack(port, tmp_path / "pwned")]
        assert not reached
        assert [address for address, _ in found if not on_loopback(address)] == []
    finally:
        process.terminate()
        process.wait(30)
    assert gone(tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The modes of a run's store, what is left of it, and how the run ended.

    A cluster has set variables for another job. With PET_NNODES=2, which Kubeflow sets,
    torchrun would wait for a second machine. With PET_MAX_RESTARTS it would start a
    failed process again and again.
    """
    folder, modes = tmp_path_factory.mktemp("undisturbed"), set()
    other = dict(
        PET_NNODES="2",
        PET_NODE_RANK="0",
        PET_NPROC_PER_NODE="4",
        PET_MAX_RESTARTS="3",
        PET_RDZV_ENDPOINT="10.1.2.3:29500",
        RANK="1",
        WORLD_SIZE="4",
        LOCAL_RANK="1",
        MASTER_ADDR="10.1.2.3",
        MASTER_PORT="29500",
        TORCHELASTIC_RUN_ID="none",
        TMPDIR=str(folder),
    )
    process = start(folder, "gpus=2, epochs=1", **other)
    end = time.monotonic() + 150
    while process.poll() is None and time.monotonic() < end:
        for path in folder.glob("alexnet_nb-*"):
            try:
                modes.add(path.stat().st_mode & 0o777)
            except FileNotFoundError:
                continue
        time.sleep(0.05)
    process.terminate()
    return modes, list(folder.glob("alexnet_nb-*")), process.wait(30)


def test_the_store_of_a_run_is_private_and_goes_away(undisturbed):
    """Torchrun unpickles what is in it, so nobody else may write there."""
    modes, left, _ = undisturbed
    assert modes == {0o700}
    assert not left


def test_what_a_cluster_has_set_for_another_job_is_left_out(undisturbed):
    assert undisturbed[-1] == 0


def test_code_in_the_current_folder_is_not_run(tmp_path):
    """alexnet-train in a folder of somebody else's images, which holds a torch.py."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/torch.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\n")
    (tmp_path / "alexnet-train").write_text(
        "import sys\nfrom alexnet_nb.engine.cli import main\nsys.exit(main())\n"
    )
    command = [
        sys.executable,
        tmp_path / "alexnet-train",
        "--width-mult",
        "0.0625",
        "--epochs",
        "1",
        "--out-dir",
        tmp_path / "run",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=tmp_path / "data",
        env=env,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model.safetensors").exists()
    assert not (tmp_path / "pwned").exists()


def test_bytes_that_are_not_utf8_go_to_the_log(tmp_path, fault):
    fault(r"os.write(1, b'NCCL WARN \xff\xfe\n')", 3)
    folder = train(Config(out_dir=str(tmp_path / "run"), **TINY))
    assert "NCCL WARN" in (folder / "log/torchrun.txt").read_text()
