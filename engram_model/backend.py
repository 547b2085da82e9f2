"""Which kernels a model's modules run: the one place where that is decided.

A module that can choose has `backend`, what is asked of it ("auto", "torch" or "triton"), and
`used`, what its last call ran. "auto" is Triton on a GPU; it gives way to the plain operations only
where those are needed, such as when TransformerLens listens to intermediates that the kernels do
not make. `ENGRAM_BACKEND` in the environment is what new modules ask for instead of "auto".
"""

import os

from torch import Tensor, nn

from engram_kernels import backend as kernels
from engram_model.errors import UsageError

DEFAULT = os.environ.get("ENGRAM_BACKEND", "auto")


def choose_backend(asked: str, why_plain: str | None, *tensors: Tensor) -> str:
    """ "torch" or "triton" for these tensors.

    Args:
        asked: the module's `backend`.
        why_plain: a reason why only the plain operations will do; None: there is none.

    Raises:
        UsageError: Triton was insisted on where it cannot run.
    """
    if asked == "triton" and why_plain:
        raise UsageError(f"backend 'triton' cannot be used: {why_plain}")
    try:
        return kernels.choose_backend("torch" if why_plain else asked, *tensors)
    except ValueError as error:
        raise UsageError(str(error)) from None


def set_backend(model: nn.Module, backend: str) -> None:
    """Ask every module that can choose for a backend.

    Raises:
        UsageError: no such backend.
    """
    if backend not in kernels.BACKENDS:
        raise UsageError(f"backend {backend!r}: choose from {', '.join(kernels.BACKENDS)}")
    for module in _choosers(model).values():
        module.backend = backend


def backends_used(model: nn.Module) -> dict[str, str | None]:
    """What the last call of each module that can choose ran; None before the first."""
    return {name: module.used for name, module in _choosers(model).items()}


def _choosers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "used")}
