"""Which figures a result offers: the options of its `figure`, with names to choose them by."""

from itertools import product
from typing import TYPE_CHECKING, Any

from engram_model.errors import UsageError

if TYPE_CHECKING:
    from engram_probes.results import Result

# Of each kind, the options of `figure` and their values, the default first.
CHOICES: dict[str, tuple[dict[str, tuple[Any, ...]], ...]] = {
    "attention": ({"what": ("heads", "layers", "pattern")},),
    "gates": ({"what": ("gate", "score", "added")},),
    "gate-profile": ({"what": ("auc", "groups", "frequency", "correlations")},),
    "lens": (
        {"view": ("grid", "curve", "strata"), "what": ("kl", "entropy", "log_prob", "rank")},
        {"view": ("curve",), "what": ("kl_reverse", "js", "settled", "top1_agreement")},
    ),
    "lens-difference": (
        {"what": ("kl", "kl_reverse", "js", "entropy", "rank", "log_prob", "settled")},
    ),
    "cka": ({"what": ("cka", "neighbours", "procrustes", "rsa", "sinks")},),
    "cka-training": ({"what": ("soft", "final")},),
    "suppress": ({"what": ("retained", "accuracy", "log_prob")},),
    "slots": ({"what": ("tenants", "own_share", "row_norm", "value_norm")},),
    "routing": ({"what": ("kept", "mechanism", "load", "information", "text")},),
    "linear": ({"metric": ("accuracy", "corrected", "control", "selectivity", "bits")},),
    "patch": ({"view": ("heatmap", "bars", "check")},),
    "token-comparison": ({"what": ("surprisal", "entropy", "gate", "added")},),
}


def views(result: "Result") -> dict[str, dict[str, Any]]:
    """Name -> options of `result.figure`, of those views that this result has something for."""
    found: dict[str, dict[str, Any]] = {}
    for choices in CHOICES.get(result.kind, ({},)):
        for values in product(*choices.values()):
            options = dict(zip(choices, values, strict=True))
            try:
                result.figure(**options)
            except UsageError:
                continue
            found[", ".join(str(value) for value in values).replace("_", " ") or "figure"] = options
    return found
