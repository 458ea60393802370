"""What a device computes: the same numbers as a CPU, twice, and without waiting.

Each test has a form on the CPU, where it runs everywhere, and one on a GPU.
"""

import json
import math
import os
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet_nb.augmentation import sample_augment_params
from alexnet_nb.base.rng import random_bits
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.data.packed import JpegArray
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.engine.checkpoint import (
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import torchrun_command, worker_environment
from alexnet_nb.engine.loop import begin_epoch
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.lrn import SpatialNorm, formula, lrn
from alexnet_nb.recipes import RECIPES
from helpers import LONG, PATIENCE, ROOT
from helpers.images import PHOTO, jpeg_strings

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MISSING = "no CUDA device"


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason=MISSING),
            ],
        ),
    ]
)
def device(request):
    return request.param


def spatial_formula(x):
    mean = torch.nn.functional.avg_pool2d(x.square(), 5, stride=1, padding=2)
    return x * (1 + 0.001 * mean) ** -0.75


NORMS = {
    "lrn": (
        lambda x: lrn(x, alpha=1e-3, columns=2),
        lambda x: formula(x, 5, 2.0, 1e-3, 0.75, 2),
    ),
    "lrn of 7 maps": (
        lambda x: lrn(x, n=7, k=1.0, alpha=1e-3, beta=0.6),
        lambda x: formula(x, 7, 1.0, 1e-3, 0.6, 1),
    ),
    "spatial": (SpatialNorm(), spatial_formula),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "how"),
    [*((dtype, "eager") for dtype in DTYPES), (torch.bfloat16, "compiled")],
    ids=str,
)
def test_normalization_is_that_of_float64(device, norm, layout, dtype, how):
    """Value and gradient to the rounding of the type, whatever computes them."""
    function, reference = NORMS[norm]
    if how == "compiled":
        torch._dynamo.reset()
        backend = "inductor" if device == "cuda" else "aot_eager"
        function = torch.compile(function, fullgraph=True, backend=backend)
    generator = torch.Generator().manual_seed(0)
    exact = [
        torch.randn(3, 32, 9, 11, dtype=torch.float64, generator=generator)
        .mul(scale)
        .to(dtype)
        .contiguous(memory_format=LAYOUTS[layout])
        for scale in (30, 1)
    ]
    x, grad = (tensor.to(device) for tensor in exact)
    x.requires_grad_()
    value = function(x)
    found = (value.detach(), *torch.autograd.grad(value, x, grad))
    x, grad = (tensor.double() for tensor in exact)
    x.requires_grad_()
    value = reference(x)
    expected = (value.detach(), *torch.autograd.grad(value, x, grad))
    rounding = max(torch.finfo(dtype).eps, 1e-13)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        gap = (a.cpu().double() - b).abs().max() / b.abs().max()
        assert gap <= 4 * rounding


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_random_bits_are_those_of_the_cpu(device, how):
    """Bit by bit, of any rows and columns, for a counter that the device holds."""
    function = random_bits
    if how == "compiled":
        torch._dynamo.reset()
        backend = "inductor" if device == "cuda" else "aot_eager"
        function = torch.compile(random_bits, fullgraph=True, backend=backend)
    rows = torch.tensor([0, 5, 2**31 - 1, 77])
    expected = random_bits((7, 3), 12345, rows, range(4096))
    counter = torch.tensor(12345, device=device)
    found = function((7, 3), counter, rows.to(device), range(4096))
    assert found.device.type == device
    assert torch.equal(found.cpu(), expected)
    some = function((7, 3), counter, rows[1:3].to(device), range(100, 900))
    assert torch.equal(some.cpu(), expected[1:3, 100:900])


@pytest.mark.parametrize("name", ["paper", "source2012"])
def test_random_choices_are_those_of_the_cpu(device, name):
    """Masks, crops and reflections bit by bit, colors to two units in the last place.

    Any rows of them, and the masks of a step that the device counts.
    """
    recipe = RECIPES[name]
    here = dropout_masks(recipe, 64, 7, 3)
    step = torch.tensor(3, device=device)
    there = dropout_masks(recipe, 64, 7, step, device=device)
    some = dropout_masks(recipe, 64, 7, 3, device=device, rows=slice(5, 40))
    for layer, mask in here.items():
        assert there[layer].device.type == device
        assert torch.equal(there[layer].cpu(), mask)
        assert torch.equal(some[layer].cpu(), mask[5:40])
    here = sample_augment_params(1000, 32, recipe, 7, 3)
    there = sample_augment_params(1000, 32, recipe, 7, 3, device=device)
    assert torch.equal(there.offsets.cpu(), here.offsets)
    assert torch.equal(there.flips.cpu(), here.flips)
    apart = there.color.cpu().view(torch.int32) - here.color.view(torch.int32)
    assert apart.abs().max() <= 2


def make_trainer(folder, device, **settings):
    """A trainer of a small network on digits."""
    given = dict(recipe="source2012", batch_size=64, compile=False, width_mult=1 / 16)
    given |= settings
    data = load_dataset("digits", 72)
    folder.mkdir(exist_ok=True)
    trainer = Trainer(folder, resolve(Config(**given)), data, None, device)
    begin_epoch(trainer, 0)
    return trainer


def take_steps(trainer, first, last):
    """Take some steps of an epoch; losses stay on the device."""
    count, offset = len(trainer.data.train), trainer.transform.max_offset
    params = sample_augment_params(
        count, offset, trainer.recipe, 0, 0, trainer.params_device
    )
    for index in range(first, last):
        stored = trainer.load_batch(None, params, index)
        trainer.train_step(*trainer.to_network_input(stored, color_noise=True))


class NoReading(TorchDispatchMode):
    """Refuse what makes Python wait for a number that a device computes."""

    REFUSED = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.REFUSED:
            raise RuntimeError(f"a training step called {name}, which waits")
        return function(*args, **(kwargs or {}))


def nobody_waits(device):
    """A context in which reading a number from the device is an error."""
    return NoReading() if device == "cpu" else SyncIsAnError()


class SyncIsAnError:
    """torch's own check of synchronization, for a while."""

    def __enter__(self):
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *error):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nobody_waits_in_a_step(device, tmp_path, precision):
    trainer = make_trainer(tmp_path / "run", device, precision=precision)
    take_steps(trainer, 0, 3)  # among them the capture, which waits
    with nobody_waits(device):
        take_steps(trainer, 3, 8)
    losses = [row[0] for row in trainer.read_metrics()]
    assert len(losses) == 8
    assert all(map(math.isfinite, losses))


def test_reading_a_number_is_noticed(device, tmp_path):
    trainer = make_trainer(tmp_path / "run", device)
    take_steps(trainer, 0, 3)
    with pytest.raises(RuntimeError), nobody_waits(device):
        trainer.unread[0][0].item()


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_losses_of_every_precision_are_finite_and_near(device, tmp_path, precision):
    """Those of the same steps in float64."""
    losses = {}
    for name in ("float64", precision):
        trainer = make_trainer(tmp_path / name, device, precision=name)
        take_steps(trainer, 0, 6)
        losses[name] = [row[0] for row in trainer.read_metrics()]
    assert all(map(math.isfinite, losses[precision]))
    assert losses[precision] == pytest.approx(losses["float64"], rel=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_run_has_the_same_bits_again_and_resumed(device, tmp_path, precision):
    """Weights and losses; the checkpoint is in the middle of an epoch."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        results = []
        for name, stop in (("once", None), ("again", None), ("resumed", 4)):
            trainer = make_trainer(tmp_path / name, device, precision=precision)
            losses, first = [], 0
            if stop:
                take_steps(trainer, 0, stop)
                losses = trainer.read_metrics()
                save_checkpoint(trainer)
                trainer = make_trainer(tmp_path / name, device, precision=precision)
                load_checkpoint(trainer, last_checkpoint(trainer))
                first = stop
            take_steps(trainer, first, 9)
            losses += trainer.read_metrics()
            results.append((losses, trainer.model.state_dict()))
    finally:
        torch.use_deterministic_algorithms(False)
    (losses, weights), *others = results
    assert len(losses) == 9
    for other_losses, other_weights in others:
        assert other_losses == losses
        for name, tensor in weights.items():
            assert torch.equal(other_weights[name], tensor)


@pytest.mark.distributed
@pytest.mark.parametrize("data_parallel", [0, 1], ids=["columns", "data_parallel"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_two_processes_on_one_device_agree_with_one(device, data_parallel, precision):
    """Over gloo: the exchange of the columns and the mean of gradients.

    In float32, a GPU crops the images itself.
    """
    if (device, precision) == ("cpu", "float32") and not LONG:
        pytest.skip("float64 says more on a CPU: set ALEXNET_NB_LONG=1")
    where = "cuda:0" if device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as store:
        environment = worker_environment(plan_placement(2, num_devices=0), store)
        script = ROOT / "tests/helpers/on_device.py"
        arguments = [where, str(data_parallel), "5", precision]
        done = subprocess.run(
            [*torchrun_command(2, store), script, *arguments],
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr
    gaps = json.loads(done.stdout.splitlines()[-1])
    assert len(gaps) == 1 + 16
    assert max(gaps.values()) <= (1e-10 if precision == "float64" else 1e-3)


def test_jpegs_are_decoded_for_a_device(device):
    """On a GPU by nvJPEG; in order.

    Its pixels differ by rounding, and where a color stands for four pixels by the way
    in which it is spread over them.
    """
    corners = [(9 * i, 5 * i, 9 * i + 64, 5 * i + 64) for i in range(12)]
    files = jpeg_strings([PHOTO.crop(corner) for corner in corners], 95)
    data = np.frombuffer(b"".join(files), np.uint8)
    array = JpegArray(data, np.cumsum([0, *map(len, files)]), 64)
    rows = np.array([7, 0, 11, 3])
    found = array.decode(rows, device)
    assert found.device.type == device
    apart = (found.cpu().int() - torch.from_numpy(array[rows]).int()).abs()
    assert apart.float().mean() <= (0 if device == "cpu" else 2)
    assert apart.max() <= (0 if device == "cpu" else 48)
    if device == "cuda":
        return  # nvJPEG may accept a file that lacks its end
    damaged = JpegArray(data[:-40], array.offsets.clip(max=len(data) - 40), 64)
    with pytest.raises(ValueError, match="image 11: got"):
        damaged.decode(rows, device)


def run_digits(folder, **settings):
    """Train digits for an epoch; return what was printed, and where it ran."""
    settings = dict(epochs=1, out_dir=str(folder)) | settings
    code = (
        "from alexnet_nb.engine.config import Config\n"
        "from alexnet_nb.engine.launch import train\n"
        f"train(Config(**{settings!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "env.json").read_text())["layout"]


@pytest.mark.distributed
def test_memory_is_shown_where_there_is_a_gpu(device, tmp_path):
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("a run takes the GPU of this machine")
    printed, _ = run_digits(tmp_path / "run", gpus=1)
    assert ("GPU memory: at most" in printed) == (device == "cuda")


@pytest.mark.gpu
@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
@pytest.mark.parametrize("data_parallel", [False, True])
def test_two_gpus_agree_with_one_over_nccl(tmp_path, data_parallel):
    """Loss by loss, in float64."""
    losses = []
    for gpus in (1, 2):
        folder = tmp_path / str(gpus)
        settings = dict(gpus=gpus, data_parallel=data_parallel and gpus == 2)
        _, layout = run_digits(folder, precision="float64", **settings)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert layout.startswith(f"{torch.cuda.device_count()} CUDA devices")
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
