"""Which figures a result offers: the options of its `figure`, with names to choose them by."""

from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

from engram_probes.lens import GRID

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

NEEDS: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "attention": lambda r, o: o["what"] != "pattern" or r.pattern is not None,
    "gate-profile": lambda r, o: o["what"] in ("auc", "groups") or r.partial is not None,
    "lens": lambda r, o: {"grid": r.tokens is not None and o["what"] in GRID,
                          "strata": bool(r.strata)}.get(o["view"], True),
    "cka": lambda r, o: o["what"] == "cka" or _shown(r, o["what"]),
    "routing": lambda r, o: {"kept": bool(r.changes), "mechanism": bool(r.changes),
                             "text": bool(r.changes) and r.expert_ids is not None,
                             }.get(o["what"], True),
    "slots": lambda r, o: o["what"] not in ("tenants", "own_share") or r.tenants is not None,
    "token-comparison": lambda r, o: o["what"] in r.offered,
}  # fmt: skip


def _shown(result: Any, what: str) -> bool:
    name = "with_sinks" if what == "sinks" else what
    return getattr(result, name) is not None


def views(result: "Result") -> dict[str, dict[str, Any]]:
    """Name -> options of `result.figure`, of those views that this result has something for."""
    found: dict[str, dict[str, Any]] = {}
    for choices in CHOICES.get(result.kind, ({},)):
        for values in product(*choices.values()):
            options = dict(zip(choices, values, strict=True))
            if not NEEDS.get(result.kind, lambda *_: True)(result, options):
                continue
            found[", ".join(str(value) for value in values).replace("_", " ") or "figure"] = options
    return found
