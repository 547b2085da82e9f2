"""A logit as an exact sum over all that was written to the residual, the memory row by row.

With the scale of the final norm held at its value a logit is linear in the residual, and so in
what each component wrote. A memory writes gate_m * value + conv_m to stream m, and its value is a
product of the rows it looked up: one term a row, the convolution with its SiLU a term of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engram_model.bridge import heads_hook
from engram_model.errors import UsageError

EMBED, ATTENTION, MLP, MEMORY = "embed", "attention", "mlp", "memory"


@dataclass(frozen=True, eq=False)
class MemoryColumns:
    """The rows of one layer's memory at one position, C of them.

    slots: [C]. readers: [C, width]; `<row, reader>` is what a row adds to the logit.
    """

    slots: Tensor
    readers: Tensor


@dataclass(frozen=True, eq=False)
class LogitShares:
    """What each component adds to a logit, oldest first.

    labels, parts: of each its name, and which part of the model it is of.
    by_stream: [components, M] float64, by the residual stream it was written to.
    columns: layer -> its memory's rows; their components are `{layer}_engram_order{n}_head{h}`.
    """

    labels: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    by_stream: list[Tensor] = field(default_factory=list)
    columns: dict[int, MemoryColumns] = field(default_factory=dict)


@torch.no_grad()
def logit_direction(bridge, token: int, against: int | None = None) -> tuple[Tensor, float | None]:
    """How the end of the model turns a residual r into a logit: `<r / scale, direction> + bias`.

    Args:
        bridge: a TransformerBridge.
        token: whose logit; less that of `against`, if given.

    Returns:
        direction [d] float64, weights and centring of the final norm included (if one follows the
        reading of the streams), and the biases of norm and unembedding, or None if the model has
        none.
    """
    unembed, norm = bridge.unembed, getattr(bridge, "ln_final", None)
    offset, column = float(unembed.b_U[token]), unembed.W_U[:, token].double()
    if against is not None:
        offset -= float(unembed.b_U[against])
        column = column - unembed.W_U[:, against].double()
    if norm is None:
        return column, offset if unembed.b_U.any() else None
    weight = norm.original_component.weight.double()
    bias = getattr(norm.original_component, "bias", None)
    direction = column * (1 + weight if norm.uses_weight_offset else weight)
    if not norm.uses_rms_norm:
        direction = direction - direction.mean()
    if bias is None and not unembed.b_U.any():
        return direction, None
    return direction, offset + (0.0 if bias is None else float(column @ bias.double()))


@torch.no_grad()
def logit_shares(cache, direction: Tensor, heads: bool = False) -> LogitShares:
    """Shares of the logit at the one position that `run_at_end` keeps.

    Args:
        cache: from `engram_model.bridge.run_at_end`.
        direction: [d], from `logit_direction`.
        heads: attention by heads, `{layer}_attn_head{h}` and, where it has one, `_attn_bias`.

    Raises:
        UsageError: heads of a model that norms what attention adds, which is no sum of them, or
            that has another kind of attention.
    """
    scale = cache["ln_final.hook_scale"][0, 0].double() if "ln_final.hook_scale" in cache else 1.0
    shares = LogitShares()
    for label, weights, out in reversed(list(cache.readings())):
        read = weights[0, 0].double() * (direction / scale)  # [M, d]
        if label.endswith("_engram_out"):
            layer = int(label.split("_")[0])
            for name, share in _memory(cache, layer, read, shares.columns):
                _add(shares, f"{layer}_engram_{name}", MEMORY, share)
        elif heads and label.endswith("_attn_out"):
            for name, share in _heads(cache, int(label.split("_")[0]), read):
                _add(shares, label.replace("out", name), ATTENTION, share)
        else:
            _add(shares, label, _part(label), (out[0, 0].double() * read).sum(-1))
    return shares


def _add(shares: LogitShares, label: str, part: str, share: Tensor) -> None:
    shares.labels.append(label)
    shares.parts.append(part)
    shares.by_stream.append(share)


def _part(label: str) -> str:
    if label.endswith("_attn_out"):
        return ATTENTION
    return MLP if label.endswith("_mlp_out") else EMBED


def _heads(cache, layer: int, read: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Name and share [M] of each head, then of the bias."""
    if f"blocks.{layer}.ln1_post.hook_out" in cache:
        raise UsageError(
            "this model norms what attention adds: its heads have no share of their own"
        )
    gathered = cache[heads_hook(layer, cache.cache_dict)]
    output = cache.model.blocks[layer].attn.o.original_component
    heads = gathered[0, 0].double()
    weight = output.weight.double()
    weight = weight if isinstance(output, torch.nn.Linear) else weight.T  # GPT-2's is turned
    shares = torch.einsum("hw,mhw->hm", heads, (read @ weight).unflatten(-1, heads.shape))
    yield from ((f"head{head}", share) for head, share in enumerate(shares))
    if output.bias is not None:
        yield "bias", read @ output.bias.double()


def _memory(
    cache, layer: int, read: Tensor, columns: dict[int, MemoryColumns]
) -> Iterator[tuple[str, Tensor]]:
    """Name and share [M] of each row, of the bias and of the convolution."""
    hook = f"blocks.{layer}.engram.hook_"
    memory = cache.model.blocks[layer].engram.original_component
    rows = cache[f"{hook}rows"][0, 0].double()
    opened = read * cache[f"{hook}gate"][0, 0].double().unsqueeze(-1)  # one gate may serve all
    readers = torch.einsum("md,dcw->mcw", opened, memory.value_weight.double())
    for column, share in enumerate(torch.einsum("cw,mcw->cm", rows, readers)):
        order, head = 2 + column // memory.n_heads, column % memory.n_heads
        yield f"order{order}_head{head}", share
    if memory.value_bias is not None:
        yield "bias", opened @ memory.value_bias.detach().double()
    if f"{hook}conv" in cache:
        yield "conv", (read * cache[f"{hook}conv"][0, 0].double()).sum(-1)
    columns[layer] = MemoryColumns(cache[f"{hook}slots"][0, 0], readers.sum(0))
