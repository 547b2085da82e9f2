"""Evaluation: every token once, whatever the windows; sources; nothing to read."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from engram_model.errors import CorpusError
from engram_model.evaluate import evaluate
from engram_model.world import FAMILIES

TEXTS = {
    "a/x": "The harbour master counts the boats.",
    "a/y": "The bridge. " * 9,
    "b/z": "Ostrava é",
}


@pytest.fixture
def corpus(tmp_path):
    lines = [json.dumps({"text": text, "source": source}) for source, text in TEXTS.items()]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    return f"json:{tmp_path / 'c.jsonl'}#text"


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(2)


def by_hand(model, tokenizer, text):
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        logits = model(ids).logits
    return F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item(), ids.shape[1] - 1


def in_windows(model, tokenizer, text, context):
    """Every target of a document once, its inputs cut every `context` tokens."""
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
    total = 0.0
    for at in range(1, len(ids)):
        start = (at - 1) // context * context
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:at]])).logits[0, -1]
        total -= logits.log_softmax(-1)[ids[at]].item()
    return total


def test_equals_a_plain_loop(model, tokenizer, corpus):
    found = evaluate(model, tokenizer, corpus, batch=2)
    assert list(found) == ["a", "b", "all"]
    loss, tokens = by_hand(model, tokenizer, TEXTS["b/z"])
    assert found["b"].tokens == tokens and found["b"].bytes == 10
    assert found["b"].loss == pytest.approx(loss / tokens, abs=1e-5)
    assert found["b"].bits_per_byte == pytest.approx(loss / math.log(2) / 10, abs=1e-5)
    total = sum(by_hand(model, tokenizer, text)[0] for text in TEXTS.values())
    assert found["all"].loss * found["all"].tokens == pytest.approx(total, rel=1e-5)
    assert found["all"].low <= found["all"].loss <= found["all"].high


def test_batches_do_not_matter_and_windows_lose_no_token(model, tokenizer, corpus):
    whole = evaluate(model, tokenizer, corpus, batch=1)["all"]
    assert evaluate(model, tokenizer, corpus, batch=3)["all"].loss == pytest.approx(whole.loss)
    short = evaluate(model, tokenizer, corpus, context=5)["all"]
    assert short.tokens == whole.tokens
    expected = sum(in_windows(model, tokenizer, text, 5) for text in TEXTS.values())
    assert short.loss * short.tokens == pytest.approx(expected, rel=1e-5)


def test_world_by_family(model, tokenizer):
    found = evaluate(model, tokenizer, "world:?seed=0&split=valid&tokens=1K")
    assert set(found) <= {f"world/{family}" for family in FAMILIES} | {"all"}


def test_nothing_to_evaluate(model, tokenizer, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(CorpusError, match="empty"):
        evaluate(model, tokenizer, f"json:{tmp_path / 'empty.jsonl'}#text")
