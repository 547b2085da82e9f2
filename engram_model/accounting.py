"""How many parameters a model has, uses for one token, and keeps in its memory."""

from dataclasses import asdict, dataclass

from engram_model.config import EngramConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model.

    Attributes:
        total: every weight once (a tied head is not counted again).
        active: weights multiplied for one token: all but the input embedding (a tied one is the
            head), the memory's tables and the experts that were not chosen.
        active_paper: the same without the memory's projections, as the paper counts.
        table: rows of all memories times their width.
        memory: tables, projections, norms and convolutions of all memories.
        sparse: routed experts that are not chosen, and tables: what a memory and experts share.
        embedding: input embedding, and the head where it is not tied.
    """

    total: int
    active: int
    active_paper: int
    table: int
    memory: int
    sparse: int
    embedding: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def count_parameters(model) -> ParameterCount:
    """Count an `EngramForCausalLM`, which may be on the meta device."""
    config: EngramConfig = model.config
    numel = {name: weight.numel() for name, weight in model.named_parameters()}
    total = sum(numel.values())
    embed = numel["model.embed_tokens.weight"]
    table = _sum(numel, ".engram.embed.weight")
    routed = _sum(numel, ".experts.gate_up_proj") + _sum(numel, ".experts.down_proj")
    idle = routed - routed * config.num_experts_per_tok // config.n_routed_experts
    lookup_only = 0 if config.tie_word_embeddings else embed
    active = total - lookup_only - table - idle
    projections = _sum(numel, ".engram.wkv.weight") + _sum(numel, ".engram.wkv.bias")
    return ParameterCount(
        total=total,
        active=active,
        active_paper=active - projections,
        table=table,
        memory=sum(count for name, count in numel.items() if ".engram." in name),
        sparse=idle + table,
        embedding=embed + lookup_only,
    )


def _sum(numel: dict[str, int], suffix: str) -> int:
    return sum(count for name, count in numel.items() if name.endswith(suffix))
