"""Replayed training steps against launched ones; on a CPU a function run again plays the graph."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from engram_model.bench.model import backward_of, train_on
from engram_model.errors import UsageError
from engram_model.training import graphed, loop
from engram_model.training.callbacks import BalanceExperts, WatchGates
from engram_model.training.experts import autocast_experts
from engram_model.training.graphed import NO_MASK, WARM, CaptureError, GraphedStep, Left
from engram_model.training.optimizer import MuonAdamW
from engram_model.training.train import TrainOptions, train

STEPS = 6


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that spin for each other take long where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Rerun:
    """As a graph: a capture computes nothing, a replay writes the captured tensors."""

    counters: tuple[torch.Tensor, ...] = ()  # what a pass changes in place

    def __init__(self) -> None:
        self.captures, self.replays = 0, 0

    def run(self, function: Callable):
        return function()

    def capture(self, function: Callable) -> Left:
        before = [counter.clone() for counter in self.counters]
        self.function, self.left = function, function()
        for counter, value in zip(self.counters, before, strict=True):
            counter.copy_(value)
        for tensor in tensors(self.left).values():
            tensor.fill_(0 if tensor.dtype == torch.int64 else torch.nan)
        self.captures += 1
        return self.left

    def replay(self) -> None:
        for weight in self.left.grads:
            weight.grad = None
        for table in self.left.row_grads:
            table.row_grads.clear()
        written = tensors(self.function())
        for name, tensor in tensors(self.left).items():
            tensor.copy_(written[name])
        self.replays += 1


def tensors(left: Left) -> dict[tuple, torch.Tensor]:
    named = {("grad", id(weight)): grad for weight, grad in left.grads.items()}
    for table, lookups in left.row_grads.items():
        for i, (slots, rows) in enumerate(lookups):
            named |= {("slots", id(table), i): slots, ("rows", id(table), i): rows}
    gates = {("gates", id(m)): gates for m, gates in left.gates.items() if gates is not None}
    return {("loss",): left.loss, **named, **gates}


def batches(steps: int = STEPS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 300, (steps, 2, 24), generator=generator)


def plain_backward(model) -> Callable:
    """As the benchmark's without autocast, which is slow on a CPU."""

    def backward(inputs):
        ids = inputs["ids"]
        loss = model(ids, labels=ids, attention_mask=NO_MASK, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return backward


def trained(model, graph: Rerun | None) -> list[dict]:
    """Train on batches; what each step left before its update: loss, gradients, loads, gates."""
    optimizer = MuonAdamW(model.train(), 0.01)
    balance, gates = BalanceExperts(model), WatchGates(model)
    for watcher in (balance, gates):
        watcher.on_train_begin(None, None, None)
    backward = plain_backward(model)
    if graph is not None:
        graph.counters = (*balance.loads,)
        backward = GraphedStep(model, backward, graph)
    seen = []

    def watched(inputs):
        loss = backward(inputs)
        loads = {f"load {i}": load.clone() for i, load in enumerate(balance.loads)}
        seen.append({"loss": loss, **left_in(model), **loads})
        return loss

    for ids in batches():
        train_on(ids, model, watched, optimizer)
        balance.on_step_end(None, None, None)
    return seen


def left_in(model) -> dict[str, torch.Tensor]:
    """Copies of all gradients, by rows too, and of gates."""
    found = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    for i, memory in enumerate(model.model.memories):
        [gradient] = memory.embed.weight.row_grads
        assert not gradient._kept  # nothing of the last step's sorting
        found |= {f"slots {i}": gradient.slots.clone(), f"rows {i}": gradient.rows.clone()}
        if memory.gates is not None:
            found[f"gates {i}"] = memory.gates.clone()
    return found


def test_replays_leave_what_launched_steps_leave(make_model):
    models = [make_model(2, layers=2, memory_layers=(0, 1)) for _ in range(2)]
    graph = Rerun()
    replayed, launched = trained(models[0], graph), trained(models[1], None)
    assert (graph.captures, graph.replays) == (1, STEPS - WARM)
    assert len(replayed) == len(launched) == STEPS
    for one, other in zip(replayed, launched, strict=True):
        torch.testing.assert_close(one, other)
    experts, tokens = 2, batches()[0].numel()
    assert {float(step["load 0"].sum()) for step in replayed} == {experts * tokens}


def test_other_shapes_run_as_they_are(make_model):
    model, graph = make_model(1, layers=2, memory_layers=()).train(), Rerun()
    step = GraphedStep(model, plain_backward(model), graph)
    for ids in batches():
        model.zero_grad()
        step({"ids": ids})
    model.zero_grad()
    short = batches()[0][:, :9]
    loss = step({"ids": short})
    assert graph.replays == STEPS - WARM
    assert loss == plain_backward(model)({"ids": short})


def test_a_failed_capture_leaves_no_gradients(make_model):
    class Fails(Rerun):
        def capture(self, function):
            function()
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    model = make_model(1).train()
    MuonAdamW(model, 0.01)
    step = GraphedStep(model, plain_backward(model), Fails())
    inputs = {"ids": batches()[0]}
    for _ in range(WARM):
        step(inputs)
    with pytest.raises(CaptureError, match=r"training step: operation not permitted$"):
        step(inputs)
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(memory.embed.weight.row_grads for memory in model.model.memories)


@pytest.fixture(scope="module")
def text(tokenizer, tmp_path_factory):
    """Folder with a tokenizer, and a corpus."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer.save_pretrained(folder)
    (folder / "corpus.txt").write_text("The miller of Ostrava counts the boats at dusk. " * 24)
    return folder


def run(text, out, **fields) -> list[dict]:
    """Train a little; the log's entries without times."""
    corpus = f"text:{text / 'corpus.txt'}"
    options = TrainOptions(
        tokens=STEPS * 2 * 32,
        context=32,
        batch=2,
        tokenizer=str(text),
        valid=corpus,
        eval_every=5,  # in the midst of replays
        log_every=1,
        **fields,
    )
    train("engram-tiny", corpus, out, options)
    log = json.loads((out / "training_log.json").read_text())
    return [
        {k: v for k, v in entry.items() if "second" not in k and "runtime" not in k}
        for entry in log["history"]
    ]


@pytest.fixture
def possible(monkeypatch):
    """A machine on which steps are graphs; the graphs that were made."""
    made: list[Rerun] = []

    def new() -> Rerun:
        made.append(Rerun())
        return made[-1]

    begin = BalanceExperts.on_train_begin

    def on_train_begin(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        for graph in made[-1:]:
            graph.counters = (*self.loads,)

    monkeypatch.setattr(BalanceExperts, "on_train_begin", on_train_begin)
    monkeypatch.setattr(loop, "why_no_graph", lambda model, args: None)
    monkeypatch.setattr(graphed, "CudaGraph", new)
    return made


@pytest.fixture(scope="module")
def launched(text, tmp_path_factory):
    """Log of a run without graphs."""
    return run(text, tmp_path_factory.mktemp("launched") / "run", graph=False)


def test_a_run_with_graphs_has_the_same_log(text, launched, tmp_path, possible):
    assert run(text, tmp_path / "run") == launched
    assert [graph.replays for graph in possible] == [STEPS - WARM]


def test_a_step_that_no_graph_can_hold(text, launched, tmp_path, possible, monkeypatch, caplog):
    def fails(self, function):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(Rerun, "capture", fails)
    assert run(text, tmp_path / "gives way") == launched
    assert "operation not permitted; training goes on without" in caplog.text
    with pytest.raises(CaptureError, match="operation not permitted"):
        run(text, tmp_path / "insists", graph=True)


def test_why_there_is_no_graph(make_model, text, tmp_path):
    args = SimpleNamespace(
        device=torch.device("cuda"), world_size=1, n_gpu=1, gradient_accumulation_steps=1, bf16=True
    )
    model = make_model(1)
    assert loop.why_no_graph(model, args) is None
    args.gradient_accumulation_steps = 2
    assert "accumulate" in loop.why_no_graph(model, args)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            run(text, tmp_path / "run", graph=True)


def test_experts_follow_autocast(make_model):
    """With an expert that no token chose, and a width that grouped products do not take."""
    model = make_model(1, moe_intermediate_size=12)
    experts = model.model.layers[1].mlp.experts
    hidden, chosen = torch.randn(6, 32), torch.tensor([[0, 1], [1, 3]] * 3)
    results = {}
    for way in ("as it is", "autocast"):
        if way == "autocast":
            autocast_experts(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            out = experts(hidden, chosen, torch.full((6, 2), 0.5))
        results[way] = out, *torch.autograd.grad(out.sum(), list(experts.parameters()))
    for cast, exact in zip(results["autocast"], results["as it is"], strict=True):
        assert cast.shape == exact.shape and cast.dtype == exact.dtype
        assert not torch.equal(cast, exact)
        assert (cast - exact).norm() < 0.02 * exact.norm()


@pytest.mark.gpu
def test_replays_on_a_gpu(make_model):
    """Every step from the same weights; attention's backward pass adds in any order."""
    model = make_model().cuda().train()
    autocast_experts(model)
    optimizer = MuonAdamW(model, 0.01)
    ways = {"launched": backward_of(model), "replayed": GraphedStep(model, backward_of(model))}
    for ids in batches().cuda():
        losses, left = {}, {}
        for way, backward in ways.items():
            model.zero_grad()
            losses[way] = backward({"ids": ids})
            left[way] = left_in(model)
        torch.testing.assert_close(losses["replayed"], losses["launched"])
        assert left["replayed"].keys() == left["launched"].keys()
        for name, expected in left["launched"].items():
            apart = (left["replayed"][name] - expected).float().norm()
            assert apart <= 0.02 * expected.float().norm(), name
        optimizer.step()


@pytest.mark.gpu
def test_a_run_with_graphs_on_a_gpu(text, tmp_path):
    logs = [run(text, tmp_path / str(graph), graph=graph) for graph in (True, False)]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], rel=0.01)
