"""TransformerLens: hooks on the memory and on the streams, and a cache that knows both.

With `bridge_qwen` the only module that touches TransformerLens. `hooked(model, tokenizer)` gives a
TransformerBridge with the standard names and `blocks.N.engram.hook_*`; its cache's decompositions
contain the memory and add up, on one residual stream and on several.
"""

import copy
import re
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import (
    MLABlockBridge,
    MoEBridge,
    MoERouterBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.model_bridge.supported_architectures.deepseek_v3 import (
    DeepSeekV3ArchitectureAdapter,
)
from transformer_lens.model_bridge.supported_architectures.deepseek_v4 import (
    DeepseekV4BlockBridge,
    DeepseekV4HyperConnectionBridge,
)
from transformer_lens.utilities.slice import Slice

from engram_model.decompose import Site, Write, contributions, readings
from engram_model.errors import UsageError
from engram_model.memory import HOOKS

# What `EngramCache.readings` at the end of the model is made of.
WRITERS = re.compile(
    r"hook_(pos_)?embed|ln_final\.hook_scale|blocks\.\d+\."
    r"(hook_out|((linear_)?attn|mlp|ln1_post|ln2_post)\.hook_out|attn\.hook_z"
    r"|(attn|mlp)_hc\.hook_(post|comb)"
    r"|engram\.hook_(slots|rows|gate|conv|out))"
)
EMBEDDINGS = ("embed", "pos_embed")
PATTERN = re.compile(r"blocks\.\d+\.attn\.hook_pattern")
ROUTERS = ("gate", "router")  # names of the component in a MoEBridge
PARTS_OF_ROUTING = ("logits", "weights", "indices")


class MemoryBridge(GeneralizedComponent):
    """An `EngramMemory` with a hook point on each of its intermediates.

    hook_slots [batch, pos, columns] int64, hook_rows [batch, pos, columns, width],
    hook_key [batch, pos, M, d], hook_value [batch, pos, d], hook_score and hook_gate
    [batch, pos, M], hook_conv [batch, pos, M, d]; hook_out, what is added, is [batch, pos, d] for
    one stream and [batch, pos, M, d] for several. All are live: what a hook returns is used.
    """

    def __init__(self, name: str, config: Any = None) -> None:
        super().__init__(name, config, optional=True)
        for hook in HOOKS:
            if hook != "out":  # every component has that one
                setattr(self, f"hook_{hook}", HookPoint())

    def forward(
        self,
        hidden: Tensor,
        input_ids: Tensor,
        past_key_values=None,
        ahead=None,
        residual: bool = False,
    ) -> Tensor:
        with self._hooked() as memory:
            added = memory(self.hook_in(hidden), input_ids, past_key_values, ahead)
        return hidden + added if residual else added

    @contextmanager
    def _hooked(self) -> Iterator[Any]:
        """The memory, whose intermediates go through the hooks meanwhile."""
        memory = self.original_component
        memory.tap = lambda name, tensor: getattr(self, f"hook_{name}")(tensor)
        try:
            yield memory
        finally:
            memory.tap = None


class StreamBlockBridge(DeepseekV4BlockBridge, MLABlockBridge):
    """A block of several streams; its input and output are [batch, pos, M, d]."""

    maintain_native_attention = False
    hook_aliases: dict[str, str | list[str]] = {  # noqa: RUF012
        "hook_attn_out": "attn.hook_out",
        "hook_mlp_out": "mlp.hook_out",
    }


class EngramAdapter(DeepSeekV3ArchitectureAdapter):
    """Adds memory and streams to TransformerLens's DeepSeek-V3; found through an entry point."""

    prepend_bos = True  # the models are trained on documents that begin with <bos>

    def _build_component_mapping(self) -> dict:
        mapping = super()._build_component_mapping()
        blocks = mapping["blocks"]
        blocks.submodules["engram"] = MemoryBridge(name="engram", config=self.cfg)
        if (getattr(self.cfg, "hc_mult", None) or 1) == 1:
            return mapping
        submodules = {
            **blocks.submodules,
            "attn_hc": self._mixing("attn_hc"),
            "mlp_hc": self._mixing("ffn_hc"),
        }
        mapping["blocks"] = StreamBlockBridge(
            name="model.layers", config=self.cfg, submodules=submodules
        )
        mapping["hc_head"] = GeneralizedComponent(name="model.hc_head")
        return mapping

    def _build_router(self) -> MoERouterBridge:
        """With `hook_expert_weights` and `hook_expert_indices`, which DeepSeek-V3's lacks."""
        return MoERouterBridge(name="gate", optional=True)

    def _mixing(self, name: str) -> DeepseekV4HyperConnectionBridge:
        # Without its norm: `mix_in` computes norm and projection in one, no hook would fire there.
        return DeepseekV4HyperConnectionBridge(name=name, config=self.cfg)

    def prepare_model(self, hf_model: Any) -> None:
        super().prepare_model(hf_model)
        # DeepSeek's config.head_dim is that of the rotary part; heads write v_head_dim numbers.
        self.cfg.d_head = hf_model.config.v_head_dim


class EngramBridge(TransformerBridge):
    """TransformerBridge whose cache is an `EngramCache`, or another of `cache_class`."""

    cache_class: type[ActivationCache]

    def run_with_cache(self, *args, **kwargs):
        output, cache = super().run_with_cache(*args, **kwargs)
        if isinstance(cache, ActivationCache):
            cache.__class__ = self.cache_class
        return output, cache

    def tokens_to_residual_directions(self, tokens) -> Tensor:
        """Directions in the residual stream, the final norm's weight included (it is not folded).

        [..., d]: `logit = <residual / scale, direction>`.
        """
        return super().tokens_to_residual_directions(tokens) * self.ln_final.weight


class EngramCache(ActivationCache):
    """ActivationCache whose decompositions contain the memory and add up.

    With several streams a residual is read as the model's own head reads it: the streams at that
    layer collapsed with the head's weights there, all later mixing weights held at the values they
    had. Labels of the memory are `{layer}_engram_out`.
    """

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice=None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ):
        """Components of the residual before `layer` (None: the end): embedding, memory, attention
        and MLP of each layer. Arguments and result as in TransformerLens: [components, batch, pos,
        d], oldest first.
        """
        layer = self._layer(layer)
        labelled = dict(self._contributions(layer, mlp_input))
        wanted = [
            label
            for label in reversed(labelled)  # oldest first; the embedding comes last above
            if (label in EMBEDDINGS and incl_embeds)
            or (label not in EMBEDDINGS and (mode == "all" or label.endswith(f"{mode}_out")))
        ]
        position_slice = _slice(pos_slice)
        stack = torch.stack([position_slice.apply(labelled[label], dim=-2) for label in wanted])
        if apply_ln:
            stack = self._normalise(stack, labelled, layer, mlp_input, position_slice)
        return (stack, wanted) if return_labels else stack

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice=None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ):
        """The residual before every layer up to `layer`, collapsed by the head if in streams."""
        if not self._streams:
            return super().accumulated_resid(
                layer, incl_mid, apply_ln, pos_slice, mlp_input, return_labels
            )
        layer, position_slice = self._layer(layer), _slice(pos_slice)
        labels, residuals = [], []
        for index in range(layer + 1):
            last = index == self.model.cfg.n_layers
            labels.append("final_post" if last else f"{index}_pre")
            residuals.append(self._collapsed(index, False))
            if not last and ((incl_mid and index < layer) or (mlp_input and index == layer)):
                labels.append(f"{index}_mid")
                residuals.append(self._collapsed(index, True))
        stack = torch.stack([position_slice.apply(residual, dim=-2) for residual in residuals])
        if apply_ln:
            stack = self._final_norm(stack)
        return (stack, labels) if return_labels else stack

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = False,
        apply_ln: bool = False,
        pos_slice=None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ):
        """As TransformerLens's, with rows for the memory; one stream only.

        Raises:
            NotImplementedError: several streams, where heads have no common place to be read.
        """
        if self._streams:
            raise NotImplementedError(
                "several residual streams: use decompose_resid, whose terms add up"
            )
        stack, labels = super().get_full_resid_decomposition(
            layer, mlp_input, expand_neurons, apply_ln, pos_slice, True, project_output_onto
        )
        memory, names = (
            self.decompose_resid(layer, mlp_input, "engram", apply_ln, pos_slice, False, True)
            if self._memory_layers(self._layer(layer), mlp_input)
            else (stack[:0], [])
        )
        if project_output_onto is not None and names:
            memory = memory @ project_output_onto
        stack, labels = torch.cat([stack, memory.to(stack.dtype)]), [*labels, *names]
        return (stack, labels) if return_labels else stack

    def readings(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """How the end of the model reads what each component wrote, newest first.

        Yields:
            label as in `decompose_resid`, weights [batch, pos, M, 1] (or [.., d] if the end reads
            each channel with its own), and what was written [batch, pos, M, d], or
            [batch, pos, 1, d] where every stream was given the same.
        """
        layer, embedding = self._layer(None), self["hook_embed"]
        if self._streams:
            readout = self._head_weights(self._residual(layer, False))
            yield from readings(readout, self._writers(layer, False), embedding)
            return
        for label, out in self._contributions(layer, False):
            out = out.float().unsqueeze(-2)
            yield label, torch.ones_like(out[..., :1]), out

    @property
    def _streams(self) -> bool:
        return (getattr(self.model.cfg, "hc_mult", None) or 1) > 1

    def _layer(self, layer: int | None) -> int:
        return self.model.cfg.n_layers if layer is None or layer == -1 else layer

    def _memory_layers(self, layer: int, mlp_input: bool) -> list[int]:
        reach = range(layer + 1 if mlp_input else layer)
        return [index for index in reach if f"blocks.{index}.engram.hook_out" in self]

    def _contributions(self, layer: int, mlp_input: bool) -> Iterator[tuple[str, Tensor]]:
        """Label and [batch, pos, d] of every writer, newest first, the embedding last."""
        embedding = self["hook_embed"]
        if self._streams:
            readout = self._head_weights(self._residual(layer, mlp_input))
            yield from contributions(readout, self._writers(layer, mlp_input), embedding)
        else:
            for writer in self._writers(layer, mlp_input):
                yield writer.label, writer.out
            if "hook_pos_embed" in self:  # learnt positions, as in GPT-2
                yield "pos_embed", self["hook_pos_embed"]
            yield "embed", embedding

    def _writers(self, layer: int, mlp_input: bool) -> Iterator[Site | Write]:
        for index in range(layer if mlp_input else layer - 1, -1, -1):
            if index < layer:
                yield self._site(index, "mlp")
            yield self._site(index, "attn")
            memory = f"blocks.{index}.engram.hook_out"
            if memory in self:
                yield Write(f"{index}_engram_out", self[memory])

    def _site(self, index: int, kind: str) -> Site | Write:
        label, out = f"{index}_{kind}_out", self[site_hook(index, kind, self.cache_dict)]
        if not self._streams:
            return Write(label, out)
        mixing = f"blocks.{index}.{kind}_hc"
        comb = self.cache_dict.get(f"{mixing}.hook_comb")  # Qwen's streams pass unmixed
        return Site(label, out, self[f"{mixing}.hook_post"], comb)

    def _residual(self, layer: int, mlp_input: bool) -> Tensor:
        """The streams before a layer, or before its MLP: [batch, pos, M, d]."""
        if mlp_input:
            return self[f"blocks.{layer}.mlp_hc.hook_in"]
        if layer == self.model.cfg.n_layers:
            return self[f"blocks.{layer - 1}.hook_out"]
        return self[f"blocks.{layer}.hook_in"]

    def _collapsed(self, layer: int, mlp_input: bool) -> Tensor:
        streams = self._residual(layer, mlp_input)
        return (self._head_weights(streams) * streams.float()).sum(-2)

    def _head_weights(self, streams: Tensor) -> Tensor:
        """Weights of the model's own collapse, [batch, pos, M, 1]; it returns their sum only."""
        head = self.model.hc_head.original_component
        mixes = F.linear(_plain(head.input_norm)(streams.flatten(-2).float()), head.hc_fn.float())
        weights = torch.sigmoid(mixes * head.hc_scale.float() + head.hc_base.float()) + head.eps
        return weights.unsqueeze(-1)

    def _final_norm(self, stack: Tensor) -> Tensor:
        return _plain(self.model.ln_final)(stack)

    def _normalise(self, stack, labelled, layer, mlp_input, position_slice) -> Tensor:
        """Divide by the scale of the norm that reads this residual."""
        if not self._streams or layer == self.model.cfg.n_layers:
            return self.apply_ln_to_stack(
                stack, layer, pos_slice=position_slice, mlp_input=mlp_input
            )
        total = position_slice.apply(sum(labelled.values()), dim=-2)
        eps = _plain(self.model.ln_final).variance_epsilon
        return stack * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)


def site_hook(layer: int, kind: str, hooks: Container[str]) -> str:
    """Which of the hooks sees what an attention ("attn") or "mlp" adds to the residual."""
    # As Gemma 2, some norm what they add; as Qwen3-Next, some have two kinds of attention.
    norm = f"{'ln1' if kind == 'attn' else 'ln2'}_post"
    names = (f"blocks.{layer}.{part}.hook_out" for part in (norm, kind, f"linear_{kind}"))
    return next(name for name in names if name in hooks)


def heads_hook(layer: int, hooks: Container[str]) -> str:
    """Which of the hooks sees what each head gathered, before W_O.

    Raises:
        UsageError: none does.
    """
    name = f"blocks.{layer}.attn.hook_z"
    if name not in hooks:
        raise UsageError(
            f"the attention of layer {layer} shows its heads to no hook: leave them out"
        )
    return name


def _slice(pos_slice) -> Slice:
    return pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)


def _plain(module: nn.Module) -> nn.Module:
    """The module beneath TransformerLens's wrapper: used here without firing its hooks."""
    return getattr(module, "original_component", None) or module


EngramBridge.cache_class = EngramCache


def hooked(model, tokenizer) -> EngramBridge:
    """A TransformerBridge on a model's weights; the model itself stays as it is.

    Args:
        model: an `EngramForCausalLM`, a `Qwen4ExpForCausalLM`, or another causal model that
            TransformerLens knows.
        tokenizer: its tokenizer; strings are encoded with `<bos>` in front, as in training.

    Returns:
        A bridge whose logits equal the model's, with hooks `blocks.N.engram.hook_*`.

    Raises:
        UsageError: TransformerLens has no adapter for the model's architecture.
    """
    architecture = type(model).__name__
    ours = _ours().get(architecture)
    if ours is not None:
        # Entry points come first: after registering, ours would seem to override another.
        ArchitectureAdapterFactory.discover_entry_points()
        ArchitectureAdapterFactory.register_adapter(architecture, ours)
    elif architecture not in SUPPORTED_ARCHITECTURES:
        raise UsageError(f"TransformerLens has no adapter for a {architecture}")
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    view = copy.deepcopy(model, shared)  # own modules, same tensors: wrapping changes modules
    object.__setattr__(view, "plain", getattr(model, "plain", model))  # no part of the view
    with TemporaryDirectory() as folder:
        # TransformerLens opens a tokenizer again by its name, which one made in memory lacks.
        tokenizer.save_pretrained(folder)
        bridge = build_bridge_from_module(
            view,
            architecture,
            hf_config=view.config,
            tokenizer=type(tokenizer).from_pretrained(folder),
            model_name=getattr(model.config, "name_or_path", "") or architecture,
        )
    bridge.__class__ = getattr(ours, "bridge_class", EngramBridge)
    return bridge


def _ours() -> dict[str, type]:
    """Adapters of ours, by architecture. The last imports this module, and transformers' Qwen."""
    from engram_model.bridge_qwen import QwenAdapter

    return {"EngramForCausalLM": EngramAdapter, "Qwen4ExpForCausalLM": QwenAdapter}


def as_bridge(model, tokenizer) -> TransformerBridge:
    """The bridge itself if it is one, hooks and all; else `hooked(model, tokenizer)`."""
    return model if isinstance(model, TransformerBridge) else hooked(model, tokenizer)


def routers(bridge: TransformerBridge) -> dict[int, nn.Module]:
    """Of each block with routed experts the component that chooses them.

    Its output holds the logits [tokens, experts], the weights and the ids of the chosen ones
    [tokens, k], at the places that `routing` knows; hooks of the bridge have acted on it.
    """
    found = {}
    for index, block in enumerate(bridge.blocks):
        experts = getattr(block, "mlp", None)
        if isinstance(experts, MoEBridge) and not experts.bound_dense:
            router = next((r for r in ROUTERS if r in experts.submodules), None)
            if router is not None:
                found[index] = getattr(experts, router)
    return found


def routing(router: nn.Module, output) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [tokens, experts], weights and ids [tokens, k] in a router's output.

    Raises:
        UsageError: a router that gives its logits alone.
    """
    if not isinstance(output, tuple) or len(output) < 3:
        raise UsageError(
            f"{type(_plain(router)).__name__} does not say which experts it chose; use a model "
            "whose router gives logits, weights and ids, as DeepSeek-V3's, Qwen3's and Mixtral's do"
        )
    places = [getattr(router, f"{name}_index", at) for at, name in enumerate(PARTS_OF_ROUTING)]
    logits, weights, ids = (output[place] for place in places)
    if weights.shape != ids.shape:  # some give a weight to every expert
        weights = weights.gather(-1, ids.long())
    return logits, weights, ids


@contextmanager
def patterns(
    bridge: TransformerBridge, keep: Callable[[int, Tensor], None]
) -> Iterator[tuple[int, ...]]:
    """While open, `keep(layer, pattern)` is told every attention pattern [batch, head, query, key].

    Yields:
        The layers that have one.

    Raises:
        UsageError: no block has attention that TransformerLens sees into.
    """
    names = [name for name in bridge.hook_dict if PATTERN.fullmatch(name)]
    layers = {name: int(name.split(".")[1]) for name in names}
    if not layers:
        raise UsageError(f"{bridge.cfg.model_name} has no attention patterns in TransformerLens")

    def heard(pattern: Tensor, hook: HookPoint) -> None:
        keep(layers[hook.name], pattern)

    with bridge.hooks(fwd_hooks=[(name, heard) for name in names]):
        yield tuple(sorted(layers.values()))


def run_at_end(bridge: TransformerBridge, ids: list[int]) -> tuple[Tensor, EngramCache]:
    """Run one text and keep what was written at its last position.

    Returns:
        logits [vocab] of the last position, and a cache of what `EngramCache.readings` needs, with
        batch and position axes of length one.
    """
    model = bridge.original_model
    training = model.training
    if training:  # a change of mode takes as long as a short text
        model.eval()  # no dropout
    try:
        with torch.no_grad():
            tokens = torch.tensor([ids], device=model.device)
            logits, cache = bridge.run_with_cache(tokens, names_filter=_is_writer)
    finally:
        if training:
            model.train()
    # A copy, so that what was kept of the other positions can go.
    kept = {name: tensor[:, -1:].clone() for name, tensor in cache.items()}
    return logits[0, -1], type(cache)(kept, bridge)


def _is_writer(name: str) -> bool:
    return WRITERS.fullmatch(name) is not None
