"""Sentences to begin with: each shows another reason why a memory speaks, or does not."""

from functools import lru_cache
from itertools import islice

ENTITY = "The capital of France is Paris, and the capital of Italy is Rome."
NAME = "In 1815 the Duke of Wellington defeated Napoleon Bonaparte at the Battle of Waterloo."


@lru_cache(maxsize=1)
def examples() -> dict[str, str]:
    """Name -> text. The last three come from the synthetic world that the models learnt."""
    return {
        "Capitals": ENTITY,
        "A famous name": NAME,
        "A known person": _sentences(_told("bio"), 3),
        "A set phrase": _told("phrase"),
        "Reading": _told("reading"),
    }


def _told(family: str) -> str:
    """A document of a family, of a person or phrase that training told of often."""
    from engram_model.world import parse_spec

    spec = parse_spec(f"world:?seed=0&split=valid&families={family}")
    documents = list(islice(spec.documents(), 60))
    return max(documents, key=_tier)["text"]


def _tier(document: dict) -> int:
    return max((span["tier"] or 0 for span in document["spans"]), default=0)


def _sentences(text: str, most: int) -> str:
    return ". ".join(text.split(". ")[:most]).removesuffix(".") + "."
