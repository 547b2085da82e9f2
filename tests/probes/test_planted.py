"""One checkpoint built by hand, opened from its folder, and what every probe must say of it.

Nothing but embedding and memory writes to the residual: attention and MLPs add zero. Each of the
words has an axis of the residual of its own, the unembedding is the same axes times `SCALE`, and
the rows are what is looked up, key and value as they are: a bigram's row says exactly what is added
after it. So every number below is known on paper.
"""

import math

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_probes.slot_index import build_index

OFTEN = ("the", "a", "of", "and", "in", "old", "grey", "black")
WORDS = ("harbour", "mill", "tower", "boat", "counts", "waits", "sleeps", "dusk", "at")
FIRST = [f"{a}{b}" for a in ("ka", "lo", "mi", "ne") for b in ("run", "sol", "tav")]
LAST = [f"{a}{b}" for a in ("vor", "zel", "dru", "pax") for b in ("holm", "beth", "rosk")]
CLASSES = ("smith", "weaver")
PLACES = ("Varnholm", "Ostrava", "Mlava")
D = 64
SCALE = 0.5
SIZE = 2.0  # of a value
CLOSED = 1 / (1 + math.e)  # the gate of every other bigram: its score is -1
OPEN = 1 / (1 + math.exp(-(D**0.25)))  # that of a planted one: its key is the word's own axis
ADDED = OPEN * SIZE  # along the value's axis
LOGIT = SCALE * D**0.5  # of a word whose axis alone is in the residual
NORM = math.hypot(1, ADDED)  # of word and value
FACTS = {("old", "harbour"): "Varnholm", ("grey", "mill"): "Ostrava"}
NAMES = list(zip(FIRST, LAST, strict=True))
LAYER = 1  # of 3, so that depth 2 is the first that the memory has written to


def names_of(kind):
    return [name for i, name in enumerate(NAMES) if i % 2 == kind]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of whole words, saved and loaded."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    # Surnames between other words: an id stands for how often a token is read.
    vocabulary = ["<bos>", "<eos>", "<pad>", *FIRST, *OFTEN, *CLASSES, *PLACES, *LAST, *WORDS]
    assert len(vocabulary) == len(set(vocabulary)) <= D
    model = WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="the")
    backend = Tokenizer(model)
    backend.pre_tokenizer = Whitespace()
    special = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="module")
def planted(words, tmp_path_factory):
    """The checkpoint, through `em.load`."""
    folder = tmp_path_factory.mktemp("planted")
    _built(words).save_pretrained(folder)
    words.save_pretrained(folder)
    return em.load(folder)


def _built(words):
    from engram_model.training.train import new_model

    fields = dict(
        hidden_size=D,
        num_hidden_layers=3,
        first_k_dense_replace=3,
        hc_mult=1,
        engram_layer_ids=[LAYER],
        engram_n_heads=1,
        engram_head_dim=2 * D,
        engram_vocab_size=20011,
        engram_kernel_size=0,
        engram_norm_eps=1e-12,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
    )
    model = new_model("engram-tiny", words, fields, seed=0)
    [memory] = model.model.memories
    axes = torch.eye(D)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(axes[: len(words)])
        model.lm_head.weight.copy_(SCALE * axes[: len(words)])
        memory.wkv.weight.copy_(torch.cat([torch.eye(2 * D)] * 2, 1))  # of the bigram, the trigram
        memory.embed.weight.zero_()
        memory.embed.weight[: memory.offsets[1], :D] = -1  # bigrams: a key against every word
        for bigram, value in planted_rows(words):
            key = axes[words.convert_tokens_to_ids(bigram[1])]
            row = torch.cat([key, SIZE * axes[words.convert_tokens_to_ids(value)]])
            memory.embed.weight[slot_of(memory, words, bigram)] = row
    return model


def planted_rows(words):
    named = [(name, CLASSES[kind]) for kind in (0, 1) for name in names_of(kind)]
    return [*FACTS.items(), *named]


def slot_of(memory, words, bigram) -> int:
    ids = torch.tensor([[words.bos_token_id, *words.convert_tokens_to_ids(list(bigram))]])
    return int(memory._slots(ids, None)[0, -1, 0])


TEXT = "the old harbour counts a grey mill and the boat"
AT = {3: "Varnholm", 7: "Ostrava"}  # position -> what the memory says there
TEXTS = [TEXT, "in the old mill a grey harbour sleeps", "dusk of the black tower and a boat waits"]


def spoken(words, names):
    """Documents about one person each, with the person's name as a span."""
    documents = []
    for i, name in enumerate(names * 4):
        where = ("at dusk", "of the harbour", "in the grey tower", "and a boat")[i // len(names)]
        text = f"the black boat {where} waits {' '.join(name)} counts the old mill"
        start = text.index(name[0])
        span = dict(start=start, end=start + len(" ".join(name)), kind="name")
        role = CLASSES[name in names_of(1)]
        documents.append({"text": text, "spans": [{**span, "entity_id": name[0], "role": role}]})
    return documents


def softmax(logits: dict[str, float], words) -> np.ndarray:
    values = np.zeros(len(words))
    for word, logit in logits.items():
        values[words.convert_tokens_to_ids(word)] = logit
    exp = np.exp(values)
    return exp / exp.sum()


@pytest.fixture(scope="module")
def index(planted):
    return build_index(*planted, TEXTS)


def test_no_two_ngrams_share_a_row(planted):
    """Else nothing here were known on paper."""
    texts = [*TEXTS, *(document["text"] for document in spoken(planted[1], NAMES))]
    every = build_index(*planted, texts)
    for text in texts[:15]:
        trace = ep.inspect_slots(*planted, text, every)
        assert not trace.tenants[:, ~trace.special].any()
    slots = [
        slot_of(planted[0].model.memories[0], planted[1], b) for b, _ in planted_rows(planted[1])
    ]
    assert len(set(slots)) == len(slots)


def test_gates(planted):
    found = ep.gate_map(*planted, TEXT)
    at = np.isin(np.arange(len(found.tokens)), list(AT))
    usual = ~found.special
    np.testing.assert_allclose(found.scores[0, at, 0], D**0.5, rtol=1e-5)
    np.testing.assert_allclose(found.scores[0, usual & ~at, 0], -1, rtol=1e-5)
    np.testing.assert_allclose(found.gate[0, at, 0], OPEN, rtol=1e-5)
    np.testing.assert_allclose(found.gate[0, usual & ~at, 0], CLOSED, rtol=1e-5)
    np.testing.assert_allclose(found.added_norm[0], np.where(at, ADDED, 0)[:, None], rtol=1e-5)
    np.testing.assert_allclose(found.value_norm[0], np.where(at, SIZE, 0), rtol=1e-5)
    np.testing.assert_allclose(found.residual_norm[0], 1, rtol=1e-5)


def test_rows_are_those_that_were_written_and_say_it(planted, index):
    model, words = planted
    trace = ep.inspect_slots(model, words, TEXT, index)
    for position, value in AT.items():
        bigram = TEXT.split()[position - 2 : position]
        assert trace.slots[0, position, 0] == slot_of(model.model.memories[0], words, bigram)
        assert trace.row_norm[0, position, 0] == pytest.approx(math.hypot(1, SIZE))
        assert trace.value_norm[0, position].tolist() == pytest.approx([SIZE, 0])
        assert trace.says_texts[0][position][0][0] == value
        assert trace.row_reads[0, position, 0] == trace.ngram_counts[0, position] == 1
    others = [p for p in range(1, len(trace.tokens)) if p not in AT]
    assert not trace.value_norm[0, others].any()


@pytest.mark.parametrize("position", AT)
def test_attribution_is_the_rows_alone(planted, position):
    text = " ".join(TEXT.split()[:position])
    found = ep.attribute(*planted, text, AT[position], draws=20)
    shares = dict(zip(found.components, found.contribution, strict=True))
    expected = LOGIT * ADDED / NORM
    assert found.logit == pytest.approx(expected, abs=1e-4)
    assert shares.pop(f"{LAYER}_engram_order2_head0") == pytest.approx(expected, abs=1e-4)
    assert all(abs(share) < 1e-4 for share in shares.values()), shares
    assert found.contribution.sum() == pytest.approx(found.logit, abs=1e-4)
    assert found.logit_without_memory == pytest.approx(0, abs=1e-5)
    own = ep.attribute(*planted, text, text.split()[-1], draws=20)
    assert own.by_part()["embed"] == pytest.approx(LOGIT / NORM, abs=1e-4)
    assert own.memory == pytest.approx(0, abs=1e-4) and own.rank == 2 and found.rank == 1


def test_predictions_settle_right_after_the_memory(planted):
    words = planted[1]
    found = ep.logit_lens(*planted, TEXT)
    usual = np.flatnonzero(~found.special)
    expected = [LAYER + 1 if p in AT else 0 for p in usual]
    assert found.settling_depth[usual].tolist() == expected
    kl = found.token_values[found.metrics.index("kl")]
    for position, value in AT.items():
        word = TEXT.split()[position - 1]
        before = softmax({word: LOGIT}, words)
        after = softmax({word: LOGIT / NORM, value: LOGIT * ADDED / NORM}, words)
        known = float((after * np.log(after / before)).sum())
        np.testing.assert_allclose(kl[:, position], [known, known, 0, 0], atol=1e-5)
        assert found.top1_texts[LAYER][position] == word
        assert found.top1_texts[LAYER + 1][position] == value
    others = [p for p in usual[:-1] if p not in AT]
    np.testing.assert_allclose(kl[:, others], 0, atol=1e-6)


def asked(*facts):
    """Each fact in six surroundings, which change nothing: no longer n-gram says anything."""
    before = ("the", "a", "of the", "in the", "counts a", "at the")
    return [
        {
            "prompt": f"{words} {' '.join(bigram)}",
            "answer": f" {FACTS[bigram]}",
            "options": [f" {bigram[-1]}", f" {FACTS[bigram]}"],
            "suite": FACTS[bigram],
        }
        for bigram in facts
        for words in before
    ]


@pytest.mark.parametrize("how", ["zero", "rows_zero"])
def test_without_the_memory_the_embedding_speaks(planted, how):
    words = planted[1]
    found = ep.suppress(*planted, asked(("grey", "mill")), how)
    assert found.accuracy[:, 0].tolist() == [1, 0] and found.retained.tolist() == [-1]
    before = softmax({"mill": LOGIT / NORM, "Ostrava": LOGIT * ADDED / NORM}, words)
    after = softmax({"mill": LOGIT}, words)
    place = words.convert_tokens_to_ids("Ostrava")
    expected = np.log([before[place], after[place]])
    np.testing.assert_allclose(found.log_prob[:, 0], expected, atol=1e-4)


def test_one_row_carries_one_fact(planted):
    """Without the row of `old harbour` that answer is lost and the other one exactly as it was."""
    model, words = planted
    slot = slot_of(model.model.memories[0], words, ("old", "harbour"))
    found = ep.suppress(model, words, asked(*FACTS), "rows_zero", slots=[slot])
    assert found.tasks == tuple(FACTS.values())
    assert found.accuracy.tolist() == [[1, 1], [0, 1]] and found.retained.tolist() == [-1, 1]
    assert found.change[0] < -1 and found.change[1] == 0
    missed = ep.suppress(model, words, asked(*FACTS), "rows_zero", slots=[slot], orders=[3])
    assert missed.accuracy.tolist() == [[1, 1], [1, 1]] and missed.replaced[0] == 0


def test_other_rows_carry_nothing(planted):
    model, words = planted
    slot = slot_of(model.model.memories[0], words, ("old", "harbour"))
    one = asked(("old", "harbour"))
    found = ep.suppress(model, words, one, "rows_zero", slots=[slot], controls=5)
    assert found.accuracy[:, 0].tolist() == [1, 0]
    assert (found.control_accuracy == 1).all() and (found.control_retained == 1).all()
    assert (found.control_change == 0).all()
    assert 0 < found.replaced[0] < 0.5 and found.replaced.shape == (6,)


def test_an_edit_changes_what_it_says_and_nothing_else(planted):
    model, words = planted
    others = [*TEXTS[1:], "a grey mill counts", *(d["text"] for d in spoken(words, NAMES))]
    edit, patch = ep.editing.edit(
        model, words, "the old harbour", " Mlava", method="closed", texts=others
    )
    assert (edit.rank_before[0], edit.rank_after[0]) == (3, 1)
    assert edit.touched.sum() == 0 and edit.others > 100 and edit.others_kl == 0
    assert patch.slots[LAYER][0] == slot_of(model.model.memories[0], words, ("old", "harbour"))
    with patch.applied(model):
        after = ep.logit_lens(model, words, TEXT)
    assert after.top1_texts[-1][3] == "Mlava" and after.top1_texts[-1][7] == "Ostrava"


def test_gates_at_ends_of_names_are_told_perfectly(planted):
    model, words = planted
    found = ep.gate_profile(model, words, spoken(words, NAMES))
    assert (found.auc[0, :, 0, 0, 0] == 1).all()  # entity, both controls, gate


def test_the_class_is_readable_after_the_memory_alone(planted):
    """A surname's own axis says nothing of one held out; what the memory adds is one a class."""
    model, words = planted
    found = ep.linear.probe(model, words, spoken(words, NAMES), label="role", at="entity", folds=3)
    depths, accuracy, _, _ = found.curve()
    assert depths.tolist() == [0, 1, 2, 3]
    assert (accuracy[:2] < 0.75).all() and accuracy[2:].tolist() == [1, 1]


def test_a_model_is_alike_to_itself(planted):
    model, words = planted
    texts = [document["text"] for document in spoken(words, NAMES)]
    found = ep.cka(model, model, words, texts, permutations=5, k=2)
    np.testing.assert_allclose(np.diag(found.matrix), 1, atol=1e-6)
    np.testing.assert_allclose(found.matrix, found.matrix.T, atol=1e-6)
    assert found.matrix[1, 2] == pytest.approx(1) and found.matrix[0, 1] < 0.99


def test_patching_finds_the_row_and_nothing_else(planted):
    """The metric is `Varnholm` less `Ostrava`; word and memory are the only ones to add."""
    texts = "the old harbour", "the grey mill"
    answers = "Varnholm", "Ostrava"
    whole = LOGIT * ADDED / NORM
    half = LOGIT / math.sqrt(2)  # a gate at a score of zero is a half, which adds 1 of SIZE
    found = ep.attribution_patching(*planted, *texts, *answers, steps=1, draws=2)
    np.testing.assert_allclose(found.metric[0], [whole, -whole], rtol=1e-4)
    last = dict(zip(found.nodes, found.exact[0, :, -1], strict=True))
    known = {
        "embed": whole - half,
        f"{LAYER}_engram_order2_head0": whole + half,
        f"{LAYER}_engram_rows": whole + half,
        f"{LAYER}_engram_out": 2 * whole,
    }
    for node, effect in last.items():
        assert effect == pytest.approx(known.get(node, 0), abs=1e-4), node
    np.testing.assert_allclose(found.exact[0, :, :-1], 0, atol=1e-6)
    out = found.nodes.index(f"{LAYER}_engram_out")
    slope = ADDED * LOGIT * (NORM**-1 + NORM**-3)
    assert found.estimate[0, out, -1] == pytest.approx(slope, rel=1e-4)
    path = ep.attribution_patching(*planted, *texts, *answers, steps=40, draws=2, check=1)
    assert abs(path.agreement()["missing"]) < 0.05
