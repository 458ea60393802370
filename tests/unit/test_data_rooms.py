"""The rooms base/ and data/: locks, files, worker processes, and what they say."""

import ast
import errno
import io
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from alexnet_nb.base import files
from alexnet_nb.base.files import LockHeldError, atomic_write, file_lock, sync_folder
from alexnet_nb.base.processes import available_cores
from alexnet_nb.data.datasets import find_source
from alexnet_nb.data.journal import HEADER, npy_header
from alexnet_nb.data.packed import ImageSplit, verify
from alexnet_nb.data.packing import pack, progress_bar
from alexnet_nb.data.sources import ImageSource
from alexnet_nb.data.workers import map_in_workers
from alexnet_nb.preprocessing import PixelSums
from helpers import ROOT

PATIENCE = 300  # seconds after which a process that should have ended is called hung


def run_python(code, *arguments, prefix=()):
    """Run code in a new interpreter."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


# ---------------------------------------------------------------- locks

HOLD = """
import sys
from alexnet_nb.base.files import file_lock
with file_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock `tmp_path/x.lock` until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "x.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_lock_that_another_process_holds_is_refused_by_name(tmp_path, holder):
    path = tmp_path / "x.lock"
    with pytest.raises(LockHeldError) as e, file_lock(path, wait=False):
        pass
    assert e.value.owner == f"process {holder.pid} on {os.uname().nodename}"
    assert str(e.value).startswith(f"{path}: got a lock that {e.value.owner} holds, ")
    assert holder.poll() is None
    assert e.value.owner in path.read_text()  # asking has not erased it


def test_a_lock_is_free_when_its_holder_has_ended(tmp_path, holder):
    holder.communicate("")
    with file_lock(tmp_path / "x.lock", wait=False):
        assert (tmp_path / "x.lock").read_text().startswith(f"process {os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_free_when_its_holder_was_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "x.lock").exists()
    with file_lock(tmp_path / "x.lock", wait=False):
        pass


def test_a_waiting_process_says_for_whom_and_then_gets_the_lock(tmp_path, holder):
    said = []

    def progress(line):
        said.append(line)
        holder.stdin.close()

    with file_lock(tmp_path / "x.lock", progress=progress):
        assert holder.wait(PATIENCE) == 0
    assert said == [
        f"waiting for process {holder.pid} on {os.uname().nodename}, which holds"
        f" {tmp_path}/x.lock"
    ]


def count_up(path, turns):
    """Add to a number in a file; two processes at once would lose turns."""
    for _ in range(turns):
        with file_lock(path.with_suffix(".lock"), progress=lambda line: None):
            number = int(path.read_text())
            path.write_text(str(number + 1))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes_exclude_each_other(tmp_path, method):
    path = tmp_path / "number"
    path.write_text("0")
    context = multiprocessing.get_context(method)
    both = [context.Process(target=count_up, args=(path, 30)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(PATIENCE)
    assert path.read_text() == "60"


READ_ONLY = """
import subprocess, sys
from alexnet_nb.base.files import file_lock
folder = sys.argv[1]
subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=True)
for path in (f"{folder}/x.lock", f"{folder}/new/x.lock"):
    try:
        with file_lock(path): pass
    except PermissionError as error: print(error)
"""


def test_a_lock_in_a_read_only_folder_is_one_sentence(tmp_path):
    namespace = ["unshare", "-rm"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no permission for a mount namespace")
    done = run_python(READ_ONLY, tmp_path, prefix=namespace)
    expected = (
        "got 'Read-only file system', expected a folder in which a lock file can be"
        " made; choose a folder that you can write to"
    )
    assert done.stdout.splitlines() == [
        f"{tmp_path}/{name}: {expected}" for name in ("x.lock", "new/x.lock")
    ], done.stderr


@pytest.mark.parametrize("plant", ["symlink", "hard link", "fifo"])
def test_what_is_planted_under_the_name_of_a_lock_does_no_harm(tmp_path, plant):
    mine, path = tmp_path / "mine", tmp_path / "x.lock"
    mine.write_text("my thesis")
    if plant == "symlink":
        path.symlink_to(mine)
    elif plant == "hard link":
        path.hardlink_to(mine)
    else:
        os.mkfifo(path)
    with file_lock(path, wait=False):
        assert path.read_text().startswith("process ")
    assert mine.read_text() == "my thesis"


WITHOUT_FCNTL = """
import sys, warnings
sys.modules["fcntl"] = None
import alexnet_nb.base.files, alexnet_nb.data.datasets
from alexnet_nb.base.files import file_lock
assert not hasattr(alexnet_nb.base.files, "fcntl")
with file_lock(sys.argv[1]):
    print("locked")
import alexnet_nb.engine.run_dir, alexnet_nb.engine.launch, alexnet_nb.engine.cli
print("imported")
"""


def test_no_module_needs_fcntl_to_be_imported(tmp_path):
    """Windows has none."""
    done = run_python(WITHOUT_FCNTL, tmp_path / "x.lock")
    assert done.stdout.split() == ["locked", "imported"], done.stderr


# ---------------------------------------------------------------- files


def write_half(path):
    with atomic_write(path) as temp:
        temp.write_text("half of the new")
        raise KeyError


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_system_that_opens_no_folder_syncs_none(tmp_path, monkeypatch):
    """Windows: there is no O_DIRECTORY, and `os.open` refuses a folder."""

    def refuse(*args):
        raise PermissionError("a folder")

    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(files.os, "open", refuse)
    sync_folder(tmp_path)


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize(
    "shape", [(0,), (2**50,), (5, 3, 8, 8), (14_197_122, 3, 1024, 1024)]
)
def test_a_header_has_its_size_whatever_the_shape(shape):
    header = npy_header(shape)
    assert len(header) == HEADER
    file = io.BytesIO(header)
    assert np.lib.format.read_magic(file) == (1, 0)
    assert np.lib.format.read_array_header_1_0(file) == (shape, False, np.uint8)


def two_classes(count=40, size=8):
    """Random images as arrays, in two classes."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    samples = [(image, i % 2) for i, image in enumerate(images)]
    return ImageSource({"train": samples[4:], "val": samples[:4]}, ("a", "b"), "test")


def test_progress_in_a_log_is_a_line_each(capsys):
    """No carriage return, no escape sequence, no bar."""
    said = []
    with progress_bar(640, said.append, interval=0) as bar:
        bar.update(320)
        bar.update(320)
    assert len(said) >= 2
    assert all(line.startswith("packed ") for line in said)
    assert said[-1].startswith("packed 640 of 640 images, ")
    assert said[-1].endswith(" left")
    assert all(line.isprintable() for line in said)
    assert capsys.readouterr() == ("", "")


def test_what_is_packed_at_once_reports_no_progress(tmp_path, capsys):
    pack(two_classes(), tmp_path / "out", 8)
    out, err = capsys.readouterr()
    assert out.startswith("packing 36 + 4 images at 8×8: ")
    assert out.count("\n") == 1
    assert err == ""


def test_a_bar_is_drawn_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(640, print) as bar:
        bar.delay = 0
        bar.update(640)
    assert "packing: 100%|" in capsys.readouterr().err


def test_a_resumed_bar_counts_only_what_it_packs_itself(tmp_path, monkeypatch):
    """What an earlier run has packed is done, and was not done now."""
    from alexnet_nb.data import packing

    def stop(*args):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(packing, "pixel_statistics", stop)
        with pytest.raises(InterruptedError):
            pack(two_classes(), tmp_path / "out", 8, progress=lambda line: None)
    bars = []

    def note(*args):
        bars.append(progress_bar(*args))
        return bars[0]

    monkeypatch.setattr(packing, "progress_bar", note)
    partial = tmp_path / ".out.partial"
    (partial / ".stats.npz.0123").write_bytes(b"torn")
    pack(two_classes(), tmp_path / "out", 8, progress=lambda line: None)
    assert (bars[0].n, bars[0].initial) == (40, 40)
    assert not list((tmp_path / "out").glob(".*"))  # what the first had begun


@pytest.mark.parametrize("source", ["photos", Path("photos")])
def test_a_path_in_place_of_a_source_is_refused_with_the_call_to_make(source, tmp_path):
    with pytest.raises(TypeError) as e:
        pack(source, tmp_path / "out")
    assert str(e.value) == (
        "source: got 'photos', expected an ImageSource; call"
        " pack(find_source('photos'), ...)"
    )
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- worker processes

METHODS = ["forkserver", "spawn"]  # of Python 3.14 on Linux; of macOS and Windows


@pytest.fixture(scope="module", params=[None, 90], ids=["pixels", "jpegs"])
def packed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "out"
    options = dict(quality=request.param, progress=lambda line: None)
    return pack(two_classes(600, 16), folder, 16, **options)


def test_only_the_path_of_a_mapped_file_is_pickled(packed):
    files = sum(path.stat().st_size for path in packed.path.glob("*/*.npy"))
    rest = pickle.dumps((packed.mean, packed.cov, packed.meta))  # not mapped
    split = len(pickle.dumps(packed.train))
    whole = len(pickle.dumps(packed)) - len(rest)
    assert split < 1000 < files / 100
    assert whole < 3000


def test_what_was_pickled_has_the_same_images(packed):
    copy = pickle.loads(pickle.dumps(packed))
    assert repr(copy) == repr(packed)
    assert copy.names == packed.names
    assert np.array_equal(copy.mean, packed.mean)
    for split in ("train", "val"):
        new, old = getattr(copy, split), getattr(packed, split)
        assert np.array_equal(new.images[:], old.images[:])
        assert np.array_equal(new.labels, old.labels)


def test_what_is_not_a_whole_mapped_file_is_pickled_as_numbers(packed):
    """A part of a file, and numbers in memory that were changed after reading."""
    part = ImageSplit(packed.train.images[5:8], packed.train.labels[5:8])
    copy = pickle.loads(pickle.dumps(part))
    assert np.array_equal(copy.images, packed.train.images[5:8])
    labels = np.load(packed.path / "train/labels.npy", mmap_mode="c")
    labels[0] = 7
    changed = ImageSplit(packed.train.images, labels)
    assert pickle.loads(pickle.dumps(changed)).labels[0] == 7


class Loaded(Dataset):
    """A data set as a user of DataLoader would write it."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        return np.array(self.split.images[i]), int(self.split.labels[i])


@pytest.mark.parametrize("method", METHODS)
def test_a_data_loader_reads_the_same_images(packed, method):
    loader = DataLoader(
        Loaded(packed.train), 200, num_workers=1, multiprocessing_context=method
    )
    batches = list(loader)
    images = np.concatenate([images.numpy() for images, _ in batches])
    labels = np.concatenate([labels.numpy() for _, labels in batches])
    assert np.array_equal(images, packed.train.images[:])
    assert np.array_equal(labels, packed.train.labels)


@pytest.mark.parametrize("method", METHODS)
def test_workers_that_are_not_forked_send_the_same_items(packed, method, monkeypatch):
    sums = PixelSums(packed.train.images)
    expected = list(map_in_workers(sums, 0))
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(multiprocessing, "get_context", lambda: context)
    items = list(map_in_workers(sums, 2))
    assert len(items) == len(expected) > 1
    for item, other in zip(items, expected, strict=True):
        for array, wanted in zip(item, other, strict=True):
            assert np.array_equal(array, wanted)


UNGUARDED = """
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_digits
pack(list_digits(8), {dest!r}, 8, processes=1)
"""


def test_a_script_without_a_main_guard_ends_with_a_sentence(tmp_path):
    """Its worker imports it, and would wait for the lock that the script holds."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(dest=str(tmp_path / "out")))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("RuntimeError: ")]
    assert "__main__: got a script that its own worker process runs again" in errors[0]
    assert "processes: got exit code 1" in errors[-1]


# ---------------------------------------------------------------- errors and systems


def errors_of(path):
    """Yield line and message of each error that a module makes, values as {}."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, "id", "")
        message = node.args[0]
        if name.endswith("Error") and isinstance(message, ast.JoinedStr | ast.Constant):
            parts = getattr(message, "values", [message])
            text = [getattr(part, "value", "") for part in parts]
            yield node.lineno, "".join(t if isinstance(t, str) else "{}" for t in text)


GRAMMAR = re.compile(r"[\w{}./]+: got .+, expected .+; .+", re.DOTALL)


@pytest.mark.parametrize("room", ["base", "data"])
def test_errors_have_one_grammar(room):
    """NAME: got VALUE, expected WHAT; do THIS."""
    errors = []
    for path in sorted((ROOT / "alexnet_nb" / room).glob("*.py")):
        errors += [(path.name, line, text) for line, text in errors_of(path)]
    assert len(errors) >= {"base": 3, "data": 20}[room]
    assert [error for error in errors if not GRAMMAR.fullmatch(error[2])] == []


def test_an_error_of_another_grammar_is_found(tmp_path):
    (tmp_path / "x.py").write_text("raise ValueError(f'size: found {x}, not 3')")
    ((_, text),) = errors_of(tmp_path / "x.py")
    assert text == "size: found {}, not 3"
    assert not GRAMMAR.fullmatch(text)


def test_a_system_that_counts_no_cores_of_a_process(monkeypatch):
    """MacOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


def test_a_name_that_a_disk_cannot_hold_is_no_folder(monkeypatch):
    """Windows refuses it with an error of its own kind in place of `not found`."""

    def refuse(path, **options):
        error = OSError(errno.EINVAL, "The filename syntax is incorrect", str(path))
        error.winerror = 123
        raise error

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"data: got a\?b, which is not a folder"
    ):
        find_source("a?b")


def test_checksums_name_files_in_the_same_way_everywhere(packed):
    """With slashes: a data set may be packed on Windows and verified on Linux."""
    names = set(packed.meta["sha256"])
    assert {"stats.npz", "train/labels.npy", "val/labels.npy"} <= names
    assert not any("\\" in name for name in names)
    verify(packed.path)
