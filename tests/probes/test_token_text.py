"""Tokens as shown, documents as read, positions as picked."""

import numpy as np
import pytest

from engram_model.errors import CorpusError, UsageError
from engram_probes.positions import entity_final
from engram_probes.text import Documents, token_texts


def shown(tokenizer, text):
    return token_texts(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def test_spaces_lines_and_stray_bytes(tokenizer):
    assert shown(tokenizer, "The harbour")[:2] == ("The", "·harbour")
    assert "".join(shown(tokenizer, "a  b")).count("·") == 2
    assert shown(tokenizer, "\n\t\x1b") == ("↵", "⇥", "<0x1B>")
    assert shown(tokenizer, "é") == ("<0xC3>", "<0xA9>")
    assert token_texts(tokenizer, [tokenizer.bos_token_id]) == (tokenizer.bos_token,)


def test_every_byte_is_shown_as_itself(tokenizer):
    text = bytes(range(0x21, 0x7F)).decode()
    assert "".join(shown(tokenizer, text)) == text


def test_documents_of_every_kind():
    from datasets import Dataset

    texts = ["one", " ", "two", "three"]
    checksums = set()
    for given in (texts, Dataset.from_dict({"text": texts}), tuple({"text": t} for t in texts)):
        documents = Documents(given)
        assert [d["text"] for d in documents] == ["one", "two", "three"]
        assert documents.total == 4 and documents.read == 3
        checksums.add(documents.description()["sha256"])
    assert len(checksums) == 1
    one, other = Documents(["one", "two"]), Documents(["onet", "wo"])
    assert len([*one, *other]) == 4
    assert one.description()["sha256"] != other.description()["sha256"]
    assert len([*Documents(texts, 2)]) == 2


@pytest.mark.parametrize("given", ["  ", 7, {"train": ["a"]}])
def test_what_is_no_text_is_refused(given):
    with pytest.raises(UsageError):
        Documents(given)
    with pytest.raises(CorpusError, match="document 0 has no text"):
        list(Documents([{"body": "a"}]))


def test_entity_final_is_the_token_of_the_last_character(tokenizer):
    text = "Zoë of Varnholm, the miller of Ostrava."
    spans = [
        {"start": 0, "end": 3, "kind": "name"},
        {"start": 7, "end": 15, "kind": "name"},
        {"start": 31, "end": 38, "kind": "city"},
    ]
    ids, final = entity_final(
        {"text": text, "spans": spans}, tokenizer, 8, np.random.default_rng(0)
    )
    assert len(final) == 2
    for position, entity in zip(sorted(final), ("Zoë", "Zoë of Varnholm"), strict=True):
        assert tokenizer.decode(ids[1 : position + 1]) == entity
    without_kind = [{"start": 31, "end": 38}]
    _, final = entity_final(
        {"text": text, "spans": without_kind}, tokenizer, 8, np.random.default_rng(0)
    )
    assert tokenizer.decode(ids[1 : final[0] + 1]).endswith("Ostrava")


def test_entities_need_spans(tokenizer):
    with pytest.raises(CorpusError, match="no column 'spans'"):
        entity_final({"text": "Varnholm"}, tokenizer, 8, np.random.default_rng(0))
