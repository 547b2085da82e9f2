"""What slots are inspected in: the hash and the rows of one model's memories.

A model is one source of them. Any object with the members of `MemoryTables` is another, so tables
that were opened from disk without their model can be given in its place.
"""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from engram_model.errors import UsageError

if TYPE_CHECKING:
    from engram_model.hashing import NgramHasher
    from engram_probes.capture import Subject


@runtime_checkable
class MemoryTables(Protocol):
    """The members that `inspect_slots` and `build_index` need.

    Attributes:
        hasher: compressed ids -> slots of every memory layer; its `pad_id` is the compressed id
            that stands for a token before the start.
        compression: raw id -> compressed id, int [vocabulary].
    """

    hasher: "NgramHasher"
    compression: np.ndarray

    def rows(self, slots: np.ndarray, layer_id: int) -> np.ndarray:
        """Slots [...] of a layer's flat table -> rows [..., width], float32."""
        ...

    def describe(self) -> dict[str, str]:
        """Name and whatever else fixes the tables, for provenance."""
        ...


class ModelTables:
    """The memories of a model."""

    def __init__(self, subject: "Subject") -> None:
        if not subject.memories:
            raise UsageError(f"{subject.name} has no memory, so it has no slots")
        self.subject = subject
        self._memories = {memory.layer_id: memory for memory in subject.memories}
        self.compression = subject.memories[0].compression.cpu().numpy().astype(np.int64)
        self.hasher = subject.memories[0].hasher_of(subject.memories)

    def rows(self, slots: np.ndarray, layer_id: int) -> np.ndarray:
        import torch

        indices = torch.as_tensor(slots, device=self.subject.model.device)
        with torch.inference_mode():
            return self._memories[layer_id].embed(indices).float().cpu().numpy()

    def describe(self) -> dict[str, str]:
        from engram_probes.provenance import describe_model

        return describe_model(self.subject.model)

    def value_shares(self, rows: np.ndarray, layer_id: int):
        """What each row alone adds to the value: rows [p, C, width] -> tensor [p, C, d].

        They sum over C to the value, less its bias.
        """
        import torch

        weight = self._memories[layer_id].value_weight.detach().float()
        return torch.einsum("pcw,dcw->pcd", torch.as_tensor(rows, device=weight.device), weight)

    def column_shares(self, slots: np.ndarray, column: int, layer_id: int) -> np.ndarray:
        """What rows [n] of one column (order and head) alone add to the value, [n, d]."""
        weight = self._memories[layer_id].value_weight[:, column].detach().float().cpu().numpy()
        return self.rows(slots, layer_id) @ weight.T

    def value_norms(self, slots: np.ndarray, column: int, layer_id: int) -> np.ndarray:
        """Sizes of these, [n]."""
        return np.linalg.norm(self.column_shares(slots, column, layer_id), axis=-1)

    def read(self, shares, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Final norm and unembedding on value shares [p, C, d].

        Returns:
            Ids and logits (above the vocabulary's mean) of the `most` best tokens, [p, C, most].
        """
        import torch

        found = []
        with torch.inference_mode():
            for position in shares:  # one by one: logits are as wide as the vocabulary
                states = position.to(self.subject.model.dtype)
                logits = self.subject.head(self.subject.norm(self.subject.alone(states))).float()
                found.append((logits - logits.mean(-1, keepdim=True)).topk(most))
        stacked = [torch.stack([getattr(f, name) for f in found]) for name in ("indices", "values")]
        return stacked[0].cpu().numpy(), stacked[1].cpu().numpy()


def tables_of(model_or_tables: Any) -> MemoryTables:
    """The tables of a model or bridge, or the object itself if it is one.

    Raises:
        UsageError: neither, a model without a memory, or one whose slots do not depend on the text.
    """
    if isinstance(model_or_tables, MemoryTables):
        return model_or_tables
    from engram_probes.capture import Subject

    return ModelTables(Subject.of(model_or_tables))
