"""How things are timed: in turn, several rounds, the median; and what a row of results holds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch

from engram_kernels.timing import median_microseconds

ROUNDS = 3


@dataclass(frozen=True)
class Goal:
    """What was to be reached: `value` compared with `bound`."""

    what: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass
class Row:
    """One measurement.

    Attributes:
        stage, case: what, and at which shape.
        times: name -> median microseconds; "ours" among them.
        spread: name -> slowest over fastest round.
        bytes: fewest bytes that must be read and written (0: not bound by memory).
        copy: bandwidth of a device copy in this run, bytes a second.
        goals: with what was reached.
        notes: what else to know: errors found by the check, what did not run and why.
    """

    stage: str
    case: str
    times: dict[str, float]
    spread: dict[str, float]
    bytes: int = 0
    copy: float = 0.0
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def floor(self) -> float:
        """Microseconds that copying as many bytes takes."""
        return self.bytes / self.copy * 1e6 if self.bytes and self.copy else 0.0

    @property
    def share(self) -> float:
        """Of the copy bandwidth: floor over time."""
        return self.floor / self.times["ours"]

    def ratio(self, peer: str) -> float:
        """How many times faster than a peer."""
        return self.times[peer] / self.times["ours"]

    def goal(self, what: str, value: float, bound: float, at_least: bool = True) -> "Row":
        self.goals.append(Goal(what, value, bound, at_least))
        return self

    def faster(self, peer: str, bound: float) -> "Row":
        """A goal against a peer that ran; one that did not is in the notes."""
        if peer in self.times:
            self.goal(f"x {peer}", self.ratio(peer), bound)
        return self

    def to_dict(self) -> dict:
        goals = [{**asdict(goal), "met": goal.met} for goal in self.goals]
        shares = {"floor_us": self.floor, "share_of_copy": self.share} if self.floor else {}
        return {**asdict(self), **shares, "goals": goals}


@dataclass
class Machine:
    """Where a run takes place, and its two ceilings."""

    device: str
    name: str
    copy: float = 0.0  # bytes a second, read and written
    matrix: float = 0.0  # bfloat16 operations a second
    quick: bool = False  # small sizes where a stage has them: to see that it runs, not how fast

    @classmethod
    def here(cls) -> "Machine":
        if not torch.cuda.is_available():
            return cls("cpu", f"CPU, {torch.get_num_threads()} threads")
        source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        copied, _ = gpu_times({"copy": lambda: target.copy_(source)})
        side = 8192
        a, b = (torch.randn(side, side, device="cuda").bfloat16() for _ in range(2))
        multiplied, _ = gpu_times({"product": lambda: a @ b})
        return cls(
            "cuda",
            torch.cuda.get_device_name(),
            2 * source.numel() / copied["copy"] * 1e6,
            2 * side**3 / multiplied["product"] * 1e6,
        )

    def times(self, functions: dict[str, Callable], repeat: int = 25) -> tuple[dict, dict]:
        if self.device == "cuda":
            return gpu_times(functions, repeat)
        return cpu_times(functions, 1 if self.quick else 9)

    def row(
        self, stage: str, case: str, functions: dict[str, Callable], graphs: bool = True, **fields
    ) -> Row:
        """Time functions in turn; "ours" among them.

        Args:
            graphs: on a GPU time replays of a CUDA graph of each, so that the CPU does not count;
                where a graph cannot capture one of them, all are timed as they are, with a note.
        """
        notes = fields.setdefault("notes", [])
        if graphs and self.device == "cuda":
            functions = _all_graphed(functions, notes)
        times, spread = self.times(functions)
        return Row(stage, case, times, spread, copy=self.copy, **fields)


def gpu_times(functions: dict[str, Callable], repeat: int = 25) -> tuple[dict, dict]:
    """Median microseconds by events, the L2 cache emptied before each call; rounds in turn."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            found[name].append(median_microseconds(function, repeat))
    return _summary(found)


def cpu_times(functions: dict[str, Callable], rounds: int = 9) -> tuple[dict, dict]:
    """Microseconds by the clock, rounds in turn: the fastest, as others share the machine."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function()  # untimed: what the one before left in caches and allocator is not its own
            start = time.perf_counter()
            function()
            found[name].append((time.perf_counter() - start) * 1e6)
    _, spread = _summary(found)
    return {name: min(times) for name, times in found.items()}, spread


def _summary(found: dict[str, list[float]]) -> tuple[dict, dict]:
    median = {name: statistics.median(times) for name, times in found.items()}
    return median, {name: max(times) / min(times) for name, times in found.items()}


def graphed(function: Callable) -> Callable:
    """The same as replays of a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return _replay(graph, function)


def graphed_backward(function: Callable, given: list[torch.Tensor]) -> Callable:
    """Replays of the backward pass alone. Its forward pass must have run on the captured stream,
    as autograd runs each node's backward on the stream of its forward."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        out = function(*leaves)
        grad = torch.randn_like(out)
        for _ in range(3):
            torch.autograd.grad(out, leaves, grad, retain_graph=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        torch.autograd.grad(out, leaves, grad, retain_graph=True)
    return _replay(graph, out, grad, leaves)


def _replay(graph, *read) -> Callable:
    """Replays that keep alive what the graph reads: a graph holds addresses, not tensors."""

    def replay(_=read) -> None:
        graph.replay()

    return replay


def _all_graphed(functions: dict[str, Callable], notes: list[str]) -> dict[str, Callable]:
    """Graphs of all or of none: a replay beside a launch by the CPU is no comparison."""
    try:
        return {name: graphed(function) for name, function in functions.items()}
    except Exception as error:
        torch.cuda.synchronize()
        notes.append(f"no graphs ({type(error).__name__}), so all are launched by the CPU")
        return functions


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


def check(what: str, actual: torch.Tensor, expected: torch.Tensor, bound: float = 2e-2) -> str:
    """A note with the relative error.

    Raises:
        AssertionError: the two sides do not compute the same.
    """
    error = relative_error(actual.detach(), expected.detach())
    assert error <= bound, f"{what}: relative error {error:.1e}, so the sides differ"
    return f"{what}: relative error {error:.1e}"
