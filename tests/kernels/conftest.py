"""Kernels run in Triton's interpreter on a CPU, compiled on a GPU; the tests are the same."""

import os
import subprocess
import sys

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative error in the 2-norm that rounding alone explains, with a margin of about 4:
# - float64: summation order only;
# - float32: sums of up to a few thousand terms, each with a rounding of 6e-8, in another order; the
#   tensor cores cut sums off instead of rounding (found: 1e-5 over 10,240 terms);
# - bfloat16: one rounding of the result, 2^-9 = 2e-3 at most and 1.7e-3 in the mean; Triton's
#   interpreter cuts off instead of rounding, which doubles it.
# A test's `factor` is for what loses digits by itself: 4 for gradients through the gate's root,
# whose slope has no bound at zero, and for the few sums over all tokens whose terms cancel; 2 and
# more for results rounded as often on their way.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 8e-3}


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """`|actual - expected| / |expected|` in float64; 0 where both are empty or zero."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert actual.shape == expected.shape
    difference, size = (actual - expected).norm(), expected.norm()
    return float(difference / size) if size > 0 else float(difference)


@pytest.fixture(scope="session")
def assert_close():
    """`assert_close(actual, expected)`: equal but for rounding in the dtype of `actual`."""

    def check(actual: torch.Tensor, expected: torch.Tensor, dtype=None, factor: float = 1.0):
        bound = factor * TOLERANCE[dtype or actual.dtype]
        error = relative_error(actual, expected)
        assert error <= bound, f"relative error {error:.2e} over {bound:.0e}"

    return check


COMPILE = """
import json, re, subprocess, sys, tempfile
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from importlib import import_module

report = []
for module, kernel, signature, constants, aligned, options in json.loads(sys.stdin.read()):
    function = getattr(import_module(module), kernel)
    names = function.arg_names
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(
        function,
        {name: signature.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        attributes,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    report.append({
        "wide_loads": len(re.findall(r"ld\\.global\\S*\\.v4\\.b32", ptx)),
        "wide_stores": len(re.findall(r"st\\.global\\S*\\.v4\\.b32", ptx)),
        "local": sum(map(int, re.findall(r"\\b(?:STACK|LOCAL):(\\d+)", usage))),
        "cubin": len(compiled.asm["cubin"]),
    })
print(json.dumps(report))
"""


@pytest.fixture(scope="session")
def compile_ahead():
    """Compile kernels for an H100 or H200 (sm_90) without one, in a process of its own.

    Takes a list of (module, kernel, signature, constants, aligned arguments, options); gives for
    each the number of 16-byte loads and stores, the bytes of local memory a thread has in the
    binary (what registers spill to), and the binary's size.
    """
    import json

    def compile_all(kernels: list[tuple]) -> list[dict]:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        result = subprocess.run(
            [sys.executable, "-c", COMPILE],
            input=json.dumps(kernels),
            capture_output=True,
            text=True,
            env=environment,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout)

    return compile_all
