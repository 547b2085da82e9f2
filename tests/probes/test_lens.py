"""The lens against a plain float64 computation with everything in memory."""

import numpy as np
import pytest
import torch

import engram_probes as ep
from engram_model.errors import CorpusError, EngramError, UsageError
from engram_probes.lens import METRICS
from engram_probes.lens_measure import settling_depth


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
            out["entropy"][d, t] = -np.sum(q[d, t] * np.log(q[d, t]))
            out["topk_overlap"][d, t] = len(set(top[d, t]) & set(top[-1, t])) / topk
            out["top1_agreement"][d, t] = top[d, t, 0] == top[-1, t, 0]
            out["settled"][d, t] = all(
                top[later, t, 0] == top[-1, t, 0] for later in range(d, depths)
            )
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
    assert settling_depth(top1).tolist() == [0, 1, 2, 3]


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
