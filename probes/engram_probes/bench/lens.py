"""The logit lens against the bare products that it needs, and against TransformerLens's."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from engram_model.bench.measure import Machine, Row
from engram_probes.capture import Residuals, Subject
from engram_probes.lens import METRICS
from engram_probes.lens_measure import TokenValues, chunk_size, measure

WIDTH, VOCABULARY, DEPTHS, TOPK = 512, 50_000, 13, 5


def llama(layers: int, width: int, vocabulary: int, machine: Machine, dtype) -> torch.nn.Module:
    """A Llama of random weights; one stream, which TransformerLens's lens needs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=8192,
    )
    return LlamaForCausalLM(config).to(machine.device, dtype).eval()


def lens(machine: Machine) -> Iterator[Row]:
    """All metrics of all depths against the products with the unembedding alone.

    On a GPU in float32 and in bfloat16, where the products are so fast that reading their results
    takes as long.
    """
    on_gpu = machine.device == "cuda"
    width, vocabulary = (64, 2000) if machine.quick else (WIDTH, VOCABULARY)
    tokens = 16_384 if on_gpu else 24 if machine.quick else 126
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        subject = Subject.of(llama(1, width, vocabulary, machine, dtype))
        yield _lens(machine, subject, tokens, 1.25 if on_gpu else 2)


@torch.inference_mode()
def _lens(machine: Machine, subject: Subject, tokens: int, bound: float) -> Row:
    ids = torch.randint(0, subject.model.config.vocab_size, (tokens,)).tolist()
    residuals = _residuals(machine, subject, tokens)
    chunk = chunk_size(subject.model.config.vocab_size, subject.model.device)

    def products() -> None:
        for start in range(0, tokens, chunk):
            for depth in residuals.depths:
                subject.head(subject.norm(depth[0, start : start + chunk]))

    def ours() -> TokenValues:
        return measure(subject, residuals, [ids], [np.arange(tokens)], TOPK, chunk)[0]

    functions: dict[str, Callable] = {"ours": ours, "products alone": products}
    found = ours()
    kl = found.values[list(METRICS).index("kl")]
    expected = _plain_kl(subject, residuals, 8)
    difference = float((torch.from_numpy(kl[:, :8]) - expected).abs().max() / expected.max())
    assert difference < (1e-4 if subject.model.dtype == torch.float32 else 0.02), difference
    dtype = str(subject.model.dtype).removeprefix("torch.")
    size = f"{subject.model.config.hidden_size} wide, {subject.model.config.vocab_size:,} tokens"
    case = f"{dtype}, {size} of vocabulary, {len(residuals.depths)} depths x {tokens:,} positions"
    notes = [f"KL against a plain computation: {difference:.1e} of the largest"]
    if machine.device == "cuda":
        notes.append(_chunks_held(ours, subject, chunk))
    row = machine.row("lens", case, functions, graphs=False, notes=notes)
    ratio = 1 / row.ratio("products alone")
    return row.goal("x products alone", ratio, bound, at_least=False)


def _residuals(machine: Machine, subject: Subject, tokens: int) -> Residuals:
    """Random ones that grow from depth to depth."""
    width = subject.model.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(DEPTHS, 1, tokens, width, generator=generator)
    depths = list(steps.cumsum(0).to(machine.device, subject.model.dtype))
    last = subject.norm(depths[-1])
    return Residuals(depths, last, subject.head(last[:, -1]))


def _plain_kl(subject: Subject, residuals: Residuals, positions: int) -> Tensor:
    """[D, positions] in float64, from the logits as the model's dtype has them."""
    logits = torch.stack(
        [subject.head(subject.norm(depth[0, :positions])) for depth in residuals.depths]
    )
    log = logits.double().log_softmax(-1)
    return (log[-1].exp() * (log[-1] - log)).sum(-1).cpu().float()


def _chunks_held(function, subject: Subject, chunk: int) -> str:
    """Most memory that the lens took beyond what was there, in chunks of logits."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    size = chunk * subject.model.config.vocab_size * subject.model.dtype.itemsize
    held = (torch.cuda.max_memory_allocated() - before) / size
    return f"memory: {held:.2f} chunks of logits"


def lens_peer(machine: Machine) -> Iterator[Row]:
    """The whole lens of one text, forward pass included, against TransformerLens's `logit_lens`
    asked for the same: KL both ways, entropy, rank and the top tokens from its log-probabilities.

    TransformerLens holds them for all depths; a text eight times as long is read by ours alone.
    """
    from engram_model import hooked
    from engram_model.bpe import train_bpe

    layers, width, vocabulary, length = (2, 32, 500, 32) if machine.quick else (8, 256, 8192, 256)
    model = llama(layers, width, vocabulary, machine, torch.float32)
    bridge = hooked(model, train_bpe(["a few words to learn"], 300))
    subject = Subject.of(model)
    ids = np.random.default_rng(0).integers(3, vocabulary, 8 * length).tolist()
    functions = {
        "ours": lambda: _ours(subject, ids[:length]),
        "TransformerLens": lambda: _theirs(bridge, ids[:length]),
    }
    ours, theirs = (function() for function in functions.values())
    *apart, ranks = (ours - theirs).abs().amax((1, 2)).tolist()
    difference = max(apart)
    assert difference < 1e-3, f"the sides differ by {difference:.1e}"
    assert ranks <= 1, f"ranks differ by {ranks:.0f}"  # by 1: logits that are almost equal
    long = _ours(subject, ids)
    assert torch.isfinite(long).all()
    held = (layers + 1) * vocabulary * 4 / 1e9
    notes = [
        f"largest difference: {difference:.1e}",
        f"TransformerLens holds {held * length:.2f} GB of log-probabilities, and would hold "
        f"{held * 8 * length:.2f} for {8 * length:,} tokens, which ours read",
    ]
    case = f"Llama of {layers} blocks, {width} wide, {vocabulary:,} tokens, text of {length}"
    row = machine.row("lens_peer", case, functions, graphs=False, notes=notes)
    yield row.faster("TransformerLens", 1)


def _ours(subject: Subject, ids: list[int]) -> Tensor:
    """KL, its reverse, entropy and rank, [4, D, p]."""
    chunk = chunk_size(subject.model.config.vocab_size, subject.model.device)
    [found] = measure(subject, subject.residuals([ids]), [ids], [np.arange(len(ids))], TOPK, chunk)
    names = list(METRICS)
    wanted = [names.index(name) for name in ("kl", "kl_reverse", "entropy", "rank")]
    values = torch.from_numpy(found.values[wanted])
    values[3, :, -1] = 0  # what follows the last token is not known
    return values


@torch.no_grad()
def _theirs(bridge, ids: list[int]) -> Tensor:
    from transformer_lens.tools.analysis import logit_lens

    tokens = torch.tensor([ids], device=bridge.original_model.device)
    log = logit_lens(bridge, tokens, positions=None, return_type="log_probs").values[:, 0]
    final, following = log[-1], torch.tensor([*ids[1:], ids[-1]], device=log.device)
    target = following.expand(len(log), -1)[..., None]
    rank = 1 + (log > log.gather(-1, target)).sum(-1)
    rank[:, -1] = 0
    log.topk(TOPK)
    kl = (final.exp() * (final - log)).sum(-1)
    reverse = (log.exp() * (log - final)).sum(-1)
    entropy = -(log.exp() * log).sum(-1)
    return torch.stack([kl, reverse, entropy, rank.float()]).cpu()
