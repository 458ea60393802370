"""The Triton kernels: interpreted on a CPU, and compiled for an H100 without one."""

import functools
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from helpers import LONG, ROOT

if not find_spec("triton"):
    pytest.skip("Triton is not installed", allow_module_level=True)

INTERPRETED = ROOT / "tests/unit/interpreted_kernels.py"


@functools.cache
def interpreted():
    """Run the interpreted tests in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", INTERPRETED, "-rA", "-p", "no:cacheprovider"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def assert_passed(are_compiled):
    """All those have passed whose name says that they compile, or all others."""
    done = interpreted()
    ends = re.findall(r"^(PASSED|FAILED|ERROR) \S+?::(.+)", done.stdout, re.M)
    found = [end for end, name in ends if ("_compiled_" in name) == are_compiled]
    assert len(found) >= (3 if are_compiled else 100), done.stdout + done.stderr
    assert set(found) == {"PASSED"}, done.stdout


@pytest.mark.slow
def test_kernels_agree_with_the_naive_formulas():
    assert_passed(are_compiled=False)


@pytest.mark.slow
def test_kernels_are_compiled_in_one_graph():
    assert_passed(are_compiled=True)


COMPILE = r"""
import os, re, sys
long = sys.argv[1] == "True"
os.environ.pop("TRITON_INTERPRET", None)
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from alexnet_nb import triton_kernels as kernels

TYPES = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}
LRN = ["pixels", "per_image"]
MAPS = ["count", "channels", "height", "width"]
# Numbers that go from row to row. Triton takes one for a constant where its new value
# is the first value of another; an interpreter does not.
CARRIED = {"_spatial_forward": 4, "_spatial_backward": 4 * 5 + 4 + 2}

def loads(name, pointers, sizes, floats, constants, warps):
    signature = dict.fromkeys(sizes, "i32") | dict.fromkeys(floats, "fp32") | pointers
    signature = {k: v for k, v in signature.items() if k not in constants}
    source = ASTSource(getattr(kernels, name), signature, constants)
    target = GPUTarget("cuda", 90, 32)
    done = triton.compile(source, target=target, options={"num_warps": warps})
    assert done.asm["cubin"]  # ptxas has taken it, too
    for loop in re.findall(r"iter_args\((.*?)\)", done.asm["ttir"]):
        assert loop.count("=") == CARRIED[name]
    return done.asm["ptx"].count("ld.global"), done.asm["ptx"].count("st.global")

def norm(name, kind, names, *rest):
    pointers = dict.fromkeys(names, TYPES[kind])
    return loads(name, pointers, *rest)

KINDS = TYPES if long else ["bf16"]
for kind in KINDS:
    for last in (True, False):
        rest = (MAPS, ["scale"], dict(last=last, block=512), 4)
        assert norm("_spatial_forward", kind, ["x", "y"], *rest) == (6 * 4, 4)
        rest = (MAPS, ["scale"], dict(last=last, block=256), 4)
        names = ["x", "grad", "dx"]
        assert norm("_spatial_backward", kind, names, *rest) == (20 * 2, 2)
for n in (1, 3, 5, 7, 9) if long else [5]:
    for beta in (0.75, 0.5) if long else [0.75]:
        shape = dict(n=n, beta=beta, channels=48, width=64, last=True)
        rest = (LRN, ["k", "scale"])
        each = (*rest, shape | dict(rows=64), 8)  # 16 numbers a thread
        assert norm("_lrn_forward", "bf16", ["x", "y"], *each) == (16 * n, 16)
        each = (*rest, shape | dict(rows=32), 8)  # 8 numbers a thread
        found = norm("_lrn_backward", "bf16", ["x", "grad", "dx"], *each)
        assert found == (8 * (2 * n - 1 + n), 8)
        shape["last"] = False
        for kind in KINDS:
            each = (*rest, shape | dict(rows=64), 8)
            norm("_lrn_forward", kind, ["x", "y"], *each)
            each = (*rest, shape | dict(rows=32), 8)
            norm("_lrn_backward", kind, ["x", "grad", "dx"], *each)
pointers = dict(images="*u8", offsets="*i64", flips="*u8", shift="*fp32")
pointers |= dict(mean="*fp32", scale="*fp32")
sizes = ["size", "mean_plane", "mean_row", "mean_column"]
for kind in KINDS:
    for flag in (True, False):
        flags = dict(side=224, aligned=flag, shifted=flag, block=1024)
        out = dict(out=TYPES[kind])
        loads("_crop_normalize", pointers | out, sizes, ["color_divide"], flags, 4)
print("compiled")
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(tmp_path):
    """And loads each number once for each place in a window, not for each pair.

    Every type, window and power behind the flag; else those of the paper in bfloat16.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    try:
        get_ptxas(90)
    except RuntimeError as error:
        pytest.skip(f"Triton has no ptxas: {error}")
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(LONG)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "compiled\n"


def test_layers_do_not_import_triton():
    script = "import sys, alexnet_nb.lrn; print('triton' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", "import sys, torch; print('triton' in sys.modules)"],
        capture_output=True,
        text=True,
    )
    with_torch = done.stdout
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.stdout == with_torch == "False\n"


WITHOUT = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
sys.modules["triton"] = None  # an import fails
import torch
from alexnet_nb.kernels import can_fuse, crop_normalize
from alexnet_nb.lrn import lrn
import alexnet_nb.triton_kernels
assert not can_fuse(torch.ones(1, 5, 1, 1))
print(lrn(torch.ones(1, 5, 1, 1)).shape)
"""


def test_everything_is_imported_without_triton():
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=env, capture_output=True, text=True
    )
    assert done.stdout == "torch.Size([1, 5, 1, 1])\n", done.stderr
