"""Texts to begin with: each shows another reason why a memory speaks, or does not."""

from collections.abc import Callable
from functools import lru_cache
from itertools import islice

NAMES = (
    "The Battle of Waterloo was fought in 1815 between Napoleon Bonaparte and the Duke of "
    "Wellington."
)
CAPITALS = "The capital of France is Paris, and the capital of Italy is Rome."


@lru_cache(maxsize=1)
def examples() -> dict[str, str]:
    """Name -> text. The last four come from the synthetic world that the models learnt."""
    return {
        "Famous names": NAMES,
        "Capitals": CAPITALS,
        "A known person": _sentences(_told("bio"), 3),
        "A person never told of": _sentences(_told("bio", min), 3),
        "A set phrase": _told("phrase"),
        "Reading": _told("reading"),
    }


def _told(family: str, which: Callable = max) -> str:
    """A document of a family, of a person or phrase that training told of often, or never."""
    from engram_model.world import parse_spec

    spec = parse_spec(f"world:?seed=0&split=valid&families={family}")
    documents = list(islice(spec.documents(), 60))
    return which(documents, key=_tier)["text"]


def _tier(document: dict) -> int:
    return max((span["tier"] or 0 for span in document["spans"]), default=0)


def _sentences(text: str, most: int) -> str:
    return ". ".join(text.split(". ")[:most]).removesuffix(".") + "."
