"""Models of two tokenizers are compared where tokens of both end."""

import numpy as np
import pytest

import engram_probes as ep
from engram_model.errors import UsageError
from engram_probes.positions import same_ends

TEXT = "The harbour master of Zoë counts 41 boats."


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """A tokenizer of whole words where the other has pieces."""
    from transformers import PreTrainedTokenizerFast

    from engram_model.bpe import train_bpe

    folder = tmp_path_factory.mktemp("coarse")
    words = "The harbour master of Varnholm counts boats. The miller smith boatman at dusk. "
    train_bpe([words] * 20, 300).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def other(coarse):
    """A small model of that vocabulary."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(coarse), n_embd=24, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=1
    )
    return GPT2LMHeadModel(config).eval()


def ends(tokenizer, text):
    """Last token that ends at each character, `<bos>` counted."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return {end: place + 1 for place, (_, end) in enumerate(offsets["offset_mapping"])}


def test_same_ends(tokenizer, coarse):
    ids, place = same_ends(TEXT, tokenizer, coarse)
    assert coarse.decode(ids[1:]) == TEXT and place[0] == 0
    first, second = ends(tokenizer, TEXT), ends(coarse, TEXT)
    both = first.keys() & second.keys()
    assert 3 < len(both) < len(second)
    assert {first[end]: second[end] for end in both} == {
        here: there for here, there in enumerate(place) if here and there >= 0
    }
    same = same_ends(TEXT, tokenizer, tokenizer)[1]
    known = same[same >= 0]  # not the first byte of a letter of two
    assert len(known) >= len(same) - 1 and (known == np.flatnonzero(same >= 0)).all()


def test_two_tokenizers_are_compared_at_the_same_characters(
    engram, other, tokenizer, coarse, texts
):
    result = ep.cka(
        engram, other, tokenizer, texts, tokenizer_b=coarse, k=2, batch_size=8, permutations=3
    )
    counts = [(ends(tokenizer, text), ends(coarse, text)) for text in texts]
    shared = sum(len(first.keys() & second.keys()) for first, second in counts)
    tokens = sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert result.aligned_share == pytest.approx(shared / tokens)
    assert 0.3 < result.aligned_share < 1 and np.isfinite(result.matrix).all()
    assert f"{result.aligned_share:.0%} of the positions end a token" in result.summary()


def test_a_second_copy_of_the_tokenizer_changes_nothing(engram, twin, tokenizer, texts, alignment):
    options = dict(k=2, per_document=4, batch_size=4, permutations=20)
    copied = ep.cka(engram, twin, tokenizer, texts, tokenizer_b=tokenizer, **options)
    assert copied.aligned_share == 1
    for name, array in alignment.arrays().items():
        np.testing.assert_allclose(copied.arrays()[name], array, atol=1e-6, err_msg=name)


def test_the_wrong_tokenizer_is_refused(engram, other, tokenizer, coarse, texts):
    with pytest.raises(UsageError, match="tokenizer_b"):
        ep.cka(engram, other, tokenizer, texts, k=2)
    with pytest.raises(UsageError, match="outside the vocabulary"):
        ep.cka(engram, other, tokenizer, texts, k=2, tokenizer_b=tokenizer)
