import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_model.bpe import train_bpe, train_default_bpe
from engram_model.errors import UsageError
from engram_model.world import World, WorldSpec

ENGLISH = "The quick brown fox jumps over the lazy dog, and then it doesn't.\n\nAnd so on. " * 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "english.txt"
    path.write_text(ENGLISH, encoding="utf-8")
    return f"text:{path} + world:?seed=0&tokens=10K"


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_default_bpe(corpus, 2048, characters=900_000)


def lengths(tokenizer, words):
    return np.array([len(ids) for ids in tokenizer([f" {w}" for w in words]).input_ids])


def test_specials_come_first_and_are_never_added(tokenizer):
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (0, 1, 2) and len(tokenizer) == 2048
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|bos|>", "<|eos|>", "<|pad|>"]
    assert not set(tokenizer("some text").input_ids) & {0, 1, 2}


@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_spaces_before_punctuation_come_back(tokenizer):
    text = "a , b . c 's  d\t\r\n 12 \u200b\U0001f600 "
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_stand_alone(tokenizer):
    assert tokenizer.tokenize("in1984 2x") == ["in", "1", "9", "8", "4", "\u0120", "2", "x"]


def test_offsets_point_into_the_text(tokenizer):
    text = "Meind was born in Vrafl on 3 May."
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert "".join(text[a:b] for a, b in encoded.offset_mapping) == text


def test_it_survives_save_and_load(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "The fox , and 12 dogs."
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text
    assert loaded.init_kwargs["name_or_path"] and tokenizer.init_kwargs["name_or_path"]


def test_names_and_values_of_the_world_stay_several_tokens(tokenizer):
    world = World(seed=0)
    words = [word for person in world.people for word in person.name.split()]
    assert lengths(tokenizer, words).mean() >= 2
    assert lengths(tokenizer, [p.name for p in world.people]).min() >= 3
    surnames = lengths(tokenizer, [p.surname for p in world.people])
    assert (surnames == 1).mean() < 0.005  # two worlds share a surname now and then
    for relation in ("birth_city", "birth_date", "university", "major", "employer", "work_city"):
        assert lengths(tokenizer, [p.facts[relation] for p in world.people]).min() >= 2


def test_training_on_the_world_itself_would_not_do(tokenizer):
    """The reason for the other seed: a tokenizer that knows the cities makes tokens of them."""
    cities = World(seed=0).pools.cities
    own = train_bpe((r["text"] for r in WorldSpec(tokens=225_000).documents()), 4096)
    other = train_bpe((r["text"] for r in WorldSpec(seed=9, tokens=225_000).documents()), 4096)
    assert (lengths(own, cities) == 1).mean() > 0.1
    assert (lengths(other, cities) == 1).sum() == 0


def test_the_same_texts_give_the_same_tokenizer(corpus):
    first, second = (train_default_bpe(corpus, 400, characters=50_000) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


def test_the_sample_spans_the_whole_corpus(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n\n".join([f"{name * 9} word"] * 200))
    tokenizer = train_default_bpe(f"text:{tmp_path}/*.txt", 600, characters=4000)
    assert {"a" * 9, "b" * 9} <= set(tokenizer.get_vocab())


def test_wrong_use_gets_one_line(corpus):
    with pytest.raises(UsageError, match="vocab_size 100 is too small; use 259 or more"):
        train_bpe(["text"], 100)
    with pytest.raises(UsageError, match="world_seed 0 is a world of the corpus"):
        train_default_bpe(corpus, 400, world_seed=0)
