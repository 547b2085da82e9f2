"""Attribution patching: estimates against exact effects, memories among the nodes, and pairs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.bridge_patching import estimates, nodes_of, patched_metric, values_of
from engram_model.errors import CorpusError, UsageError
from engram_model.tasks import Pair, read_pairs, world_pairs
from engram_model.world import parse_spec
from engram_probes.patching import ROLES

CLEAN = "The harbour master of Varnholm counts the boats"
CORRUPTED = "The harbour master of Ostrava counts the boats"
ANSWERS = (" boats", " wheel")
CASES = {
    "one stream": dict(streams=1),
    "four streams": dict(streams=4),
    "without convolution": dict(streams=4, engram_kernel_size=0),
    "merged": dict(streams=4, engram_multi_branch=False),
    "without a gate": dict(streams=4, engram_gate="none"),
    "no memory": dict(streams=1, memory_layers=()),
}


def metric(logits):
    return logits[:, -1, 7] - logits[:, -1, 11]


@pytest.fixture(scope="module")
def tokens(tokenizer):
    """[2, 1, pos]: two texts of one length."""
    rows = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in (CLEAN, CORRUPTED)]
    return torch.tensor(rows)[:, None]


@pytest.fixture(scope="module", params=CASES)
def case(request, make_model, tokenizer, tokens):
    """A bridge, its nodes, and what they hold in the corrupted and in the clean run."""
    # Dense: where the choice of experts jumps there is no gradient that could say so.
    model = make_model(**CASES[request.param], first_k_dense_replace=3)
    bridge = em.hooked(model, tokenizer)
    nodes = nodes_of(bridge, heads=True)
    clean, corrupted = (values_of(bridge, ids, nodes, metric) for ids in tokens)
    return bridge, nodes, corrupted, clean


@pytest.fixture(scope="module")
def several(engram, tokenizer):
    """Pairs, the answers set so that the model prefers the right ones; one it does not know."""
    texts = [
        f"The {who} of {town} counts the"
        for who in ("miller", "smith")
        for town in ("Varnholm", "Ostrava", "Mlava")
    ]
    records = []
    for clean in texts:
        for corrupted in texts:
            if clean == corrupted:
                continue
            ids = [tokenizer(text)["input_ids"] for text in (clean, corrupted)]
            if len(ids[0]) != len(ids[1]):
                continue
            logits = [
                engram(torch.tensor([[tokenizer.bos_token_id, *row]])).logits[0, -1] for row in ids
            ]
            gap = logits[0] - logits[1]
            records.append(Pair(clean, corrupted, int(gap.argmax()), int(gap.argmin())))
    return records


@pytest.fixture(scope="module")
def result(patching):
    return patching


def test_patching_everything_that_is_read_gives_the_other_run(case, tokens):
    """Embedding and rows are the inputs: with both patched at all places the runs are the same."""
    bridge, nodes, (_, before), (source, after) = case
    inputs = [node for node in nodes if node.kind in ("embed", "rows")]
    hooks = [(n.hook, lambda tensor, hook: source[hook.name].clone()) for n in inputs]
    names = {bridge.hook_dict[node.hook].name: node.hook for node in inputs}
    source = {name: source[hook] for name, hook in names.items()}
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        got = float(metric(bridge(tokens[1])))
    assert got == pytest.approx(after, abs=1e-4) and abs(after - before) > 1e-3


def test_integrated_gradients_of_the_inputs_sum_to_the_whole_change(case, tokens):
    bridge, nodes, (receiver, before), (source, after) = case
    found = estimates(bridge, tokens[1], receiver, source, nodes, metric, steps=24)
    inputs = [i for i, node in enumerate(nodes) if node.kind in ("embed", "rows")]
    assert float(found[inputs].sum()) == pytest.approx(after - before, rel=0.1, abs=0.02)


def test_an_estimate_is_the_slope_of_the_exact_effect(case, tokens):
    """A small step towards the source changes the metric by as much of the estimate."""
    bridge, nodes, (receiver, _), (source, _) = case
    found = estimates(bridge, tokens[1], receiver, source, nodes, metric)
    everywhere = torch.ones(tokens.shape[-1], dtype=torch.bool)
    step = 1e-2
    ends = []
    for sign in (step, -step):
        near = {name: torch.lerp(receiver[name], source[name], sign) for name in receiver}
        cells = [(node, everywhere) for node in nodes]
        ends.append(patched_metric(bridge, tokens[1], near, cells, metric))
    slopes = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(found.sum(1), slopes, rtol=0.03, atol=5e-3)
    assert float(slopes.abs().max()) > 0.05


def test_parts_sum_to_the_whole(case, tokens):
    """A memory's rows are its columns; an attention is linear in its heads."""
    bridge, nodes, (receiver, _), (source, _) = case
    found = estimates(bridge, tokens[1], receiver, source, nodes, metric)
    labels = [node.label for node in nodes]
    for layer in range(3):
        heads = [i for i, node in enumerate(nodes) if node.label.startswith(f"{layer}_attn_head")]
        whole = found[labels.index(f"{layer}_attn_out")]
        torch.testing.assert_close(found[heads].sum(0), whole, rtol=1e-3, atol=1e-4)
        if f"{layer}_engram_rows" in labels:
            rows = [i for i, node in enumerate(nodes) if node.label.startswith(f"{layer}_engram_o")]
            rows = [i for i in rows if nodes[i].kind == "row"]
            whole = found[labels.index(f"{layer}_engram_rows")]
            torch.testing.assert_close(found[rows].sum(0), whole, rtol=1e-3, atol=1e-4)


def test_nothing_before_the_change_has_an_effect(case, tokens):
    bridge, nodes, (receiver, _), (source, _) = case
    first = int((tokens[0, 0] != tokens[1, 0]).nonzero()[0])
    found = estimates(bridge, tokens[1], receiver, source, nodes, metric)
    assert first > 2 and float(found[:, :first].abs().max()) < 1e-5
    assert float(found[:, first:].abs().max()) > 1e-2


def test_equals_transformer_lens_on_its_nodes(make_model, tokenizer, tokens):
    from transformer_lens.tools.analysis.attribution_patching import attribution_patch

    bridge = em.hooked(make_model(streams=1), tokenizer)
    theirs = attribution_patch(bridge, *tokens, lambda logits: metric(logits)[0]).node_scores
    nodes = nodes_of(bridge, heads=True)
    (source, _), (receiver, _) = (values_of(bridge, ids, nodes, metric) for ids in tokens)
    ours = estimates(bridge, tokens[1], receiver, source, nodes, metric)
    labels = {node.label: i for i, node in enumerate(nodes)}
    compared = 0
    for node, score in theirs.items():
        label = {
            "embed": "embed",
            "attn_head_out": f"{node.layer}_attn_head{node.head}",
            "mlp_out": f"{node.layer}_mlp_out",
        }[node.kind]
        assert float(ours[labels[label], node.position]) == pytest.approx(score, abs=1e-5)
        compared += abs(score) > 1e-3
    assert compared > 20
    assert not any("engram" in node.hook_name for node in theirs)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_models_without_memory(name, tokenizer):
    import transformers

    small: dict = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=64, **small)
        model = transformers.GPT2LMHeadModel(config)
    else:
        sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2)
        config = transformers.LlamaConfig(
            **sizes, num_attention_heads=2, max_position_embeddings=64, **small
        )
        model = transformers.LlamaForCausalLM(config)
    found = ep.attribution_patching(
        model, tokenizer, CLEAN, CORRUPTED, *ANSWERS, heads=True, draws=2
    )
    assert set(found.kinds) == {"embed", "attention", "head", "mlp"}
    assert "memory" not in found.shares() and "memories" not in found.summary()
    assert found.agreement()["correlation"] > 0.9  # weights are small: nearly linear
    assert abs(found.agreement()["missing"]) < 0.05


def test_one_pair(result, engram, tokenizer, tokens):
    (clean,), (corrupted,) = tokens
    shown = result.clean[result.positions[0]], result.corrupted[result.positions[0]]
    assert result.positions[0] == int((clean != corrupted).nonzero()[0])
    assert result.places[0] == f"{shown[0]}/{shown[1]}"
    wanted, other = (tokenizer(text)["input_ids"][0] for text in ANSWERS)
    for run, ids in enumerate((clean, corrupted)):
        with torch.no_grad():
            logits = engram(ids[None]).logits[0, -1]
        expected = float(logits[wanted] - logits[other])
        assert result.metric[0, run] == pytest.approx(expected, abs=1e-4)
    assert result.estimate.shape == (1, len(result.nodes), len(result.places))
    assert np.isnan(result.interval()[0]).all()
    assert (result.chosen == 3).all() and np.isfinite(result.exact).all()
    assert len(result.null_exact) == 3 and np.abs(result.null_exact).max() > 1e-3


def test_noising_is_the_reverse(engram, tokenizer, result):
    """Into the clean run from the corrupted one is denoising with the two exchanged."""
    noising = ep.attribution_patching(
        engram, tokenizer, CLEAN, CORRUPTED, *ANSWERS, direction="noising", draws=2
    )
    swapped = ep.attribution_patching(engram, tokenizer, CORRUPTED, CLEAN, *ANSWERS[::-1], draws=2)
    np.testing.assert_allclose(noising.exact, -swapped.exact, atol=1e-4)
    np.testing.assert_allclose(noising.estimate, -swapped.estimate, atol=1e-4)
    assert noising.gap == pytest.approx(-result.gap, abs=1e-5)


def test_answers_that_begin_alike_are_read_up_to_where_they_part(engram, tokenizer):
    found = ep.attribution_patching(
        engram, tokenizer, CLEAN, CORRUPTED, " boats at", " boats wheel", steps=1, draws=2
    )
    assert found.clean[-1] == "·boats" and found.target != found.against
    assert found.positions[-1] == len(tokenizer(CLEAN + " boats")["input_ids"])


def test_several_pairs(engram, tokenizer, several):
    wrong = replace(several[0], target=several[0].against, against=several[0].target)
    asked = [*several, wrong]
    found = ep.attribution_patching(engram, tokenizer, asked, steps=2)
    assert (found.tried, found.places) == (len(asked), ROLES)
    assert 2 < found.pairs < found.tried
    assert (found.metric[:, 0] > 0).all() and (found.metric[:, 1] < 0).all()
    low, high = found.interval()
    known = np.isfinite(found.mean())
    assert (low[known] <= found.mean()[known] + 1e-9).all()
    assert (found.mean()[known] <= high[known] + 1e-9).all()
    assert found.clean == () and (found.positions == -1).all()
    pair = found.null_pairs[-1]
    assert 1 < len(set(found.null_pairs.tolist())) == len(found.null_exact)
    only = replace(
        found,
        null_exact=found.null_exact[-1:],
        null_estimate=found.null_estimate[-1:],
        null_pairs=found.null_pairs[-1:],
    )
    beyond = found.exact[pair] - found.null_exact[-1]
    np.testing.assert_allclose(only.beyond_null()[0], beyond, atol=1e-12)


def test_a_check_measures_the_largest_and_some_at_random(engram, tokenizer, result):
    found = ep.attribution_patching(engram, tokenizer, CLEAN, CORRUPTED, *ANSWERS, check=5, draws=2)
    assert [(found.chosen == why).sum() for why in (1, 2, 3)] == [5, 5, 0]
    measured = found.chosen > 0
    np.testing.assert_allclose(found.exact[0][measured], result.exact[0][measured], atol=1e-5)
    assert np.isnan(found.exact[0][~measured]).all() and found.best == "estimate"
    smallest = np.abs(found.estimate[0][found.chosen == 1]).min()
    assert smallest >= np.abs(found.estimate[0][found.chosen != 1]).max()
    assert found.agreement()["cells"] <= 5


def test_agreement_is_of_the_arrays(result):
    """Planted: exact twice the estimate, and one cell off by five."""
    estimate = np.arange(result.estimate.size, dtype=float).reshape(result.estimate.shape) / 100
    exact = 2 * estimate
    same = replace(result, estimate=estimate, exact=exact.copy()).agreement()
    assert same["correlation"] == pytest.approx(1) and same["slope"] == pytest.approx(2)
    exact[0, 3, 1] = estimate[0, 3, 1] + 5
    found = replace(result, estimate=estimate, exact=exact).agreement()
    assert found["largest_error"] == pytest.approx(5)
    assert found["where"] == f"{result.nodes[3]} at {result.places[1]}"


def test_shares_and_the_strongest_are_of_nodes_that_do_not_nest(result):
    exact = np.zeros(result.exact.shape)
    exact[0, result.nodes.index("0_engram_rows")] = 100
    exact[0, result.nodes.index("0_engram_out"), 2] = 3
    exact[0, result.nodes.index("1_attn_out"), 1] = -1
    found = replace(result, exact=exact)
    assert found.shares() == {"embed": 0, "attention": 0.25, "mlp": 0, "memory": 0.75}
    assert found.strongest(1) == [(result.nodes.index("0_engram_out"), 2)]


@pytest.mark.parametrize("view", ["heatmap", "bars", "check"])
def test_figures(result, view):
    figure = result.figure(view)
    assert figure.layout.meta["alt"] and "logits" in figure.layout.title.text
    if view == "heatmap":
        (trace,) = figure.data
        shown = [i for i, kind in enumerate(result.kinds) if kind != "row"]
        np.testing.assert_allclose(trace.z, result.mean()[shown], rtol=1e-5)
        assert list(figure.layout.yaxis.ticktext) == [result.nodes[i] for i in shown]
        assert len(result.figure(rows=True).data[0].z) == len(result.nodes)
    elif view == "bars":
        longest = max(abs(x) for trace in figure.data for x in trace.x if trace.type == "bar")
        node, place = result.strongest(1)[0]
        assert longest == pytest.approx(abs(result.mean()[node, place]), rel=1e-5)
    else:
        points = sum(len(trace.x) for trace in figure.data[:-1])
        assert points == result.exact.size


def test_the_models_mode_and_weights_are_left_alone(engram, tokenizer):
    from engram_probes.provenance import weights_sha256

    before = weights_sha256(engram)
    engram.train()
    try:
        ep.attribution_patching(engram, tokenizer, CLEAN, CORRUPTED, *ANSWERS, draws=2, check=2)
        assert engram.training
    finally:
        engram.eval()
    assert weights_sha256(engram) == before
    assert all(weight.grad is None for weight in engram.parameters())


WRONG = {
    "another length": ((CLEAN, "The miller", *ANSWERS), {}, "of one length"),
    "same text": ((CLEAN, CLEAN, *ANSWERS), {}, "the same text"),
    "same answers": ((CLEAN, CORRUPTED, " boats", " boats"), {}, "do not part"),
    "no answer": ((CLEAN, CORRUPTED, "", " boats"), {}, "an answer is empty"),
    "one text": ((CLEAN,), {}, "give two texts"),
    "a dict": (({"clean": CLEAN},), {}, "give a list of records"),
    "direction": ((CLEAN, CORRUPTED), {"direction": "up"}, "denoising and noising"),
    "steps": ((CLEAN, CORRUPTED), {"steps": 0}, "steps=0: give 1 or more"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_use(engram, tokenizer, wrong):
    args, options, message = WRONG[wrong]
    with pytest.raises(UsageError, match=message):
        ep.attribution_patching(engram, tokenizer, *args, **options)


def test_wrong_pairs(engram, tokenizer, several, result):
    with pytest.raises(CorpusError, match="there are no pairs"):
        ep.attribution_patching(engram, tokenizer, [])
    with pytest.raises(CorpusError, match="record 0 is no pair"):
        ep.attribution_patching(engram, tokenizer, [{"clean": "a"}])
    unknown = [Pair(p.clean, p.corrupted, p.against, p.target) for p in several[:2]]
    with pytest.raises(UsageError, match="of none of the 2 pairs"):
        ep.attribution_patching(engram, tokenizer, unknown)
    with pytest.raises(UsageError, match="no view"):
        result.figure("pie")
    with pytest.raises(UsageError, match="no values"):
        result.mean("guess")


def test_pairs_of_a_world(tokenizer):
    """Same question, two people of one tier with names of one length; nobody twice."""
    world = parse_spec("world:?people=120&phrases=40").world()
    pairs = world_pairs(world, tokenizer, 12, seed=1)
    people = {person.name: person for person in world.people}
    seen: list[str] = []
    for pair in pairs:
        one, other = (next(n for n in people if n in t) for t in (pair.clean, pair.corrupted))
        assert pair.corrupted == pair.clean.replace(one, other)
        assert people[one].tier == people[other].tier > 0
        assert pair.target.strip() in people[one].facts.values()
        assert pair.against.strip() in people[other].facts.values()
        lengths = {len(tokenizer(text)["input_ids"]) for text in (pair.clean, pair.corrupted)}
        assert len(lengths) == 1 and pair.target != pair.against
        seen += [one, other]
    assert len(pairs) == 12 and len(set(seen)) == 24
    assert pairs == world_pairs(world, tokenizer, 12, seed=1)
    assert pairs != world_pairs(world, tokenizer, 12, seed=2)


def test_pairs_of_a_file(tmp_path):
    pair = Pair(CLEAN, CORRUPTED, *ANSWERS)
    line = json.dumps(pair.__dict__)
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{line}\n\n{line}\n")
    assert read_pairs(str(path)) == [pair, pair]
    for text, message in (("", "is empty"), ("x\n", "line 1: not JSON"), ("[]", "is no pair")):
        path.write_text(text)
        with pytest.raises(CorpusError, match=message):
            read_pairs(str(path))
