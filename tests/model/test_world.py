import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_model.errors import UsageError
from engram_model.world import FAMILIES, World, token_labels
from engram_model.world.dice import Dice, permutation
from engram_model.world.people import RELATIONS

GOLDEN = {
    "train": "c7d83c0be4007b89bef6785dd118759a98aee99c5b607e917e53a7d1bb8d98b9",
    "valid": "106274bf9071e87f626d8b5fdba718a84687a4d43a3c405a80954b4ff8c150fd",
}


@pytest.fixture(scope="module")
def small():
    return World(seed=5, people=40, phrases=10)


@pytest.fixture(scope="module")
def epoch(small):
    return list(small.documents("train", 0, small.epoch_length("train")))


@pytest.fixture(scope="module")
def valid(small):
    return list(small.documents("valid", 0, small.epoch_length("valid")))


def digest(records):
    lines = "".join(json.dumps(r, sort_keys=True, ensure_ascii=False) + "\n" for r in records)
    return hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("split", GOLDEN)
def test_the_first_thousand_documents_never_change(split):
    """If this must change, raise `world.VERSION`."""
    assert digest(World(seed=0).documents(split, 0, 1000)) == GOLDEN[split]


def test_a_document_depends_on_its_index_alone(small, epoch):
    other = World(seed=5, people=40, phrases=10)
    later = small.epoch_length("train") + 7
    assert [other.document("train", i) for i in (later, 300, 2)][1:] == [epoch[300], epoch[2]]
    assert list(other.documents("train", 40, 43)) == epoch[40:43]
    assert other.document("train", later) == small.document("train", later)


def test_people_and_phrases_never_change():
    """Models know those of version 1: later ones add to them and change none."""
    world = World(seed=0)
    rows = [
        [p.id, p.name, p.surname, p.pronoun, p.tier, p.asked, *(p.facts[r] for r in RELATIONS)]
        for p in world.people
    ]
    rows += [[p.id, p.stem, p.branch, p.tail, p.tier] for p in world.phrases]
    expected = "dcf1e46fee9d0dd20a4162916d44804c6b134257999a0e6325d5e613eea8d2b0"
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == expected


def test_hash_randomisation_changes_nothing():
    code = (
        "from engram_model.world import World; import hashlib;"
        "print(hashlib.sha256(repr(list(World(1).documents('valid', 0, 40))).encode()).hexdigest())"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1 and len(runs.pop()) == 65


def test_the_world_needs_numpy_alone():
    code = (
        "import sys, engram_model.world;"
        "print(*(m for m in ('torch', 'datasets', 'transformers', 'pandas') if m in sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (out.returncode, out.stdout.strip()) == (0, "")


def test_other_seeds_are_other_worlds(small):
    other = World(seed=6, people=40, phrases=10)
    assert not {p.name for p in small.people} & {p.name for p in other.people}
    assert {p.stem + p.branch + p.tail for p in small.phrases}.isdisjoint(
        p.stem + p.branch + p.tail for p in other.phrases
    )


KINDS = {
    "bio": {"name", *RELATIONS, "mentor"},
    "question": {"name", *RELATIONS},
    "reading": {"name", *RELATIONS},
    "conflict": {"name", *RELATIONS},
    "memory_chain": {"name", *RELATIONS, "mentor"},
    "phrase": {"phrase_stem", "phrase_branch", "phrase_tail"},
    "copy": {"copy"},
    "recall": {"key", "value"},
    "chain": {"node", "answer", "step"},
    "arith": {"digit", "carry", "remainder"},
    "code": {"definition", "identifier", "keyword", "indent", "bracket"},
    "filler": {"det", "worker", "noun", "adjective", "verb", "prep", "function"},
    "lookalike": {
        *("name_start", "name_lookalike", "name_other", "name_shuffled", "phrase_broken"),
        *("name", *RELATIONS, "phrase_stem", "phrase_branch", "phrase_tail"),
    },
}


def test_spans_are_exact(epoch, valid):
    kinds = {family: set() for family in FAMILIES}
    for record in epoch + valid:
        text, end = record["text"], 0
        for span in record["spans"]:
            assert end <= span["start"] < span["end"] <= len(text), "spans overlap"
            end = span["end"]
            kinds[record["family"]].add(span["kind"])
            assert span["needs_memory"] or span["mechanism"] not in ("ngram", "fact")
    assert kinds == KINDS


def test_sources_stand_before_what_follows_from_them(epoch, valid):
    for record in epoch + valid:
        for span in record["spans"]:
            start, mechanism = span["source_start"], span["mechanism"]
            assert (start is not None) == (mechanism == "copy") or mechanism == "compute"
            if start is not None:
                source = record["text"][start : span["source_end"]]
                piece = record["text"][span["start"] : span["end"]]
                assert span["source_end"] <= span["start"]
                assert source == piece or (source, piece) == ("(", ")")


def test_spans_hold_what_they_say(small, epoch, valid):
    people = {p.id: p for p in small.people}
    phrases = {p.id: p for p in small.phrases}
    for record in epoch + valid:
        if record["family"] in ("lookalike", "conflict"):
            continue
        for span in record["spans"]:
            piece = record["text"][span["start"] : span["end"]]
            if person := people.get(span["entity_id"]):
                values = {**person.facts, "name": person.name}
                assert piece in (values[span["kind"]], person.surname)
                assert span["tier"] == person.tier
            elif phrase := phrases.get(span["entity_id"]):
                assert piece == getattr(phrase, span["kind"].removeprefix("phrase_"))
                assert span["tier"] == phrase.tier


def test_a_name_is_an_ngram_once_and_then_a_copy(epoch):
    for record in epoch:
        if record["family"] in ("bio", "question", "memory_chain"):
            mechanisms = [s["mechanism"] for s in record["spans"] if s["kind"] == "name"]
            assert mechanisms[0] == "ngram" and set(mechanisms[1:]) <= {"copy"}


def test_a_tier_counts_the_training_documents_that_state_a_fact(small, epoch):
    told = Counter(
        span["fact_id"] or span["entity_id"]
        for record in epoch
        for span in record["spans"]
        if span["mechanism"] == "fact" or span["kind"] == "phrase_tail"
        if record["family"] != "memory_chain" or span["kind"] == "mentor"
    )
    for person in small.people:
        for relation in person.facts:
            assert told[f"{person.id}:{relation}"] == person.tier
    for phrase in small.phrases:
        assert told[phrase.id] == phrase.tier
    assert {p.tier for p in small.people} == {0, 1, 4, 16, 64, 256}


def test_the_next_epoch_tells_the_same_in_new_documents(small, epoch):
    n = len(epoch)
    again = list(small.documents("train", n, 2 * n))
    assert Counter(r["family"] for r in again) == Counter(r["family"] for r in epoch)
    assert [r["family"] for r in again] != [r["family"] for r in epoch]
    same = {r["text"] for r in epoch} & {r["text"] for r in again}
    assert len(same) < n / 200  # a short one comes twice by chance


def test_valid_has_known_facts_in_new_documents(small, epoch, valid):
    assert not {r["text"] for r in epoch} & {r["text"] for r in valid}
    asked = {p.id for p in small.people if p.asked}
    tiers = Counter()
    for record in valid:
        if record["family"] == "question":
            tiers[record["qa"][0]["tier"]] += 1
            assert record["spans"][0]["entity_id"] not in asked
    assert set(tiers) == {0, 1, 4, 16, 64, 256} and len(set(tiers.values())) == 1
    trained = {r["spans"][0]["entity_id"] for r in epoch if r["family"] == "question"}
    assert trained == asked


def test_training_never_names_the_people_of_tier_zero(small, epoch, valid):
    told = " ".join(r["text"] for r in epoch)
    for person in small.in_tier(0):
        assert person.surname not in told
        records = [r for r in valid if r["spans"][0]["entity_id"] == person.id]
        assert records and {r["family"] for r in records} == {"question"}
        assert {s["mechanism"] for s in records[0]["spans"]} == {"none", "copy"}
    assert small.in_tier(0)


def test_reading_is_about_new_people(small, epoch):
    readings = [r for r in epoch if r["family"] == "reading"]
    names = [
        r["text"][s["start"] : s["end"]]
        for r in readings
        for s in r["spans"]
        if s["kind"] == "name" and s["mechanism"] == "none"
    ]
    assert len(names) == 4 * len(readings)
    surnames = [name.split()[-1] for name in names]
    assert not set(surnames) & small.pools.taken
    assert len(set(surnames)) > 0.95 * len(surnames)
    assert not any(s["needs_memory"] for r in readings for s in r["spans"])


QUESTIONS = {
    **{"question": 6, "reading": 2, "conflict": 2, "memory_chain": 4},
    **{"copy": 1, "recall": 3, "chain": 2, "arith": 12},
}


def test_questions_are_part_of_the_text(epoch, valid):
    for record in epoch + valid:
        family = record["family"]
        assert len(record["qa"]) == QUESTIONS.get(family, 0)
        for qa in record["qa"]:
            last = qa["prompt"].rpartition("\n\n")[2]
            assert last + qa["answer"] in record["text"]
            assert qa["answer"].startswith(" ") and qa["answer"].strip() == qa["answer"][1:]
            assert qa["answer"] in qa["options"] and len(set(qa["options"])) == 4
            assert qa["needs_memory"] == (family in ("question", "memory_chain"))
            if family in ("reading", "conflict", "copy", "recall"):
                assert qa["answer"] in qa["prompt"].replace("\n", " ")
            elif qa["needs_memory"]:
                assert qa["answer"] not in qa["prompt"]


def test_the_answer_stands_anywhere_among_the_options(valid):
    places = Counter(qa["options"].index(qa["answer"]) for r in valid for qa in r["qa"])
    assert max(places.values()) < 1.1 * min(places.values())


def test_phrases_branch_after_the_stem():
    phrases = World().phrases
    assert len({(p.stem, p.branch) for p in phrases}) == len(phrases)
    assert min(Counter(p.stem for p in phrases).values()) >= 4
    words = {len(f"{p.stem} {p.branch} {p.tail}".split()) for p in phrases}
    assert words == {3, 4, 5, 6, 7, 8}


def test_families_can_be_chosen():
    world = World(people=40, phrases=10, families=("reading", "phrase"))
    assert world.families == ("phrase", "reading")
    assert {r["family"] for r in world.documents("train", 0, 50)} == {"phrase", "reading"}


@pytest.mark.parametrize(
    ("settings", "say"),
    [
        ({"seed": -1}, "seed -1"),
        ({"people": 10}, "10 people"),
        ({"phrases": 3}, "3 phrases"),
        ({"families": ("bio", "poem")}, f"poem: not known; use any of {', '.join(FAMILIES)}"),
        ({"families": ()}, "none given"),
    ],
)
def test_a_wrong_setting_gets_one_line(settings, say):
    with pytest.raises(UsageError, match=say) as error:
        World(**settings)
    assert "\n" not in str(error.value)


def test_a_wrong_split_gets_one_line(small):
    with pytest.raises(UsageError, match="'test' is unknown; use one of train, valid"):
        small.document("test", 0)


def test_a_token_belongs_to_the_span_of_most_of_its_characters():
    spans = [{"start": 2, "end": 6, "kind": "name"}, {"start": 6, "end": 9, "kind": "birth_city"}]
    offsets = [(0, 0), (0, 3), (1, 4), (2, 4), (4, 8), (5, 9), (9, 12)]
    assert token_labels(spans, offsets) == [
        None,
        None,
        "name",
        "name",
        None,
        "birth_city",
        None,
    ]


def test_a_split_without_documents_gets_one_line():
    with pytest.raises(UsageError, match="train has no documents of the family lookalike"):
        World(families=("lookalike",)).document("train", 0)


@pytest.mark.bench
def test_speed():
    world = World(seed=0)
    world.document("train", 0)
    start = time.process_time()
    characters = sum(len(record["text"]) for record in world.documents("train", 0, 20_000))
    print(f"{characters / (time.process_time() - start) / 1e6:.1f} million characters a second")


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 1000))
def test_dice_are_fair_enough_to_stay_in_range(seed, index, n):
    dice = Dice(seed, "train", index)
    rolls = [dice.below(n) for _ in range(120)]
    assert min(rolls) >= 0 and max(rolls) < n
    assert rolls == [Dice(seed, "train", index).below(n), *rolls[1:]]
    assert sorted(dice.sample(range(n), n)) == list(range(n))


def test_streams_and_indices_do_not_overlap():
    firsts = [Dice(3, s, i).below(2**60) for s in ("train", "valid") for i in range(100)]
    assert len(set(firsts)) == 200
    assert sorted(permutation(3, "train order", 1, 50)) == list(range(50))
