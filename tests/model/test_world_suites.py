from collections import Counter

import pytest

from engram_model.world import World, suites

NAMES = {
    *("knowledge", "reading", "conflict", "copy", "recall", "chain", "memory_chain", "arith"),
    *("entities", "phrases"),
}


@pytest.fixture(scope="module")
def world():
    return World(seed=0)


@pytest.fixture(scope="module")
def made(world):
    return suites(world)


def test_sizes(made):
    assert set(made) == NAMES
    for name, items in made.items():
        assert len(items) == {"knowledge": 1200, "entities": 1200}.get(name, 1000)
    for name in ("knowledge", "entities"):
        assert Counter(i["tier"] for i in made[name]) == dict.fromkeys((0, 1, 4, 16, 64, 256), 200)
    assert Counter(i["tier"] for i in made["phrases"]) == dict.fromkeys((1, 4, 16, 64, 256), 200)


def test_items_are_closed_questions(made):
    keys = {"id", "prompt", "answer", "options", "needs_memory", "hops", "tier", "memory_answer"}
    ids = [item["id"] for items in made.values() for item in items]
    assert len(set(ids)) == len(ids)
    for name, items in made.items():
        for item in items:
            assert set(item) == keys | {"asked"}
            assert item["answer"] in item["options"] and len(set(item["options"])) == 4
            assert (item["memory_answer"] is not None) == (name == "conflict")
            assert item["needs_memory"] == (
                name in ("knowledge", "memory_chain", "entities", "phrases")
            )


def test_the_answer_stands_anywhere_among_the_options(made):
    items = [item for items in made.values() for item in items]
    places = Counter(item["options"].index(item["answer"]) for item in items)
    assert max(places.values()) < 1.1 * min(places.values())


def test_the_same_world_gives_the_same_and_another_others():
    first, again, other = (suites(World(seed=seed, people=40, phrases=10)) for seed in (1, 1, 2))
    assert first == again and set(first) == NAMES
    assert all(first[name] != other[name] for name in NAMES)


def test_no_item_is_told_in_training():
    """But `knowledge` of the asked, and what asks for the rest of a known name or phrase."""
    world = World(seed=3, people=80, phrases=10)
    told = "\n".join(r["text"] for r in world.documents("train", 0, world.epoch_length("train")))
    lines = set(told.split("\n"))
    for name, items in suites(world).items():
        for item in items:
            if name == "arith":
                assert item["prompt"] + item["answer"] not in lines
            elif name not in ("entities", "phrases") and not item["asked"]:
                assert item["prompt"] + item["answer"] not in told


def test_knowledge_is_true_and_says_who_was_asked(world, made):
    asked = Counter((i["tier"], i["asked"]) for i in made["knowledge"])
    assert all(90 <= asked[tier, True] <= 100 for tier in (4, 16, 64, 256))
    assert asked[0, False] == asked[1, False] == 200
    facts = {(p.name, value): p for p in world.people for value in p.facts.values()}
    for item in made["knowledge"]:
        name = next(p.name for p in world.people if p.name in item["prompt"])
        person = facts[name, item["answer"].strip()]
        assert (person.tier, person.asked) == (item["tier"], item["asked"])
        assert not person.contradicted


def test_entities_and_phrases_have_one_true_end(world, made):
    names = {p.name for p in world.people}
    for item in made["entities"]:
        true = [o for o in item["options"] if any(n in item["prompt"] + o for n in names)]
        assert true == [item["answer"]]
    for item in made["phrases"]:
        ends = [
            o
            for o in item["options"]
            if any(
                (item["prompt"] + o).endswith(f" {p.stem} {p.branch} {p.tail}")
                for p in world.phrases
            )
        ]
        assert ends == [item["answer"]]
