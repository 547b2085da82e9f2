"""The lens against a plain float64 computation with everything in memory."""

import numpy as np
import pytest
import torch

import engram_probes as ep
from engram_model.errors import CorpusError, EngramError, UsageError
from engram_probes.lens import METRICS
from engram_probes.lens_difference import depth_shift
from engram_probes.lens_measure import from_here_on, settling_depth
from engram_probes.strata import Strata
from engram_probes.suppression import suppressed


def plain(model, ids: list[int], topk: int = 5) -> dict[str, np.ndarray]:
    """Every metric of one text, [D, p], from logits [D, p, vocabulary] in float64."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out: seen.append(out))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        final = model(torch.tensor([ids])).logits[0].double()
        streams = [model.model.expand(model.model.embed_tokens(torch.tensor([ids]))), *seen]
        logits = torch.stack(
            [model.lm_head(model.model.norm(model.model.collapse(x)))[0] for x in streams]
        ).double()
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(logits[-1], final, atol=1e-5)
    q, p = logits.softmax(-1).numpy(), final.softmax(-1).numpy()
    depths, positions, _ = q.shape
    out = {name: np.full((depths, positions), np.nan) for name in METRICS}
    top = np.argsort(-q, axis=-1)[..., :topk]
    for d in range(depths):
        for t in range(positions):
            out["kl"][d, t] = np.sum(p[t] * np.log(p[t] / q[d, t]))
            out["kl_reverse"][d, t] = np.sum(q[d, t] * np.log(q[d, t] / p[t]))
            half = (p[t] + q[d, t]) / 2
            out["js"][d, t] = 0.5 * sum(np.sum(r * np.log(r / half)) for r in (p[t], q[d, t]))
            out["entropy"][d, t] = -np.sum(q[d, t] * np.log(q[d, t]))
            out["final_rank"][d, t] = 1 + np.sum(q[d, t] > q[d, t, top[-1, t, 0]])
            out["topk_overlap"][d, t] = len(set(top[d, t]) & set(top[-1, t])) / topk
            out["top1_agreement"][d, t] = top[d, t, 0] == top[-1, t, 0]
            out["settled"][d, t] = all(
                top[later, t, 0] == top[-1, t, 0] for later in range(d, depths)
            )
            one = top[-1, t, 0]
            out["settled_top3"][d, t] = all(one in top[later, t, :3] for later in range(d, depths))
            out["settled_half"][d, t] = all(q[later, t, one] > 0.5 for later in range(d, depths))
            if t + 1 < positions:
                true = q[d, t, ids[t + 1]]
                out["rank"][d, t] = 1 + np.sum(q[d, t] > true)
                out["log_rank"][d, t] = np.log(out["rank"][d, t])
                out["log_prob"][d, t] = np.log(true)
    return out


@pytest.mark.parametrize("streams", [1, 4])
def test_equals_the_plain_computation(make_model, tokenizer, texts, streams):
    model = make_model(streams=streams)
    lens = ep.logit_lens(model, tokenizer, texts[1])
    expected = plain(model, lens.token_ids.tolist())
    for index, name in enumerate(lens.metrics):
        np.testing.assert_allclose(
            lens.token_values[index], expected[name], rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_means_are_over_ordinary_tokens(lens, engram, tokenizer, texts):
    ids = [[tokenizer.bos_token_id, *tokenizer(t, add_special_tokens=False)["input_ids"]]
           for t in texts]  # fmt: skip
    alone = [plain(engram, row) for row in ids]
    for name in ("kl", "log_rank"):
        values = np.concatenate([one[name][:, 1:] for one in alone], axis=1)
        mean, low, high = lens.curve(name)
        np.testing.assert_allclose(mean, np.nanmean(values, axis=1), rtol=1e-4, atol=1e-5)
        assert (low <= mean).all() and (mean <= high).all() and (low < high)[:-1].all()
    assert lens.positions == sum(len(row) - 1 for row in ids)


def test_last_depth_is_the_model(lens):
    assert lens.max_difference < 1e-5
    assert np.abs(lens.curve("kl")[0][-1]) < 1e-6
    assert lens.curve("top1_agreement")[0][-1] == lens.curve("settled")[0][-1] == 1
    assert lens.curve("kl")[0][0] > 0.1


def test_chunks_change_nothing(engram, tokenizer, texts, lens):
    chunked = ep.logit_lens(engram, tokenizer, texts, chunk_tokens=7)
    np.testing.assert_allclose(chunked.document_sums, lens.document_sums, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(chunked.document_counts, lens.document_counts)


def test_settling_depth_of_planted_tokens():
    top1 = torch.tensor([[7, 1, 7, 7], [7, 7, 2, 7], [7, 7, 7, 3], [7, 7, 7, 7]])
    settled = from_here_on((top1 == top1[-1])[None])[0]
    assert settling_depth(settled).tolist() == [0, 1, 2, 3]


def test_mean_settling_depth_is_that_of_the_tokens(text_lens):
    usual = ~text_lens.special
    expected = text_lens.settling_depth[usual].mean()
    assert text_lens.mean_settling_depth == pytest.approx(expected)


def test_a_head_that_does_more_is_refused(make_model, tokenizer, texts):
    """A lens that is not the model's own would be wrong without a sign."""
    model = make_model()
    model.lm_head.register_forward_hook(
        lambda _m, args, out: out if args[0].shape[1:2] != (1,) else out + 1
    )
    with pytest.raises(EngramError, match="at the last depth its logits differ"):
        ep.logit_lens(model, tokenizer, texts[:3])


def test_max_tokens_stops_after_a_document(engram, tokenizer, texts, lens):
    short = ep.logit_lens(engram, tokenizer, texts, max_tokens=50)
    assert 1 < short.documents < lens.documents
    np.testing.assert_allclose(
        short.document_sums, lens.document_sums[: short.documents], rtol=1e-4, atol=1e-4
    )


def test_long_documents_are_cut_and_counted(engram, tokenizer, texts):
    context = engram.config.max_position_embeddings
    lens = ep.logit_lens(engram, tokenizer, [texts[0], "The harbour master. " * 100])
    assert lens.cut == 1
    assert lens.document_counts[1, 0] == context - 1
    with pytest.raises(UsageError, match=f"reads {context}"):
        ep.logit_lens(engram, tokenizer, "The harbour master. " * 100)


def test_difference_is_paired(lens, twin_lens):
    result = lens.minus(twin_lens)
    np.testing.assert_allclose(result.difference, lens.mean - twin_lens.mean)
    assert (result.low <= result.difference).all() and (result.difference <= result.high).all()
    estimate = lens.mean_settling_depth - twin_lens.mean_settling_depth
    assert result.settling[0] == pytest.approx(estimate)
    itself = lens.minus(lens)
    assert (itself.low == 0).all() and (itself.high == 0).all()  # unpaired it would not be


def test_difference_needs_the_same_texts_and_depth(make_model, tokenizer, texts, lens):
    other = ep.logit_lens(make_model(), tokenizer, texts[::-1])
    with pytest.raises(UsageError, match="same texts"):
        lens.minus(other)
    deeper = ep.logit_lens(make_model(layers=4), tokenizer, texts)
    with pytest.raises(UsageError, match=r"3 blocks and .* 4"):
        lens.minus(deeper)


def test_other_causal_models_have_a_lens(tokenizer, texts):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    lens = ep.logit_lens(model, tokenizer, texts[:4])
    assert lens.depths == 3 and lens.memory_layers == ()
    assert lens.max_difference < 1e-5


def test_errors(engram, tokenizer, texts, lens, text_lens):
    with pytest.raises(CorpusError, match="empty"):
        ep.logit_lens(engram, tokenizer, [])
    with pytest.raises(UsageError, match="topk 0"):
        ep.logit_lens(engram, tokenizer, texts, topk=0)
    with pytest.raises(UsageError, match="kept for one text only"):
        lens.grid("kl")
    for what, view in [("gate", None), ("gate", "grid")]:
        with pytest.raises(UsageError, match="no lens metric"):
            text_lens.figure(what, view)
    for what, view in [("kl", "pie"), ("top1_prob", "curve")]:
        with pytest.raises(UsageError, match="no view"):
            text_lens.figure(what, view)


@pytest.mark.parametrize("by", ["mechanism", "frequency", "position"])
def test_strata_are_means_over_their_tokens(engram, tokenizer, by):
    import engram_model as em

    corpus = em.load_corpus("world:?seed=0&split=valid&tokens=600&families=bio,phrase")
    lens = ep.logit_lens(engram, tokenizer, corpus, by=by)
    sums, counts = np.zeros(lens.depths), 0
    stratum = {"mechanism": "fact", "frequency": "band 3 of 6", "position": "16 to 63"}[by]
    for document in corpus:
        ids = tokenizer(document["text"], add_special_tokens=False)["input_ids"]
        ids = [tokenizer.bos_token_id, *ids][: engram.config.max_position_embeddings]
        values = plain(engram, ids)["kl"][:, 1:]
        places = Strata.named(by).of(document, tokenizer, ids)[1:]
        chosen = places == lens.strata.index(stratum)
        sums, counts = sums + values[:, chosen].sum(1), counts + int(chosen.sum())
        if by == "position":  # place i of `places` is position i + 1
            assert chosen[15:62].all() and not chosen[:14].any() and not chosen[63:].any()
    [found] = [curve for curve in lens.stratum_curves("kl") if curve[0] == stratum]
    assert found[1] == counts > 20
    np.testing.assert_allclose(found[2], sums / counts, rtol=1e-4, atol=1e-5)
    assert (found[3] <= found[2]).all() and (found[2] <= found[4]).all()
    assert "by " + by in lens.figure("kl", "strata").layout.title.text
    assert set(lens.strata_frame()["stratum"]) == set(lens.strata)


def test_a_position_belongs_to_what_is_predicted_there(tokenizer):
    text = "Anna Kordel sings."
    spans = [{"start": 5, "end": 11, "kind": "name", "mechanism": "ngram"}]
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    strata = Strata.named("mechanism")
    places = strata.of({"text": text, "spans": spans}, tokenizer, ids)
    named = [tokenizer.decode(ids[i + 1]) for i in np.flatnonzero(places == 4)]
    assert "".join(named).strip() == "Kordel" and places[-1] == -1


def test_strata_refused(engram, tokenizer, texts):
    with pytest.raises(UsageError, match="use one of mechanism, position, frequency"):
        ep.logit_lens(engram, tokenizer, texts, by="day")
    with pytest.raises(CorpusError, match="no column 'spans'"):
        ep.logit_lens(engram, tokenizer, texts, by="mechanism")
    with pytest.raises(UsageError, match="not taken by strata"):
        ep.logit_lens(engram, tokenizer, texts[:2]).figure("kl", "strata")


def test_depth_shift_reads_the_other_curve():
    other = np.array([10.0, 6.0, 4.0, 2.0, 0.0])
    kl = np.array([11.0, 5.0, 2.0, 2.0, 0.0])
    np.testing.assert_allclose(depth_shift(kl, other), [np.nan, 0.5, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(depth_shift(other, other), np.zeros(5))


def test_three_definitions_of_settling(lens):
    depths = [lens.settling(name) for name in ("settled", "settled_top3", "settled_half")]
    assert depths[1] <= depths[0] == lens.mean_settling_depth
    with pytest.raises(UsageError, match="settled_half"):
        lens.settling("never")


def test_a_share_of_the_positions(make_model, tokenizer, texts):
    """The positions that are read have the values they have in a whole reading."""
    model, documents = make_model(), [*texts] * 3
    whole = ep.logit_lens(model, tokenizer, documents)
    some = ep.logit_lens(model, tokenizer, documents, share=0.5, seed=1)
    assert 0.3 < some.positions / whole.positions < 0.7
    assert (some.document_counts <= whole.document_counts).all()
    kl = some.metrics.index("kl")  # sums of what is never negative
    assert (some.document_sums[:, kl] <= whole.document_sums[:, kl] + 1e-6).all()
    assert np.allclose(some.mean[kl], whole.mean[kl], rtol=0.25, atol=1e-6)
    other = ep.logit_lens(make_model(seed=5), tokenizer, documents, share=0.5, seed=1)
    assert np.array_equal(some.document_counts, other.document_counts)
    assert some.minus(other).tokens == some.positions
    again = ep.logit_lens(model, tokenizer, documents, share=0.5, seed=2)
    assert not np.array_equal(some.document_counts, again.document_counts)


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_wrong_shares(make_model, tokenizer, texts, share):
    with pytest.raises(UsageError, match="use more than 0, and 1 at most"):
        ep.logit_lens(make_model(), tokenizer, [*texts], share=share)
    with pytest.raises(UsageError, match="of a single text all"):
        ep.logit_lens(make_model(), tokenizer, texts[0], share=0.5)


def test_without_memory_is_the_model_with_its_memory_zeroed(engram, tokenizer, text_lens_off):
    ids = text_lens_off.token_ids.tolist()
    with suppressed(engram):
        expected = plain(engram, ids)
    for index, name in enumerate(text_lens_off.metrics):
        np.testing.assert_allclose(
            text_lens_off.token_values[index], expected[name], rtol=1e-4, atol=1e-4, err_msg=name
        )
    assert not np.allclose(expected["entropy"], plain(engram, ids)["entropy"], atol=1e-3)


def test_without_memory_leaves_the_model_as_it_was(engram, tokenizer, texts, text_lens):
    ep.logit_lens(engram, tokenizer, texts[1], without_memory=True)
    again = ep.logit_lens(engram, tokenizer, texts[1])
    np.testing.assert_array_equal(again.token_values, text_lens.token_values)


def test_without_memory_needs_one(twin, tokenizer, texts):
    with pytest.raises(UsageError, match="memory"):
        ep.logit_lens(twin, tokenizer, texts[1], without_memory=True)


def test_a_difference_says_which_had_its_memory_off(text_lens, text_lens_off):
    result = text_lens.minus(text_lens_off)
    assert result.other == f"{text_lens.model}, memory off" and result.model == text_lens.model
    np.testing.assert_array_equal(result.grids("kl")[1], text_lens_off.grid("kl"))
    usual = ~text_lens.special
    ends = [np.array(one.top1_texts[-1])[usual] for one in (text_lens, text_lens_off)]
    changed = int((ends[0] != ends[1]).sum())
    assert changed and f"another at {changed} of {usual.sum()} tokens" in result.summary()
    np.testing.assert_array_equal(result.grids("top1_prob")[0], text_lens.top1_prob)
    frame = result.token_frame()
    assert len(frame) == text_lens.top1_prob.size
    np.testing.assert_array_equal(frame.rank_other, text_lens_off.grid("rank").ravel())
    assert text_lens_off.provenance.settings["without_memory"] is True


def test_a_difference_over_a_corpus_has_no_grids(lens, twin_lens):
    for ask in (lambda r: r.grids(), lambda r: r.figure("kl", "grid"), lambda r: r.token_frame()):
        with pytest.raises(UsageError, match="one text only"):
            ask(lens.minus(twin_lens))
    with pytest.raises(UsageError, match="no view"):
        lens.minus(twin_lens).figure("kl", "bars")


def test_likeliest_tokens_of_a_cell(engram, tokenizer, text_lens):
    ids = torch.tensor([text_lens.token_ids.tolist()])
    with torch.no_grad():
        final = engram(ids).logits[0].double().softmax(-1)
    expected = final[4].topk(5)
    cell = text_lens.cell_frame(text_lens.depths - 1, 4)
    np.testing.assert_allclose(cell.prob_final, expected.values, rtol=1e-4)
    np.testing.assert_array_equal(text_lens.topk_ids[-1, 4], expected.indices)
    assert cell.prob_here.equals(cell.prob_final.rename("prob_here"))
    assert cell.token.tolist() == list(text_lens.topk_texts[-1][4])
    early = text_lens.cell_frame(1, 4)
    assert early.place_here.dropna().tolist() == [1, 2, 3, 4, 5]
    assert sorted(early.place_final.dropna()) == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(text_lens.topk_ids[..., 0], text_lens.top1_ids)
    np.testing.assert_allclose(text_lens.topk_prob[..., 0], text_lens.top1_prob, rtol=1e-5)


def test_cells_that_are_none(lens, text_lens):
    with pytest.raises(UsageError, match="use 0 to 3"):
        text_lens.cell_frame(4, 0)
    with pytest.raises(UsageError, match="one text only"):
        lens.cell_frame(0, 0)


def test_progress_of_a_single_text_counts_its_tokens(engram, tokenizer, texts, text_lens):
    seen = []
    lens = ep.logit_lens(
        engram, tokenizer, texts[1], chunk_tokens=7, progress=lambda *one: seen.append(one)
    )
    count = len(text_lens.tokens)
    assert seen == [(min(done, count), count) for done in range(7, count + 7, 7)]
    assert lens.topk_texts == text_lens.topk_texts and lens.top1_texts == text_lens.top1_texts
