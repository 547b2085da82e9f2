"""The memory's operations: one file each, a plain reference that is also its documentation.

Every function takes and returns torch tensors. The nouns are those of the hooks: slots, rows, key,
value, score, gate, conv.
"""

# No file is named like a function of its own: importing the file would hide the function.
_HOME = {
    "collapse_head": "mixing",
    "compare_logits": "readout",
    "gate": "gating",
    "gate_score": "gating",
    "inject": "injection",
    "lookup": "gather",
    "lookup_ngrams": "gather",
    "mix_in": "mixing",
    "mix_out": "mixing",
    "ngram_slots": "hashing",
    "rms_norm": "norm",
    "short_conv": "convolution",
    "update_table": "table_update",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'engram_kernels' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"engram_kernels.{_HOME[name]}"), name)
