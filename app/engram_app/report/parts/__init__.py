"""The parts that a report can be composed of: to add a probe, write a part and name it here."""

from importlib import import_module

from engram_app.report.parts.base import Part

_HOME = {  # name in `probes` -> module and class, in the order of the page
    "gates": "gates.Gates",
    "gate-profile": "gate_profile.Profile",
    "lens": "lens.Lens",
    "cka": "cka.Cka",
    "suppress": "suppress.Suppress",
    "linear": "linear.Linear",
    "slots": "slots.Slots",
    "attribute": "attribute.Attribute",
    "routing": "routing.Routing",
    "attention": "attention.Attention",
    "patching": "patching.Patching",
    "rows": "rows.Rows",
}
NAMES = tuple(_HOME)
ON_REQUEST = ("routing", "attention", "patching", "rows")  # all parts would take too long
DEFAULT = tuple(name for name in NAMES if name not in ON_REQUEST)


def part_class(name: str) -> type[Part]:
    """The class of a part."""
    module, kind = _HOME[name].split(".")
    return getattr(import_module(f"engram_app.report.parts.{module}"), kind)
