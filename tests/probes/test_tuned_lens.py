"""The tuned lens: planted maps are found, what is saved belongs to one model, numbers are the
model's own."""

import numpy as np
import pytest
import torch
from torch import nn

import engram_probes as ep
from engram_model.errors import CheckpointError, CorpusError, EngramError, UsageError
from engram_probes.capture import Subject
from engram_probes.provenance import provenance
from engram_probes.text import encode
from engram_probes.tuned_lens_run import Corpus, Document, Options, Trainer

WORDS = "harbour master Varnholm boats dusk wheel miller Ostrava bridge Lune nothing lost"
OPTIONS = Options(2000, 1024, 150, 1e-3, None, 0)


def many(number: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS.split(), 12)) + f" {i}." for i in range(number)]


@pytest.fixture(scope="module")
def tuned(engram, tokenizer):
    return ep.tune_lens(engram, tokenizer, many(80), tokens=2000, held_out_tokens=150)


class Affine(nn.Module):
    """A block that only maps the residual, and leaves the norm's scale to what comes after."""

    def __init__(self, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        square = torch.randn(width, width, generator=generator)
        self.turn = nn.Parameter(torch.linalg.qr(square).Q)
        self.shift = nn.Parameter(0.3 * torch.randn(width, generator=generator))

    def forward(self, hidden, *_args, **_kwargs):
        return hidden @ self.turn.T + self.shift


def test_a_planted_rotation_is_found(make_model, tokenizer):
    """The last block only turns and shifts the residual: at the depth before it the plain lens is
    lost, the tuned one is the model."""
    model = make_model(streams=1, memory_layers=(0,))
    model.model.layers[2] = Affine(model.config.hidden_size)
    lens = ep.tune_lens(
        model, tokenizer, many(400), tokens=8000, batch_tokens=64, held_out_tokens=200, lr=3e-2
    )
    plain, tuned = (lens.curve(name)[0] for name in ("plain", "tuned"))
    assert plain[2] > 0.5 and tuned[2] < 0.05 * plain[2]
    assert plain[0] > tuned[0] > tuned[2]  # two blocks that are not affine are still to come
    # The norm after it divides by the size: weight is the rotation but for a common factor.
    turn, found = model.model.layers[2].turn.detach().numpy(), np.eye(32) + lens.weight[2]
    cosine = (turn * found).sum() / np.linalg.norm(turn) / np.linalg.norm(found)
    assert cosine > 0.8  # of the identity: next to 0


def test_left_out_numbers_are_those_of_the_lens(engram, tokenizer, tuned):
    corpus = Corpus(
        Subject.of(engram), tokenizer, many(80), Options(2000, 1024, 150, 1e-3, None, 0)
    )
    trained = set()
    for one in corpus:
        trained.add(tuple(one.ids))
        if corpus.documents.read == 80:
            break
    left_out = corpus.left_out
    assert len(left_out) == tuned.held_out >= 2
    assert not trained & {tuple(encode(tokenizer, text)) for text in left_out}
    plain = ep.logit_lens(engram, tokenizer, left_out)
    lens = ep.logit_lens(engram, tokenizer, left_out, translators=tuned)
    for which, found in (("plain", plain), ("tuned", lens)):
        for i in range(3):
            np.testing.assert_allclose(tuned.curve(which)[i], found.curve("kl")[i], atol=1e-5)
        cross_entropy = -found.curve("log_prob")[0]
        np.testing.assert_allclose(tuned.curve(which, "cross_entropy")[0], cross_entropy, atol=1e-5)
    assert (tuned.mean[1, 0, :-1] < tuned.mean[0, 0, :-1]).all()
    assert plain.positions == tuned.held_out_tokens


def test_the_last_depth_is_the_model(engram, tokenizer, texts, tuned, lens):
    found = ep.logit_lens(engram, tokenizer, texts, translators=tuned)
    assert found.max_difference < 1e-5
    np.testing.assert_allclose(found.mean[:, -1], lens.mean[:, -1], atol=1e-6)
    assert np.abs(found.mean[0, :-1] - lens.mean[0, :-1]).min() > 1e-3


def test_it_is_marked_as_tuned(engram, tokenizer, texts, tuned, lens, tmp_path):
    found = ep.logit_lens(engram, tokenizer, texts, by="position", translators=tuned)
    assert (found.lens, lens.lens) == ("tuned", "plain")
    assert found.translators == tuned.sha256 == found.provenance.settings["translators"]
    assert found.summary().startswith("Under the tuned lens the top token")
    for view in ("curve", "strata"):
        assert "(tuned lens)" in found.figure("kl", view).layout.title.text
    assert "tuned" not in lens.figure("kl").layout.title.text
    assert ep.load_result(found.save(tmp_path)).translators == tuned.sha256
    one = ep.logit_lens(engram, tokenizer, texts[0], translators=tuned)
    assert "(tuned lens)" in one.figure("kl").layout.title.text


def test_differences_say_which_lens(engram, tokenizer, texts, tuned, lens):
    from engram_probes.figures.lens import curve_figure

    found = ep.logit_lens(engram, tokenizer, texts, translators=tuned)
    gain = found.minus(lens)
    assert gain.model.endswith(", tuned") and gain.other.endswith(", plain") and not gain.tuned
    drawn = [t for t in curve_figure([lens, found], "kl").data if t.mode == "lines+markers"]
    assert [line.line.dash for line in drawn] == ["dash", "solid"]
    assert [line.name.split(", ")[1] for line in drawn] == ["plain", "tuned"]
    assert drawn[0].line.color == drawn[1].line.color
    both = found.minus(found)
    assert both.tuned and both.translators == (tuned.sha256, tuned.sha256)
    assert both.summary().startswith("Under the tuned lens")
    assert "(tuned lens)" in both.figure("kl").layout.title.text


def one_stream(kind, make_model, tokenizer):
    """A model that TransformerLens has a lens for."""
    if kind == "engram":
        return make_model(streams=1)
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=64, **sizes)
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, **sizes
    )
    return LlamaForCausalLM(config).eval()


def by_hand(model, tokenizer) -> ep.TunedLens:
    """Random translators for a model of 3 blocks of width 32."""
    draw, nothing = np.random.default_rng(1), np.zeros((2, 2, 4))
    return ep.TunedLens(
        provenance=provenance([model], tokenizer, {}, {}, 0),
        model="by hand",
        memory_layers=(),
        tokens=0,
        held_out=0,
        held_out_tokens=0,
        weight=(0.1 * draw.standard_normal((3, 32, 32))).astype(np.float16),
        bias=(0.1 * draw.standard_normal((3, 32))).astype(np.float32),
        mean=nothing,
        low=nothing.copy(),
        high=nothing.copy(),
    )


@pytest.mark.parametrize("kind", ["engram", "gpt2", "llama"])
def test_transformer_lens_looks_through_it(kind, make_model, tokenizer, ids):
    """Its logit lens with our translators gives our predictions, and our gradients."""
    from transformer_lens.tools.analysis import logit_lens

    import engram_model as em

    model = one_stream(kind, make_model, tokenizer)
    tuned, row = by_hand(model, tokenizer), ids[0].tolist()
    text = tokenizer.decode(row[1:])
    mine = ep.logit_lens(model, tokenizer, text, translators=tuned)
    assert mine.token_ids.tolist() == row
    subject = Subject.of(model)
    trainer = Trainer(subject, Options(10**9, 1, 1, 1e-3, 5, 0))
    trainer.translators = module = tuned.module()
    trainer.step([Document(row, np.arange(1, len(row)))])  # its size is next to nothing
    ours = [parameter.grad.clone() for parameter in module.parameters()]

    module = tuned.module()
    bridge = em.hooked(model, tokenizer)
    options = dict(positions=None, return_type="log_probs", enable_grad=True)
    log = logit_lens(bridge, torch.tensor([row]), lens=module, **options).values[:, 0]
    kl = (log[-1].exp() * (log[-1] - log)).sum(-1)
    np.testing.assert_allclose(mine.grid("kl"), kl.detach(), atol=1e-4)
    np.testing.assert_array_equal(mine.top1_ids, log.argmax(-1))
    theirs = torch.autograd.grad(kl[:, 1:].mean(1).sum(), list(module.parameters()))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-6)


def test_training_leaves_the_model_alone(engram, tokenizer):
    before = {name: tensor.clone() for name, tensor in engram.state_dict().items()}
    ep.tune_lens(engram, tokenizer, many(80), tokens=300, held_out_tokens=20)
    assert all(parameter.grad is None for parameter in engram.parameters())
    assert all(torch.equal(before[name], t) for name, t in engram.state_dict().items())


def test_one_forward_pass_a_batch(engram, tokenizer):
    passes, steps = [], []
    subject = Subject.of(engram)
    hook = engram.register_forward_hook(lambda *_: passes.append(1))
    trainer = Trainer(subject, Options(1000, 1, 1, 1e-3, 7, 0))
    trainer._backward = lambda *_: steps.append(1)
    trainer.step([Document([1, 5, 6, 7] * 5, np.arange(1, 20))])
    hook.remove()
    assert (len(passes), len(steps), trainer.tokens) == (1, 3, 19)


def test_chunks_and_seeds(engram, tokenizer):
    def tune(**options):
        return ep.tune_lens(engram, tokenizer, many(80), tokens=600, held_out_tokens=50, **options)

    first = tune()
    assert tune().sha256 == first.sha256
    chunked = tune(chunk_tokens=9)
    np.testing.assert_allclose(chunked.bias, first.bias, atol=2e-4)
    assert tune(seed=1).provenance.seed == 1 and tune(seed=1).sha256 != first.sha256


def test_a_short_corpus_is_read_again(engram, tokenizer):
    seen = []
    lens = ep.tune_lens(
        engram, tokenizer, many(40), tokens=5000, held_out_tokens=50,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert lens.tokens >= 5000 and lens.provenance.corpus["documents"] == 40
    assert seen[-1] == (5000, 5000) and seen == sorted(seen)
    once = ep.tune_lens(engram, tokenizer, iter(many(40)), tokens=5000, held_out_tokens=50)
    assert once.tokens < 5000  # an iterator cannot be read again


def test_saved_beside_a_checkpoint(engram, tokenizer, tuned, tmp_path):
    folder = tuned.save(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["tuned_lens.json", "tuned_lens.safetensors"]
    opened = ep.TunedLens.load(folder)
    assert opened.sha256 == tuned.sha256 and opened.belongs_to(engram)
    assert opened.to_frame().equals(tuned.to_frame()) and len(opened.to_frame()) == 2 * 2 * 4
    assert opened.provenance == tuned.provenance and opened.tokens >= 2000
    for index, what in enumerate(("kl", "cross_entropy")):
        figure = opened.figure(what)
        lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
        drawn = np.array([line.y for line in lines])
        np.testing.assert_allclose(drawn, opened.mean[:, index], rtol=1e-5)
        assert [line.line.dash for line in lines] == ["dash", "solid"]
        assert "documents left out" in figure.layout.meta["alt"]
    assert "<script" not in opened._repr_html_() and len(repr(opened)) < 200


def test_a_foreign_or_damaged_file_is_refused(make_model, tokenizer, texts, tuned, lens, tmp_path):
    with pytest.raises(UsageError, match="that of other weights"):
        ep.logit_lens(make_model(seed=7), tokenizer, texts, translators=tuned)
    with pytest.raises(CheckpointError, match=r"no tuned lens in .*engram tune-lens"):
        ep.TunedLens.load(tmp_path)
    folder = tuned.save(tmp_path / "a")
    arrays = folder / "tuned_lens.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-4] + b"abcd")
    with pytest.raises(CheckpointError, match="damaged: its checksum is not the one in tuned_lens"):
        ep.TunedLens.load(folder)
    (folder / "tuned_lens.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ep.TunedLens.load(folder)
    saved = lens.save(tmp_path / "b")
    (saved / "arrays.safetensors").rename(saved / "tuned_lens.safetensors")
    (saved / "result.json").rename(saved / "tuned_lens.json")
    with pytest.raises(CheckpointError, match="holds a 'lens', no tuned lens"):
        ep.TunedLens.load(saved)


def test_wrong_use(engram, tokenizer, tuned):
    with pytest.raises(CorpusError, match="too little text to tune a lens"):
        ep.tune_lens(engram, tokenizer, many(5))
    with pytest.raises(CorpusError, match="0 documents left out"):
        ep.tune_lens(engram, tokenizer, [many(1)[0]] * 200, tokens=100)
    with pytest.raises(UsageError, match="on many texts"):
        ep.tune_lens(engram, tokenizer, "One text.")
    with pytest.raises(UsageError, match="more than 0"):
        ep.tune_lens(engram, tokenizer, many(80), lr=0)
    with pytest.raises(EngramError, match="diverged; use a smaller learning rate"):
        ep.tune_lens(engram, tokenizer, many(80), tokens=500, lr=1e30)
    with pytest.raises(UsageError, match="use kl or cross_entropy"):
        tuned.figure("rank")
