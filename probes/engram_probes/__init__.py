"""Probes of an Engram transformer: each gives a result that needs neither model nor torch."""

_HOME = {
    "Alignment": "alignment",
    "AttentionMap": "head_maps",
    "AttentionPatterns": "attention",
    "Attribution": "attribution",
    "CompressionAudit": "compression_audit",
    "AttributionPatching": "patching",
    "ExpertRouting": "routing",
    "GateMap": "gates",
    "GateProfile": "gate_profiles",
    "Intervention": "interventions",
    "LinearProbe": "linear",
    "LogitLens": "lens",
    "Predictions": "predictions",
    "RowContexts": "contexts",
    "RowInspection": "row_inspection",
    "RowLoad": "row_use",
    "SlotTrace": "slots",
    "Suppression": "suppression",
    "TokenComparison": "token_comparison",
    "TrainingAlignment": "alignment_training",
    "TunedLens": "tuned_lens",
    "alignment_over_training": "alignment_training",
    "attention_map": "head_maps",
    "attention_patterns": "attention",
    "attribute": "attribution",
    "audit_compression": "compression_audit",
    "attribution_patching": "patching",
    "cka": "alignment",
    "compare_tokens": "token_comparison",
    "expert_routing": "routing",
    "gate_map": "gates",
    "gate_profile": "gate_profiles",
    "inspect_rows": "row_inspection",
    "inspect_slots": "slots",
    "intervene": "interventions",
    "linear_cka": "hsic",
    "load_result": "results",
    "logit_lens": "lens",
    "next_tokens": "predictions",
    "row_contexts": "contexts",
    "row_load": "row_use",
    "suppress": "suppression",
    "tune_lens": "tuned_lens",
}
_SUBMODULES = ("editing", "linear")
__all__ = [*_HOME, *_SUBMODULES]


def __getattr__(name: str):
    from importlib import import_module

    if name in _SUBMODULES:
        return import_module(f"engram_probes.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'engram_probes' has no attribute {name!r}")
    value = getattr(import_module(f"engram_probes.{_HOME[name]}"), name)
    globals()[name] = value
    return value
