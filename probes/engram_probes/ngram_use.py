"""How often a corpus has the n-grams of a text, and how crowded the rows are that they read."""

from dataclasses import dataclass

import numpy as np

from engram_probes.ngram_counts import ending_ngrams
from engram_probes.slot_index import SlotIndex

LOADS = ("tenants", "reads")
CONTROLS = 40
FIFTHS = 5
SAMPLED = 5_000  # n-grams of the corpus that say where the fifths lie


@dataclass(frozen=True, eq=False)
class TextUse:
    """The n-grams that end at each position; orders O, memory layers L, loads as in `LOADS`.

    counts: occurrences in the corpus, [O, p].
    loads: of the other n-grams in the rows that it reads, the mean over heads of the number of
        distinct ones, and of the logarithm of 1 + their occurrences, [load, O, L, p].
    own_share: share of the rows' reads that are its own, mean over heads, [O, L, p]; 0 for an
        n-gram that the corpus lacks.
    control: loads of rows that the n-gram does not read: those that hashes of other seeds would
        have given it, [control, load, O, L, p].
    """

    counts: np.ndarray
    loads: np.ndarray
    own_share: np.ndarray
    control: np.ndarray


class NgramUse:
    """Function: compressed ids of a text [p] -> `TextUse`.

    Args:
        index: n-grams of a corpus by the rows that they read.
        controls: hashes of other seeds.
    """

    def __init__(self, index: SlotIndex, controls: int = CONTROLS) -> None:
        from engram_model.hashing import hasher_from

        self._index = index
        self._layers = tuple(index.hash["layer_ids"])
        self._rows = {
            layer: (np.diff(index.layers[layer].offsets), index.row_reads(layer))
            for layer in self._layers
        }
        self._hasher = index.hasher
        first = index.hash["seed"] + 1
        self._others = [
            hasher_from({**index.hash, "seed": first + number}) for number in range(controls)
        ]
        self.orders = tuple(index.counts)
        self.corpus = index.corpus
        self.controls = controls

    def __call__(self, compressed: np.ndarray) -> TextUse:
        ngrams = ending_ngrams(compressed, self._hasher)
        counts = np.array([[self._index.count(tuple(n)) for n in order] for order in ngrams])
        tenants, reads = self._looked_up(self._hasher, compressed)  # [O, L, p, head]
        own = counts[:, None, :, None]
        share = np.where(reads > 0, own / np.maximum(reads, 1), 0).mean(-1)
        others = [self._looked_up(hasher, compressed) for hasher in self._others]
        control = [_loads(*found) for found in others]
        loads = _loads(tenants - (own > 0), reads - own)
        shape = (self.controls, *loads.shape)
        return TextUse(counts, loads, share, np.array(control, np.float32).reshape(shape))

    def _looked_up(self, hasher, compressed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct n-grams, and their occurrences, of each row that the text reads."""
        found = []
        for layer in self._layers:
            slots = hasher.slots(compressed, layer)
            row_map = self._index.layers[layer]
            found.append([row_map.values(of_rows, slots) for of_rows in self._rows[layer]])
        stacked = np.array(found).reshape(*np.shape(found)[:3], len(self.orders), -1)
        tenants, reads = stacked.transpose(1, 3, 0, 2, 4)
        return tenants, reads

    def fifths(self, seed: int) -> np.ndarray:
        """Where the loads' fifths begin: inner edges over distinct n-grams, [load, O, L, 4]."""
        generator, found = np.random.default_rng(seed), []
        for order, counts in self._index.counts.items():
            drawn = np.sort(generator.permutation(len(counts))[:SAMPLED])
            found.append(self._of_ngrams(order, drawn))
        shares = np.arange(1, FIFTHS) / FIFTHS
        edges = [np.quantile(loads, shares, axis=-1) for loads in found]  # [4, load, L]
        return np.stack(edges).transpose(2, 0, 3, 1)

    def _of_ngrams(self, order: int, numbers: np.ndarray) -> np.ndarray:
        """Loads of n-grams of one order by their number in the index, [load, L, n]."""
        from engram_probes.slot_index import slots_of

        ngrams, own = self._index.ngrams[order][:, numbers], self._index.counts[order][numbers]
        parts = []
        for layer in self._layers:
            slots = slots_of(self._hasher, ngrams, layer)
            tenants, reads = (
                self._index.layers[layer].values(of_rows, slots) for of_rows in self._rows[layer]
            )
            parts.append(_loads(tenants - 1, reads - own[:, None]))
        return np.stack(parts, 1)


def _loads(tenants: np.ndarray, reads: np.ndarray) -> np.ndarray:
    """Others in each row [..., head] -> [load, ...]."""
    return np.stack([tenants.mean(-1), np.log1p(reads).mean(-1)]).astype(np.float32)
