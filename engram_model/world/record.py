"""A document and its labels: text, exact character spans, questions."""

from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
SPAN_TYPES = {  # of each field; all but the first three may be None
    "start": "int64",
    "end": "int64",
    "kind": "string",
    "entity_id": "string",
    "fact_id": "string",
    "tier": "int64",
    "needs_memory": "bool",
    "mechanism": "string",
    "source_start": "int64",
    "source_end": "int64",
}
QA_TYPES = {  # options: a list of strings
    "prompt": "string",
    "answer": "string",
    "options": "string",
    "needs_memory": "bool",
    "hops": "int64",
    "tier": "int64",
    "memory_answer": "string",
}


@dataclass
class Draft:
    """Text that grows from left to right, with the spans met on the way."""

    parts: list[str] = field(default_factory=list)
    spans: list[Record] = field(default_factory=list)
    qa: list[Record] = field(default_factory=list)
    length: int = 0

    def add(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)

    def mark(
        self,
        text: str,
        kind: str,
        mechanism: str,
        *,
        entity_id: str | None = None,
        fact_id: str | None = None,
        tier: int | None = None,
        needs_memory: bool | None = None,
        source: Record | None = None,
    ) -> Record:
        """Add `text` as a span. `source`: the earlier span it copies or is worked out from.

        Unless told otherwise, memory is needed where the mechanism is `ngram` or `fact`.
        """
        start = self.length
        self.add(text)
        if needs_memory is None:
            needs_memory = mechanism in ("ngram", "fact")
        span = {
            "start": start,
            "end": self.length,
            "kind": kind,
            "entity_id": entity_id,
            "fact_id": fact_id,
            "tier": tier,
            "needs_memory": needs_memory,
            "mechanism": mechanism,
            "source_start": source["start"] if source else None,
            "source_end": source["end"] if source else None,
        }
        self.spans.append(span)
        return span

    def ask(
        self,
        prompt: str,
        answer: str,
        options: list[str],
        *,
        needs_memory: bool,
        tier: int | None = None,
        hops: int = 1,
        memory_answer: str | None = None,
    ) -> None:
        """Add a question to `qa`; `prompt + answer` reads on without a join.

        hops: facts to follow or steps to work out. memory_answer: what training says where the text
        says otherwise.
        """
        self.qa.append(
            {
                "prompt": prompt,
                "answer": answer,
                "options": options,
                "needs_memory": needs_memory,
                "hops": hops,
                "tier": tier,
                "memory_answer": memory_answer,
            }
        )

    def split(self, span: Record, left: int, right: int, **changes: Any) -> None:
        """Cut a span in two: `left` characters of its start, and `right` of its end.

        changes: what differs in the second part.
        """
        rest = {**span, "start": span["end"] - right, **changes}
        span["end"] = span["start"] + left
        self.spans.insert(self.spans.index(span) + 1, rest)

    @property
    def text(self) -> str:
        return "".join(self.parts)
