"""Which version of an operation runs, and how the Triton ones become torch operators.

Every operation has a plain reference on torch tensors, which is its documentation, and a Triton
version that is registered with `torch.library`: `torch.compile` keeps it as one node, autograd
knows its backward, and a CUDA graph can capture it.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter

BACKENDS = ("auto", "torch", "triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when a kernel is defined


def choose_backend(backend: str, *tensors: Tensor) -> str:
    """The version that runs for these tensors: "torch" or "triton".

    Args:
        backend: "auto" takes Triton for tensors on a GPU and torch elsewhere; "torch" and "triton"
            insist.

    Raises:
        ValueError: an unknown backend, or Triton for tensors that are not on a GPU (it also runs on
            a CPU, slowly, when `TRITON_INTERPRET=1` was set before the import).
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: choose from {', '.join(BACKENDS)}")
    on_gpu = all(tensor.is_cuda for tensor in tensors)
    if backend == "auto":
        return "triton" if on_gpu else "torch"
    if backend == "triton" and not (on_gpu or INTERPRETED):
        places = ", ".join(sorted({tensor.device.type for tensor in tensors}))
        raise ValueError(f"backend 'triton' needs a GPU; the tensors are on {places}")
    return backend


_LIBRARY = torch.library.Library("engram", "FRAGMENT")


def operator(
    schema: str,
    launch: Callable,
    fake: Callable,
    backward: Callable | None = None,
    keep: Callable | None = None,
) -> Callable:
    """Register a Triton launch as `torch.ops.engram.<name>`.

    Returns:
        Function of the same arguments; its `operator` is the registered one.

    Args:
        schema: as in `torch.library.define`, e.g. "double(Tensor x) -> Tensor".
        launch: allocates the results and launches the kernels.
        fake: the same arguments -> results of the right shapes, without data.
        backward, keep: `backward(ctx, *grads)` and `setup_context(ctx, inputs, output)`.
    """
    name = schema.split("(")[0]

    def launch_there(*given):
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device_of(_first_tensor(given)):
            return launch(*given)

    _LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, launch_there, device)
    torch.library.register_fake(f"engram::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"engram::{name}", backward, setup_context=keep, lib=_LIBRARY
        )
    registered = getattr(torch.ops.engram, name)

    def call(*given):
        if torch.autograd.forward_ad._current_level >= 0:
            raise NotImplementedError("the kernels have no forward-mode derivatives: use torch")
        # The way through the dispatcher takes longer than a small kernel.
        return launch_there(*given) if _plain(given) else registered(*given)

    call.operator = registered.default  # type: ignore[attr-defined]
    return call


def _first_tensor(given: tuple) -> Tensor:
    return next(value for value in given if isinstance(value, Tensor))


def _plain(given: tuple) -> bool:
    """Whether nobody needs to know of a call: neither autograd nor a compiler or other tracer."""
    grad = torch.is_grad_enabled()
    for value in given:
        if isinstance(value, Tensor) and (
            type(value) not in (Tensor, Parameter) or (grad and value.requires_grad)
        ):
            return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`: Triton's ranges must be one."""
    return 1 << max(0, size - 1).bit_length()
