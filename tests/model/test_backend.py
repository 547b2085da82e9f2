"""The seam: a model on the kernels (in Triton's interpreter on a CPU) equals the plain one."""

import pytest
import torch

from engram_model.backend import backends_used, choose_backend, set_backend
from engram_model.errors import UsageError
from engram_model.training.optimizer import MuonAdamW

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def make_model(make_model):
    return lambda *sizes, **fields: make_model(*sizes, **fields).to(DEVICE)


@pytest.fixture
def ids(ids):
    return ids.to(DEVICE)


def both(model, run):
    """What `run(model)` gives on plain operations and on the kernels."""
    results = []
    for backend in ("torch", "triton"):
        model.set_backend(backend)
        results.append(run(model))
        assert set(backends_used(model).values()) == {backend}
    return results


def close(actual: torch.Tensor, expected: torch.Tensor, bound: float = 5e-5) -> bool:
    return float((actual - expected).norm()) <= bound * float(expected.norm())


@pytest.mark.parametrize("streams", [1, 4])
def test_logits_and_gradients_equal_the_plain_ones(make_model, ids, streams):
    model = make_model(streams, layers=2, memory_layers=(0, 1))
    ids = ids[:, :10]
    mask = torch.ones_like(ids)
    mask[1, :3] = 0

    def run(model):
        model.zero_grad()
        out = model(ids, attention_mask=mask, labels=ids, use_cache=False)
        out.loss.backward()
        return out.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}

    (plain, plain_grads), (fused, fused_grads) = both(model, run)
    assert close(fused, plain)
    for name, grad in plain_grads.items():
        # a scale's gradient is one sum over all tokens, whose terms cancel
        assert close(fused_grads[name], grad, 1e-3 if grad.numel() == 1 else 5e-5), name


def test_cached_generation_equals_the_plain_one(make_model, ids):
    model = make_model(2, layers=2, memory_layers=(1,))
    prompt = ids[:, :5]

    @torch.no_grad()
    def run(model):
        step = model(prompt, use_cache=True)
        logits = [step.logits[:, -1]]
        for position in range(5, 8):
            step = model(ids[:, position : position + 1], past_key_values=step.past_key_values)
            logits.append(step.logits[:, -1])
        return torch.stack(logits)

    plain, fused = both(model, run)
    assert close(fused, plain)
    with torch.no_grad():
        model.set_backend("torch")
        whole = model(ids[:, :8], use_cache=False).logits[:, 4:].transpose(0, 1)
    assert close(fused, whole)


def test_a_training_step_moves_the_same_rows(make_model, ids):
    """The table's gradients go by rows to its optimiser; there is never a dense one."""
    moves = []
    for backend in ("torch", "triton"):
        model = make_model(2, layers=1, memory_layers=(0,))
        model.set_backend(backend)
        optimizer = MuonAdamW(model, 0.01)
        weight = model.model.memories[0].embed.weight
        before = weight.detach().clone()
        model(ids[:, :6], labels=ids[:, :6], use_cache=False).loss.backward()
        assert weight.grad is None and len(weight.row_grads) == 1
        optimizer.step()
        moves.append(weight.detach() - before)
    plain, fused = moves
    assert torch.equal((plain != 0).any(1), (fused != 0).any(1)) and (plain != 0).any()
    assert torch.allclose(fused, plain, atol=2e-3)  # Adam's first step is a sign where G is small


@torch.no_grad()
def test_hooks_need_the_plain_memory_and_say_so(make_model, ids):
    model = make_model(2, layers=1, memory_layers=(0,))
    model.set_backend("triton")
    [memory] = model.model.memories
    memory.backend = "auto"
    seen = []
    memory.tap = lambda name, tensor: seen.append(name) or tensor
    model(ids[:1, :4], use_cache=False)
    assert memory.used == "torch" and "gate" in seen
    memory.backend = "triton"
    with pytest.raises(UsageError, match="something listens to the memory's intermediates"):
        model(ids[:1, :4], use_cache=False)


def test_keeps_gates_on_request(make_model, ids):
    model = make_model(2, layers=1, memory_layers=(0,))
    [memory] = model.model.memories
    with torch.no_grad():
        model(ids[:1, :4])
        assert memory.gates is None
        memory.keep_gates = True
        gates = []
        for backend in ("torch", "triton"):
            model.set_backend(backend)
            model(ids[:1, :4])
            gates.append(memory.gates)
    assert gates[0].shape == (1, 4, 2) and close(gates[1], gates[0])


def test_refuses_what_cannot_be(make_model):
    with pytest.raises(UsageError, match="backend 'cuda': choose from auto, torch, triton"):
        set_backend(make_model(1, layers=1, memory_layers=()), "cuda")
    assert choose_backend("auto", None, torch.zeros(1)) == "torch"
    assert choose_backend("auto", "a reason", torch.zeros(1)) == "torch"


def test_a_memory_that_learns_through_a_cache_is_plain(make_model, ids):
    """The kernels have no gradient through a cache: "auto" gives way, "triton" says so."""
    from transformers import DynamicCache

    model = make_model(1, layers=1, memory_layers=(0,))
    [memory] = model.model.memories
    hidden = torch.randn(1, 4, 1, 32, device=DEVICE)
    cache = DynamicCache(config=model.config)
    memory.backend = "triton"
    with pytest.raises(UsageError, match="no gradient through a cache"):
        memory(hidden, ids[:1, :4], cache)
    with torch.no_grad():
        memory(hidden, ids[:1, :4], cache)
    assert memory.used == "triton"


def test_training_makes_no_cache_of_its_own(make_model, ids):
    model = make_model(1, layers=1, memory_layers=(0,))
    assert model(ids[:, :4]).past_key_values is not None
    assert model.train()(ids[:, :4]).past_key_values is None


def test_row_gradients_are_dropped_with_the_others_and_not_kept_of_a_frozen_table(make_model, ids):
    model = make_model(1, layers=1, memory_layers=(0,))
    MuonAdamW(model, 0.01)
    weight = model.model.memories[0].embed.weight

    def backward() -> int:
        model(ids[:, :4], labels=ids[:, :4], use_cache=False).loss.backward()
        return len(weight.row_grads)

    assert backward() == 1 and backward() == 2
    model.zero_grad()
    assert len(weight.row_grads) == 0
    weight.requires_grad_(False)
    assert backward() == 0


def test_streams_the_kernels_do_not_take_run_plainly(make_model):
    model = make_model(2, layers=1, memory_layers=())
    site = model.model.layers[0].attn_hc
    streams = torch.randn(1, 3, 2, 32, dtype=torch.float64)
    site.backend = "triton"
    with pytest.raises(UsageError, match="takes float32, bfloat16"):
        site(streams)
