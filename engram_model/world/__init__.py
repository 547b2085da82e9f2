"""A synthetic world: people, facts and set phrases, told in documents with exact labels.

World            the documents of a seed, by index
parse_spec       `world:?seed=0&tokens=1M` -> WorldSpec
suites           World -> tasks by name, each a list of questions
export           write train, valid and suites to files
token_labels     character spans -> the kind of span of each token
"""

from .export import export
from .labels import token_labels, token_spans
from .record import QA_TYPES, SPAN_TYPES
from .spec import WorldSpec, parse_spec
from .suites import suites
from .world import FAMILIES, SPLITS, VERSION, World

__all__ = [
    "FAMILIES",
    "QA_TYPES",
    "SPAN_TYPES",
    "SPLITS",
    "VERSION",
    "World",
    "WorldSpec",
    "export",
    "parse_spec",
    "suites",
    "token_labels",
    "token_spans",
]
