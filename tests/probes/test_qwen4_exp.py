"""Every probe of residuals and of the memory on a tiny random `qwen4_exp`."""

import copy

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import UsageError
from engram_model.memories import memories_of
from engram_probes.capture import Subject
from engram_probes.memory_tables import tables_of
from engram_probes.slot_index import build_index, open_index
from engram_probes.suppression import suppressed


@pytest.fixture(scope="module")
def qwen(make_qwen):
    return make_qwen()


@pytest.fixture(scope="module")
def bridge(qwen, tokenizer):
    return em.hooked(qwen, tokenizer)


@pytest.fixture(scope="module")
def other(make_qwen):
    return make_qwen(seed=1, ple_layer_ids=[])


@pytest.fixture(scope="module")
def cached(qwen, tokenizer, bridge, texts):
    """Ids of a text, and what a bridge's hooks see on it."""
    ids = Subject.of(qwen).encode(tokenizer, texts[1])
    with torch.no_grad():
        return ids, bridge.run_with_cache(torch.tensor([ids]), use_cache=False)[1]


def test_lens_ends_in_the_models_own_logits(qwen, tokenizer, texts):
    lens = ep.logit_lens(qwen, tokenizer, texts)
    assert lens.mean.shape[1] == 5 and lens.memory_layers == (0, 2)
    assert lens.max_difference < 1e-5
    kl = lens.mean[lens.metrics.index("kl")]
    assert kl[-1] == pytest.approx(0, abs=1e-5) and kl[0] > 0.01


def test_residuals_are_read_as_the_end_reads_them(qwen, cached):
    ids, cache = cached
    subject = Subject.of(qwen)
    found = subject.residuals([ids])
    layers = cache.accumulated_resid()
    for depth, expected in zip(found.depths, layers, strict=True):
        torch.testing.assert_close(depth, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.last_hidden, layers[-1], atol=1e-5, rtol=0)


def test_cka(qwen, other, tokenizer, texts):
    found = ep.cka(qwen, other, tokenizer, texts, k=2)
    assert np.isfinite(found.matrix).all() and (found.matrix <= 1 + 1e-6).all()


def test_linear(qwen, other, tokenizer, labelled):
    found = ep.linear.probe(
        qwen, tokenizer, labelled, twin=other, positions=40, folds=2, depths=(0, 3)
    )
    assert "rows of layer 2" in found.summary()


def test_gate_map_is_what_hooks_see(qwen, tokenizer, texts, cached):
    _, cache = cached
    gates = ep.gate_map(qwen, tokenizer, texts[1])
    assert gates.layers == (0, 2) and gates.n_heads == 2 and gates.max_ngram_size == 3
    for index, layer in enumerate(gates.layers):
        hook = f"blocks.{layer}.engram.hook_"
        assert np.allclose(gates.gate[index], cache[f"{hook}gate"][0], atol=1e-6)
        assert np.allclose(gates.scores[index], cache[f"{hook}score"][0], atol=1e-5)
        assert np.array_equal(gates.slots[index], cache[f"{hook}slots"][0])
        for what, name in (("added", f"{hook}out"), ("residual", f"{hook}in")):
            norms = cache[name][0].norm(dim=-1)
            assert np.allclose(getattr(gates, f"{what}_norm")[index], norms, atol=1e-5)
    assert np.allclose(1 / (1 + np.exp(-np.sign(gates.scores) * np.sqrt(np.abs(gates.scores)))),
                       gates.gate, atol=1e-6)  # fmt: skip


def test_gate_map_measures_what_hooks_leave(qwen, bridge, tokenizer, texts):
    with bridge.hooks(fwd_hooks=[("blocks.2.engram.hook_gate", lambda t, hook: t * 0)]):
        gates = ep.gate_map(bridge, tokenizer, texts[1])
    plain = ep.gate_map(qwen, tokenizer, texts[1])
    assert (gates.gate[1] == 0).all() and np.allclose(gates.gate[0], plain.gate[0])


def test_gate_profile(qwen, tokenizer, labelled):
    found = ep.gate_profile(qwen, tokenizer, labelled)
    assert found.layers == (0, 2) and found.auc.shape[-2:] == (2, 4)


def test_a_tokenizer_without_bos(qwen, tokenizer, labelled, texts):
    """As Qwen's: a profile then opens a text with its end token, other probes with nothing."""
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = None
    assert ep.gate_profile(qwen, bare, labelled[:20]).documents == 20
    gates = ep.gate_map(qwen, bare, texts[1])
    assert len(gates.tokens) == len(ep.gate_map(qwen, tokenizer, texts[1]).tokens) - 1
    trace = ep.inspect_slots(qwen, bare, texts[1], texts)
    assert np.array_equal(trace.slots, gates.slots)


def test_slots_are_those_of_the_forward_pass(qwen, tokenizer, texts, cached):
    ids, cache = cached
    trace = ep.inspect_slots(qwen, tokenizer, texts[1])
    assert trace.compressed_ids.tolist() == trace.token_ids.tolist() == ids
    for index, layer in enumerate(trace.layers):
        assert np.array_equal(trace.slots[index], cache[f"blocks.{layer}.engram.hook_slots"][0])
        rows = cache[f"blocks.{layer}.engram.hook_rows"][0]
        assert np.allclose(trace.row_norm[index], rows.norm(dim=-1), atol=1e-6)
        weight = memories_of(qwen)[layer].value_weight.detach()
        shares = torch.einsum("pcw,dcw->pcd", rows, weight)
        assert np.allclose(trace.value_norm[index], shares.norm(dim=-1), atol=1e-5)
    # A row says what the head reads if it alone had been given to every stream.
    with torch.no_grad():
        alone = qwen.model.hyper_connection_mixer(shares[3, 1].repeat(4))
        logits = qwen.lm_head(alone)
    assert trace.says_ids[1, 3, 1, 0] == int(logits.argmax())


def test_index_counts_what_the_module_looks_up(qwen, tokenizer, tmp_path):
    """An end inside a document: its n-grams are counted as the module hashes them."""
    documents = ["The miller counts<|eos|>boats at dusk", "At dusk<|eos|><|eos|>the boats"]
    index = build_index(qwen, tokenizer, documents, tmp_path / "index")
    subject, hasher = Subject.of(qwen), tables_of(qwen).hasher
    reads = {0: np.zeros(hasher.rows(0), int), 2: np.zeros(hasher.rows(2), int)}
    for text in documents:
        ids = subject.encode(tokenizer, text)
        assert tokenizer.eos_token_id in ids
        usual = ~subject.special(tokenizer, ids)
        for layer, count in reads.items():
            slots = hasher.slots(np.array(ids), layer)[usual]
            count += np.bincount(slots.ravel(), minlength=len(count))
    for layer, count in reads.items():
        rows, found = index.layers[layer].rows, np.zeros_like(count)
        for row in rows:
            column = np.searchsorted(hasher.offsets(layer), row, side="right") - 1
            found[row] = index.counts[2 + column // 2][index.layers[layer].of(row)].sum()
        assert np.array_equal(found, count)
    again = open_index(tmp_path / "index")
    assert type(again.hasher) is type(hasher)
    load = ep.row_load(again, tokenizer)
    assert load.table_rows.shape == (2, 4)
    trace = ep.inspect_slots(qwen, tokenizer, documents[0], again)
    ordinary = ~trace.special
    assert (trace.ngram_counts[:, ordinary] > 0).all()


def test_an_index_of_another_hash_is_refused(qwen, engram, tokenizer, texts, slot_index):
    with pytest.raises(UsageError):
        ep.inspect_slots(qwen, tokenizer, texts[1], slot_index)


@torch.no_grad()
def test_suppression_is_the_model_without(qwen, make_qwen, ids):
    without = make_qwen(ple_layer_ids=[])
    without.load_state_dict(qwen.state_dict(), strict=False)
    before = qwen(ids).logits
    with suppressed(qwen, "zero"):
        torch.testing.assert_close(qwen(ids).logits, without(ids).logits, atol=1e-5, rtol=0)
    with suppressed(qwen, "rows_zero"):  # no bias: no rows, nothing added
        torch.testing.assert_close(qwen(ids).logits, without(ids).logits, atol=1e-5, rtol=0)
    for how in ("mean", "shuffle", "random", "gate_zero", "gate_one"):
        with suppressed(qwen, how):
            assert (qwen(ids).logits - before).abs().max() > 1e-3, how
    with suppressed(qwen, "rows_zero", orders=[3], heads=[1], layers=[2]):
        assert (qwen(ids).logits - before).abs().max() > 1e-4
    assert torch.equal(qwen(ids).logits, before)


def test_shuffled_rows_stay_rows_of_their_head(qwen, ids):
    """The table is longer than its heads: what fills it up is nobody's row."""
    memory, seen = memories_of(qwen)[0], {}
    size = int(memory.primes.sum())
    assert len(memory.embed.weight) > size
    with torch.no_grad():
        spare = memory.embed.weight[size:].clone()
        memory.embed.weight[size:] = 1e6
        with suppressed(qwen, "shuffle"):
            memory.tap = lambda name, tensor: seen.update({name: tensor}) or tensor
            qwen(ids)
            memory.tap = None
        memory.embed.weight[size:] = spare
    assert seen["rows"].abs().max() < 1e3


def test_suppress(qwen, tokenizer, questions):
    found = ep.suppress(qwen, tokenizer, questions, "rows_zero", orders=[3])
    assert "order 3 of the memory" in found.part


def test_edit(qwen, tokenizer):
    before = {n: m.embed.weight.clone() for n, m in memories_of(qwen).items()}
    found, patch = ep.editing.edit(qwen, tokenizer, "The miller of", " Varnholm", steps=60)
    assert patch.rows == 8 and found.layers == (0, 2)
    assert found.log_prob_after[0] > found.log_prob_before[0] + 1
    for layer, memory in memories_of(qwen).items():
        assert torch.equal(memory.embed.weight, before[layer])


@pytest.mark.parametrize("against", [None, 9])
def test_attribution_adds_up(qwen, tokenizer, texts, cached, against):
    found = ep.attribute(qwen, tokenizer, texts[1], against=against)
    assert abs(found.remainder) < 1e-4
    assert "2_engram_order3_head1" in found.components and found.by_stream.shape[1] == 4
    assert found.logit_without_memory != found.logit
    _, cache = cached
    stack, labels = cache.decompose_resid(return_labels=True)
    row = qwen.lm_head.weight[found.target_id]
    if against is not None:
        row = row - qwen.lm_head.weight[against]
    by_label = dict(zip(labels, (stack[:, 0, -1] @ row).tolist(), strict=True))
    frame = found.to_frame().set_index("component").contribution
    for label, expected in by_label.items():
        layer = label.split("_")[0]
        mine = [name for name in frame.index if name.startswith(f"{layer}_engram")]
        share = frame[mine].sum() if label.endswith("engram_out") else frame[label]
        assert share == pytest.approx(expected, abs=1e-5)


def test_attention_of_two_kinds_has_no_heads(qwen, tokenizer, texts):
    with pytest.raises(UsageError, match="layer 0 shows its heads to no hook"):
        ep.attribute(qwen, tokenizer, texts[1], heads=True)


def test_the_language_model_within_two_modalities(qwen, tokenizer, texts):
    from transformers import Qwen4ExpConfig, Qwen4ExpForConditionalGeneration

    vision = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32,
                  num_position_embeddings=16)  # fmt: skip
    config = Qwen4ExpConfig(text_config=qwen.config.to_dict(), vision_config=vision)
    whole = Qwen4ExpForConditionalGeneration(config).eval()
    whole.model.language_model.load_state_dict(qwen.model.state_dict())
    whole.lm_head.load_state_dict(qwen.lm_head.state_dict())
    gates = ep.gate_map(whole, tokenizer, texts[1])
    assert np.allclose(gates.gate, ep.gate_map(qwen, tokenizer, texts[1]).gate, atol=1e-6)
    lens, own = (ep.logit_lens(model, tokenizer, texts[:4]) for model in (whole, qwen))
    assert np.allclose(lens.mean, own.mean, atol=1e-4)
    with pytest.raises(UsageError, match="no adapter"):
        em.hooked(whole, tokenizer)


@pytest.mark.parametrize("bos", [True, False])
def test_row_contexts(qwen, tokenizer, texts, bos):
    reader = copy.deepcopy(tokenizer)
    if not bos:
        reader.bos_token = None
    found = ep.row_contexts(qwen, reader, texts[:6], k=2)
    gates = [ep.gate_map(qwen, reader, text) for text in texts[:6]]
    for row, layer in enumerate(found.layers):
        column = (found.orders[row] - 2) * 2 + found.heads[row]
        layer = gates[0].layers.index(layer)
        reads = sum(
            int((one.slots[layer, ~one.special, column] == found.slots[row]).sum()) for one in gates
        )
        assert found.reads[row] == reads > 0
        strongest = gates[found.document[row, 0]]
        place = found.position[row, 0]
        assert np.allclose(found.gate[row, 0], strongest.gate[layer, place], atol=1e-6)
        assert np.isclose(found.surprisal[row, 0], strongest.next_surprisal[place], equal_nan=True)


def test_attribution_patching(qwen, tokenizer):
    found = ep.attribution_patching(
        qwen, tokenizer, "The miller of Varnholm counts the boats",
        "The miller of Ostrava counts the boats", " boats", " wheel", draws=2,
    )  # fmt: skip
    assert {"0_engram_out", "2_engram_gate", "2_engram_order3_head1"} <= set(found.nodes)
    with pytest.raises(UsageError, match="layer 0 shows its heads to no hook"):
        ep.attribution_patching(
            qwen, tokenizer, "The miller of Varnholm", "The miller of Ostrava", 5, 6, heads=True
        )


def test_routing(qwen, tokenizer, texts):
    found = ep.expert_routing(qwen, tokenizer, texts[:3], changes=("zero",), permutations=2)
    assert "2 of 4 experts in 4 layers" in found.summary()
    with pytest.raises(UsageError, match="no attention patterns"):
        ep.attention_patterns(qwen, tokenizer, texts[:3])
