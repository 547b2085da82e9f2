"""Patching nodes of a model from one text into another: gradients to estimate it, runs to do it.

Built on TransformerLens's attribution patching, whose list of nodes ends at attention and MLPs and
which takes one step along the gradient only; here memories are nodes, their rows too, several
streams will do, and gradients can be integrated.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

from engram_model.bridge import heads_hook, site_hook

Metric = Callable[[Tensor], Tensor]  # logits [batch, pos, vocab] -> [batch]
Values = dict[str, Tensor]  # hook point -> [1, pos, ...]
Cell = tuple["Node", Tensor]  # a node, and bool [pos]: where it is patched
EMBEDDING = "hook_embed"
TOKENS_AT_ONCE = 1024


@dataclass(frozen=True)
class Node:
    """What is patched at a position.

    Attributes:
        label: as in `EngramCache.decompose_resid` and attributions.
        kind: `embed`, `attention`, `head`, `mlp`, `memory`, `gate`, `rows` or `row`.
        hook: its hook point, [batch, pos, ...].
        unit: index behind the position, of a head or of a memory's column; None: all of it.
    """

    label: str
    kind: str
    hook: str
    unit: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Its part of what is at the hook point, [batch, pos, ...]."""
        return tensor if self.unit is None else tensor[:, :, self.unit]


def nodes_of(bridge: TransformerBridge, heads: bool = False) -> list[Node]:
    """Nodes, oldest first. They nest: a row is a part of `rows`, these and the gate act through
    the memory, a head through its attention.
    """
    found, hooks = [Node("embed", "embed", EMBEDDING)], bridge.hook_dict
    for layer in range(bridge.cfg.n_layers):
        found += _memory_nodes(bridge, layer)
        found.append(Node(f"{layer}_attn_out", "attention", site_hook(layer, "attn", hooks)))
        for head in range(bridge.cfg.n_heads if heads else 0):
            hook = heads_hook(layer, hooks)
            found.append(Node(f"{layer}_attn_head{head}", "head", hook, head))
        found.append(Node(f"{layer}_mlp_out", "mlp", site_hook(layer, "mlp", hooks)))
    return found


def _memory_nodes(bridge: TransformerBridge, layer: int) -> list[Node]:
    hook, label = f"blocks.{layer}.engram.hook_", f"{layer}_engram_"
    if f"{hook}rows" not in bridge.hook_dict:
        return []
    memory = bridge.blocks[layer].engram.original_component
    columns = [
        f"{label}order{order}_head{head}"
        for order in range(2, memory.max_ngram_size + 1)
        for head in range(memory.n_heads)
    ]
    gate = [Node(f"{label}gate", "gate", f"{hook}gate")] if memory.gated else []
    return [
        *(Node(name, "row", f"{hook}rows", unit) for unit, name in enumerate(columns)),
        Node(f"{label}rows", "rows", f"{hook}rows"),
        *gate,
        Node(f"{label}out", "memory", f"{hook}out"),
    ]


def values_of(
    bridge: TransformerBridge, tokens: Tensor, nodes: list[Node], metric: Metric
) -> tuple[Values, float]:
    """What the nodes hold in a run of tokens [1, pos], and the metric of that run."""
    with torch.no_grad():
        cache = cache_activation_and_gradient(
            bridge, tokens, _single(metric), _hooks(nodes), compute_gradient=False
        )
    return cache.activations, float(cache.metric)


def estimates(
    bridge: TransformerBridge,
    tokens: Tensor,
    receiver: Values,
    source: Values,
    nodes: list[Node],
    metric: Metric,
    steps: int = 1,
) -> Tensor:
    """What patching each node at each position would add to the metric, to first order.

    Args:
        tokens: [1, pos], of the run that is patched.
        receiver, source: what the nodes hold in that run, and in the one they are patched from.
        steps: 1: (source - receiver) . gradient, at the run itself. More: the gradient is the
            mean at the middles of so many stretches of the line from the run's inputs to the
            source's (EAP-IG). Inputs are the embedding and the memories' rows.

    Returns:
        float32 [nodes, pos].
    """
    totals: Values = {}
    for step in range(steps):
        share = 0.0 if steps == 1 else (step + 0.5) / steps
        with torch.enable_grad(), _inputs_between(bridge, receiver, source, share):
            cache = cache_activation_and_gradient(bridge, tokens, _single(metric), _hooks(nodes))
        for name, gradient in cache.gradients.items():
            if gradient is not None:
                totals[name] = totals.get(name, 0) + gradient.float() / steps
    gaps = {
        name: (source[name] - receiver[name]).float() * totals.get(name, torch.zeros(()).to(tokens))
        for name in _hooks(nodes)
    }
    return torch.stack([node.of(gaps[node.hook])[0].flatten(1).sum(1) for node in nodes])


def patched_metric(
    bridge: TransformerBridge, tokens: Tensor, source: Values, cells: list[Cell], metric: Metric
) -> Tensor:
    """The metric with each of the cells patched by itself, float32 [cells]."""
    at_once = max(1, TOKENS_AT_ONCE // tokens.shape[1])
    found = []
    for start in range(0, len(cells), at_once):
        batch = cells[start : start + at_once]
        hooks = [
            (hook, _patch(hook, source, batch))
            for hook in dict.fromkeys(node.hook for node, _ in batch)
        ]
        with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
            found.append(metric(bridge(tokens.expand(len(batch), -1))).float())
    return torch.cat(found)


def _patch(name: str, source: Values, batch: list[Cell]) -> Callable:
    def patch(tensor: Tensor, hook) -> Tensor:
        tensor = tensor.clone()
        for row, (node, where) in enumerate(batch):
            if node.hook == name:
                node.of(tensor)[row, where] = node.of(source[name])[0, where]
        return tensor

    return patch


@contextmanager
def _inputs_between(
    bridge: TransformerBridge, receiver: Values, source: Values, share: float
) -> Iterator[None]:
    """While open, a share of the way from one run's inputs to another's is what the model reads."""

    def between(name: str) -> Callable:
        return lambda tensor, hook: torch.lerp(receiver[name], source[name], share).requires_grad_()

    inputs = [name for name in receiver if name == EMBEDDING or name.endswith("engram.hook_rows")]
    with bridge.hooks(fwd_hooks=[(name, between(name)) for name in inputs]):
        yield


def _hooks(nodes: list[Node]) -> list[str]:
    return list(dict.fromkeys(node.hook for node in nodes))


def _single(metric: Metric) -> Metric:
    return lambda logits: metric(logits)[0]
