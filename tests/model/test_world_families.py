"""What each family promises, worked out again from its text."""

import re

import pytest

from engram_model.world import World
from engram_model.world.arith import carries, is_held_out
from engram_model.world.copy import CUE


@pytest.fixture(scope="module")
def world():
    return World(seed=5, people=40, phrases=10)


@pytest.fixture(scope="module")
def train(world):
    return list(world.documents("train", 0, world.epoch_length("train")))


@pytest.fixture(scope="module")
def valid(world):
    return list(world.documents("valid", 0, world.epoch_length("valid")))


def of(family, *splits):
    found = [record for split in splits for record in split if record["family"] == family]
    assert found
    return found


def pieces(record, *kinds):
    spans = [s for s in record["spans"] if s["kind"] in kinds]
    return [record["text"][s["start"] : s["end"]] for s in spans]


def entities(records):
    return {span["entity_id"] for record in records for span in record["spans"]}


def test_mentors_have_one_apprentice_of_their_tier_and_go_round_in_no_circle(world):
    mentors = [p.mentor for p in world.people if p.mentor is not None]
    assert len(set(mentors)) == len(mentors) == 40 - 5
    for person in world.people:
        path = [person]
        while path[-1].mentor is not None:
            path.append(world.people[path[-1].mentor])
            assert path[-2].facts["mentor"] == path[-1].name
        assert len(path) <= 40 and {p.tier for p in path} == {person.tier}
        assert "mentor" not in path[-1].facts


def test_a_passage_contradicts_memory(world, train, valid):
    people = {p.id: p for p in world.people}
    for record in of("conflict", train, valid):
        values = [s for s in record["spans"] if s["entity_id"] in people and s["kind"] != "name"]
        for span in values:
            piece = record["text"][span["start"] : span["end"]]
            assert piece != people[span["entity_id"]].facts[span["kind"]]
            assert not span["needs_memory"]
        facts = people[values[0]["entity_id"]].facts.values()
        for qa in record["qa"]:
            assert qa["memory_answer"].strip() in facts and qa["answer"].strip() not in facts
            assert qa["memory_answer"] in qa["options"] and "According to the pass" in qa["prompt"]
            assert qa["answer"] in qa["prompt"] and qa["memory_answer"] not in qa["prompt"]


def test_people_contradicted_in_valid_are_not_in_training(world, train, valid):
    known = {p.id for p in world.people}
    in_train, in_valid = (known & entities(of("conflict", split)) for split in (train, valid))
    assert in_train == {p.id for p in world.people if p.contradicted}
    assert in_valid and not in_train & in_valid


def test_two_hops_follow_from_two_facts(world, train, valid):
    people = {p.id: p for p in world.people}
    for record in of("memory_chain", train, valid):
        person = people[record["spans"][0]["entity_id"]]
        their_mentor = world.people[person.mentor]
        *two_hops, mentor = record["qa"]
        kinds = [s["kind"] for s in record["spans"] if s["kind"] != "name"]
        for qa, kind in zip(two_hops, kinds, strict=False):
            assert qa["answer"] == " " + their_mentor.facts[kind] and qa["hops"] == 2
            assert person.name in qa["prompt"] and their_mentor.name not in qa["prompt"]
        assert mentor["answer"] == " " + their_mentor.name and mentor["hops"] == 1
    asked, others = (
        {people[r["spans"][0]["entity_id"]].asked for r in of("memory_chain", split)}
        for split in (train, valid)
    )
    assert (asked, others) == ({True}, {False})


def test_a_copy_is_marked_once_it_can_be_known(train, valid):
    for record in of("copy", train, valid):
        words, copied = record["text"].split(), pieces(record, "copy")
        length = len(copied) + CUE
        assert words[:length] == words[-length:] and words[:length][CUE:] == copied
        assert len(set(words)) == len(words) - length
        qa = record["qa"][0]
        assert record["text"].startswith(qa["prompt"] + qa["answer"])
        before = words.index(qa["prompt"].split()[-1])
        assert words[before + 1] == qa["answer"].strip()


def test_a_value_is_that_of_its_key(train, valid):
    for record in of("recall", train, valid):
        for qa in record["qa"]:
            *lines, blank, query = qa["prompt"].split("\n")
            pairs = dict(line.split(": ") for line in lines)
            assert blank == "" and pairs[query.removesuffix(":")] == qa["answer"].strip()
            assert {option.strip() for option in qa["options"]} <= set(pairs.values())


def follow_gifts(passage, question):
    gifts = dict(re.findall(r"(\w+) gives to (\w+)\.", passage))
    steps, node = re.match(r"Who is (\d) steps? after (\w+)\?", question).groups()
    found = []
    for _ in range(int(steps)):
        node = gifts[node]
        found.append(node)
    return found, int(steps)


def follow_variables(passage, question):
    values = {}
    for line in passage.split("\n"):
        name, expression = line.split(" = ")
        values[name] = eval(expression, {}, dict(values))
    names = list(values)
    hops = names.index(re.match(r"What is (\w+)\?", question)[1])
    return [str(values[name]) for name in names[: hops + 1]], hops


def test_chains_arrive_where_they_say(train, valid):
    kinds = set()
    for record in of("chain", train, valid):
        passage, *answers = record["text"].split("\n\n")
        follow = follow_gifts if "gives" in passage else follow_variables
        for qa, written in zip(record["qa"], answers, strict=True):
            question, _, steps = written.removeprefix("Question: ").split("\n")
            expected, hops = follow(passage, question)
            assert steps == "Steps: " + " ".join(expected)
            assert qa["answer"] == " " + expected[-1] and qa["hops"] == hops
            assert qa["prompt"].startswith(passage)
            kinds.add((follow, hops))
    assert len(kinds) == 8


def test_sums_are_right(train, valid):
    seen = set()
    for record, held_out in [(r, s is valid) for s in (train, valid) for r in of("arith", s)]:
        for line, qa in zip(record["text"].split("\n"), record["qa"], strict=True):
            problem, result = line.split(" = ")
            a, b, *modulus = map(int, re.findall(r"\d+", problem))
            total = (a + b) % modulus[0] if modulus else a + b
            assert qa["prompt"] == f"{problem} =" and qa["answer"] == f" {result}" == f" {total}"
            assert is_held_out(a, b) == held_out
            seen.add((bool(modulus), any(carries(a, b))))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (12, 34, [0, 0]),
        (95, 7, [1, 1, 0]),
        (999, 1, [1, 1, 1, 0]),
        (0, 0, [0]),
        (501, 600, [1] + [0] * 3),
    ],
)
def test_carries(a, b, expected):
    assert carries(a, b) == list(map(bool, expected))


def test_brackets_match_and_names_are_defined(train, valid):
    for record in of("code", train, valid):
        opened, defined = [], {}
        assert record["text"].count("(") == record["text"].count(")")
        for span in record["spans"]:
            piece = record["text"][span["start"] : span["end"]]
            if piece == "(":
                opened.append(span["start"])
            elif piece == ")":
                assert span["source_start"] == opened.pop()
            elif span["kind"] == "definition":
                defined[piece] = span["start"]
            elif span["kind"] == "identifier":
                assert span["source_start"] == defined[piece]
        assert not opened
        assert record["text"].count("\n    ") == pieces(record, "indent").count("\n    ")


def test_filler_tells_nothing_and_begins_no_phrase(world, train, valid):
    openings = [f" {p.stem} {p.branch} " for p in world.phrases]
    for record in of("filler", train, valid):
        assert {s["mechanism"] for s in record["spans"]} == {"none"}
        assert not any(opening in record["text"] for opening in openings)
        assert " ".join(pieces(record, *{s["kind"] for s in record["spans"]})) == record[
            "text"
        ].replace(".", "")


def test_lookalikes_are_in_valid_alone_and_new(world, train, valid):
    told = "\n".join(record["text"] for record in train)
    controls = ("name_lookalike", "name_other", "name_shuffled", "phrase_broken")
    counts = dict.fromkeys(controls, 0)
    for record in of("lookalike", valid):
        (span,) = (s for s in record["spans"] if s["kind"] in controls)
        begins = next(s for s in record["spans"] if s["entity_id"] == span["entity_id"])
        whole = record["text"][begins["start"] : span["end"]]
        assert whole not in told
        assert span["mechanism"] == "none" and not span["needs_memory"]
        counts[span["kind"]] += 1
    assert set(counts.values()) == {100}
    assert "lookalike" not in {record["family"] for record in train}


def test_lookalikes_begin_like_what_is_known(world, valid):
    people = {p.id: p for p in world.people}
    phrases = {p.id: p for p in world.phrases}
    for record in of("lookalike", valid):
        span = next(s for s in record["spans"] if s["entity_id"] in {**people, **phrases})
        known = span["entity_id"]
        if known in phrases:
            phrase = phrases[known]
            told = f"{phrase.stem} {phrase.branch} {phrase.tail}".split()
            start = pieces(record, "phrase_stem", "phrase_branch", "phrase_tail")
            shared = " ".join(start).split()
            assert told[: len(shared)] == shared
            assert pieces(record, "phrase_broken") != [told[len(shared)]]
        else:
            (start,) = pieces(record, "name_start")
            assert people[known].name.startswith(start) or start == people[known].surname
            assert pieces(record, "name")[0] not in {p.name for p in world.people}
