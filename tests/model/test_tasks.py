"""Closed questions, on a planted model whose every log-probability is known."""

import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedConfig

from engram_model import world
from engram_model.errors import CheckpointError, CorpusError, UsageError
from engram_model.eval_folder import EvalFolder, read_documents, read_folder
from engram_model.eval_run import EvalOptions, plan, run_evaluation
from engram_model.evaluate import score_documents
from engram_model.intervals import mean_interval, ratio_interval
from engram_model.scoring import score_rows
from engram_model.span_scores import by_span
from engram_model.tasks import Item, answer_items, by_suite, fact_items, world_items
from engram_model.tasks.summary import accuracy

WORDS = ["<bos>", *"abcdefgh"]


class Letters:
    """A tokenizer of single letters."""

    bos_token_id, eos_token_id = 0, 0

    def __call__(self, texts, add_special_tokens=False):
        if isinstance(texts, str):
            return {"input_ids": [WORDS.index(letter) for letter in texts]}
        return {"input_ids": [self(text)["input_ids"] for text in texts]}


class Bigrams(torch.nn.Module):
    """The next token depends on the last one alone: `likely` bigrams have a half, others share."""

    def __init__(self, likely=(), context=16):
        super().__init__()
        size = len(WORDS)
        table = torch.full((size, size), 1 / size)
        for first, second in likely:
            row = table[WORDS.index(first)]
            row[:] = 0.5 / (size - 1)
            row[WORDS.index(second)] = 0.5
        self.logits = table.log()
        self.config = PreTrainedConfig(max_position_embeddings=context)
        self.device = torch.device("cpu")

    def forward(self, ids, use_cache=None):
        assert ids.shape[1] <= self.config.max_position_embeddings
        return SimpleNamespace(logits=self.logits[ids])


def item(prompt, answer, *others, entity="x", **fields):
    return Item("0", "letters", prompt, answer, (answer, *others), entity, **fields)


def answer(model, *items, **options):
    return answer_items(model, Letters(), list(items), **options)


def test_scores_are_the_log_probabilities():
    [found] = answer(Bigrams(["ab"]), item("ca", "b", "c", "dd"))
    other = math.log(0.5 / 8)
    expected = (math.log(0.5), other, other + math.log(1 / 9))
    assert found.scores == pytest.approx(expected, abs=1e-3)
    assert found.choice == "b" and found.credit == 1 and found.generated and found.rank == 1


def test_length_matters_to_the_sum_and_not_to_the_mean():
    """`bcd` follows for certain once begun; a sum still pays for each of its tokens."""
    model = Bigrams(["ab", "bc", "cd"])
    model.logits[WORDS.index("a")] = torch.full((9,), 1 / 9).log()
    [found] = answer(model, item("a", "bcd", "e"))
    assert found.choice == "e" and found.credit == 0 and found.credit_per_byte == 1
    assert not found.generated or found.scores[0] < found.scores[1]


def test_ties_share_the_credit_so_that_ignorance_is_chance():
    found = answer(Bigrams(), item("a", "b", "c", "d", "e"), item("a", "b", "c"))
    assert [one.credit for one in found] == [0.25, 0.5] and found[0].rank == 2.5
    score = accuracy(found)
    assert score.accuracy == score.chance == 0.375 and score.chance_corrected == 0


def test_chance_correction_and_memory():
    model = Bigrams(["ab"])
    right = [item("a", "b", "c", "d", "e", memory_answer="c")] * 3
    wrong = item("a", "c", "b", "d", "e", memory_answer="b")
    score = accuracy(answer(model, *right, wrong))
    assert score.accuracy == 0.75 and score.chance_corrected == pytest.approx(2 / 3)
    assert score.memory_choice == 0.25 and score.generated == 0.75


def test_options_that_share_their_first_token():
    [found] = answer(Bigrams(["bd"]), item("a", "bd", "bc", "b"))
    assert found.scores[2] - found.scores[0] == pytest.approx(-math.log(0.5), abs=1e-3)
    assert found.choice == "b"


def test_long_prompts_lose_their_beginning_and_are_counted():
    model = Bigrams(["ab"], context=4)
    whole, cut = answer(model, item("ca", "b", "cd"), item("cdefgha", "b", "cd"))
    assert not whole.truncated and cut.truncated
    assert cut.scores == pytest.approx(whole.scores)
    assert accuracy([whole, cut]).truncated == 1


def test_batches_do_not_matter():
    model = Bigrams(["ab", "cd"])
    rows = [[0, 1, 2], [0, 3, 4, 5, 6, 7], [0, 1], [3, 4, 1, 2]]
    one, many = (list(score_rows(model, rows, batch)) for batch in (1, 1000))
    for left, right, row in zip(one, many, rows, strict=True):
        assert len(left) == len(row) - 1
        assert left.log_probs == pytest.approx(right.log_probs)
        assert (left.top == right.top).all()


def test_intervals_draw_entities_whole():
    values = np.array([1.0, 1.0, 0.0, 0.0] * 10)
    apart = mean_interval(values, [str(i) for i in range(40)], 0)
    together = mean_interval(values, ["first" if v else "second" for v in values], 0)
    assert together == (0.0, 1.0) and 0.3 < apart[0] < 0.5 < apart[1] < 0.7
    assert mean_interval(values, ["one"] * 40, 0) == (0.5, 0.5)
    assert ratio_interval(values, np.ones(40), 3) == ratio_interval(values, np.ones(40), 3)


def test_groups():
    model = Bigrams(["ab"])
    items = [
        item("a", "b", "c", entity=str(i), labels={"tier": i % 2, "asked": False}) for i in range(6)
    ]
    groups = by_suite(answer(model, *items))["letters"]
    assert set(groups) == {"all", "tier"}  # asked has one value: nothing to compare
    assert set(groups["tier"]) == {"0", "1"} and groups["tier"]["1"].items == 3


@pytest.fixture(scope="module")
def small_world():
    return world.World(people=40, phrases=10)


def test_items_of_the_world(small_world):
    items = world_items(small_world, ["all"], 12)
    assert items == world_items(small_world, ["all"], 12)
    assert items != world_items(small_world, ["all"], 12, seed=1)
    surnames = {person.surname for person in small_world.people}
    for one in items:
        assert one.answer in one.options and len(one.options) == 4
        if one.suite in ("knowledge", "memory_chain", "conflict"):
            assert one.entity in surnames and one.entity in one.prompt
    with pytest.raises(UsageError, match="no suite 'nope'"):
        world_items(small_world, ["nope"])


@pytest.fixture
def facts(tmp_path):
    rows = [
        {"prompt": f"The letter after {a} is", "answer": f" {b}", "relation": "next", "subject": a}
        for a, b in zip("abcdef", "bcdefg", strict=True)
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_facts_have_others_of_their_relation(facts):
    items = fact_items(facts)
    assert items == fact_items(facts) and len(fact_items(facts, 2)) == 2
    for one in items:
        assert one.answer in one.options and len(set(one.options)) == 4
        assert len({*one.options, *one.others}) == 6 and one.labels == {"relation": "next"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("not json", "line 1: not JSON"),
        ('{"prompt": "a", "answer": "b"}', "line 1: has no text 'relation'"),
        ('{"prompt": "a", "answer": "b", "relation": "r"}', "'r' has one answer"),
    ],
)
def test_files_that_are_no_facts(tmp_path, text, message):
    (tmp_path / "f.jsonl").write_text(text)
    with pytest.raises(CorpusError, match=message):
        fact_items(tmp_path / "f.jsonl")


def test_spans_count_every_token_once(make_model, tokenizer):
    data = "world:?split=valid&tokens=1K&people=40&phrases=10"
    documents = score_documents(make_model(2), tokenizer, data)
    scores = by_span(documents)
    tokens = sum(len(document.scores) for document in documents)
    for rows in scores.values():
        assert sum(row.tokens for row in rows.values()) == tokens
    copies = [
        document.scores.top[i]
        for document in documents
        for i, span in enumerate(document.spans)
        if span and span["mechanism"] == "copy"
    ]
    assert scores["mechanism"]["copy"].accuracy == pytest.approx(np.mean(copies))


def test_run_and_its_folder(make_model, tokenizer, facts, tmp_path):
    model = make_model(2)
    data = "world:?split=valid&tokens=1K&people=40&phrases=10"
    options = EvalOptions(data=data, suites=("copy", "arith"), facts=str(facts), items=4, seed=2)
    folder = EvalFolder(tmp_path / "out", {"seed": 2})
    folder.log("begun")
    metrics = run_evaluation(model, tokenizer, options, folder=folder)
    assert metrics == run_evaluation(model, tokenizer, options)
    assert set(metrics["tasks"]) == {"copy", "arith", "facts"}
    config, stored, items = read_folder(tmp_path / "out")
    assert stored == metrics and config["seed"] == 2 and len(items) == 12
    share = np.mean([one["credit"] for one in items if one["suite"] == "copy"])
    assert share == pytest.approx(metrics["tasks"]["copy"]["all"]["all"]["accuracy"])
    with pytest.raises(UsageError, match="is not empty"):
        EvalFolder(tmp_path / "out", {})
    assert read_folder(tmp_path / "out")[1] == metrics


def test_a_run_that_is_broken_off_keeps_what_it_has(make_model, tokenizer, tmp_path):
    def broken(name):
        if name == "answering":
            raise KeyboardInterrupt
        return nullcontext()

    data = "world:?split=valid&tokens=1K&people=40&phrases=10"
    options = EvalOptions(data=data, suites=("copy",), items=2)
    folder = EvalFolder(tmp_path / "out", {})
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(make_model(2), tokenizer, options, broken, folder)
    assert len(read_documents(tmp_path / "out")) > 3
    with pytest.raises(CheckpointError, match="no finished evaluation"):
        read_folder(tmp_path / "out")


def test_what_nothing_named_stands_for():
    assert plan(EvalOptions()).suites == ("all",) and plan(EvalOptions()).data
    assert plan(EvalOptions(data="world:")).suites == ()
    everything = plan(EvalOptions(facts="f"), everything=True)
    assert everything.items is None and everything.suites == ("all",) and everything.facts == "f"


def test_lm_eval_agrees_with_our_own_suites(make_model, tokenizer, small_world, tmp_path):
    pytest.importorskip("lm_eval")
    from engram_model.lm_eval import run_tasks

    model, items = make_model(2), world_items(small_world, ["recall"], 20)
    rows = [
        {"prompt": i.prompt, "options": i.options, "label": i.options.index(i.answer)}
        for i in items
    ]
    (tmp_path / "recall.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "world_recall",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "recall.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "options",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "world_recall.yaml").write_text(json.dumps(task))
    found = run_tasks(model, tokenizer, (str(tmp_path / "world_recall.yaml"),))
    ours = accuracy(answer_items(model, tokenizer, items)).accuracy
    assert found["world_recall"]["acc,none"] == pytest.approx(ours)
    assert found["world_recall"]["items"] == 20
    with pytest.raises(UsageError, match="no task 'nope'"):
        run_tasks(model, tokenizer, (str(tmp_path / "nope.yaml"),))
