"""What the hardware counted in each kernel, by NVIDIA's Nsight Compute (`ncu`)."""

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from engram_model.bench.measure import Machine, Row

TIME, READ, WRITTEN = "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"
STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = ("long_scoreboard", "lg_throttle", "barrier", "math_pipe_throttle", "not_selected", "wait")
SHARES = {  # percentages of what the chip can do
    "memory": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue slots": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "L1 hits": "l1tex__t_sector_hit_rate.pct",
    "L2 hits": "lts__t_sector_hit_rate.pct",
}
INSTRUCTIONS = "smsp__inst_executed.sum"
METRICS = [TIME, READ, WRITTEN, INSTRUCTIONS, *SHARES.values(), *map(STALL.format, STALLS)]


def counters(machine: Machine) -> Iterator[Row]:
    """Bytes, issue slots, occupancy and stalls of every kernel of one call, cold caches."""
    if shutil.which("ncu") is None:
        raise FileNotFoundError("ncu (Nsight Compute) is not on the PATH")
    for name in OPERATIONS:
        command = [
            *("ncu", "--clock-control", "none", "--profile-from-start", "off"),
            *("--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(METRICS)),
            *(sys.executable, "-m", __name__, name),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}: {(done.stderr or done.stdout).strip()[-300:]}")
        for kernel in parse(done.stdout):
            yield as_row(machine, name, kernel)


def parse(printed: str) -> list[dict[str, str]]:
    """The kernels in what `ncu --csv --page raw` prints: names, units, then a line a kernel."""
    lines = printed.splitlines()
    header = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    return list(csv.DictReader(io.StringIO("\n".join(lines[header:]))))[1:]


def as_row(machine: Machine, operation: str, kernel: dict[str, str]) -> Row:
    """One kernel; the bytes are those that the memory moved, not the fewest possible."""
    number = {name: float(kernel[name].replace(",", "") or "nan") for name in METRICS}
    moved, microseconds = int(number[READ] + number[WRITTEN]), number[TIME] / 1e3
    name = kernel["Kernel Name"].split("(")[0][:60]
    row = Row(
        "counters",
        f"{operation}: {name}",
        {"ours": microseconds},
        {"ours": 1.0},
        bytes=moved,
        copy=machine.copy,
    )
    row.notes.append(f"read {number[READ] / 1e6:.1f} MB, wrote {number[WRITTEN] / 1e6:.1f} MB")
    row.notes.append(f"{number[INSTRUCTIONS] / 1e6:.1f}M warp instructions")
    row.notes += [f"{what} {number[metric]:.0f}%" for what, metric in SHARES.items()]
    waits = sorted(((number[STALL.format(why)], why) for why in STALLS), reverse=True)
    row.notes += [f"{count:.1f} warps wait: {why}" for count, why in waits[:3]]
    return row


def _gate() -> Callable:
    from engram_model.bench import injection

    given = injection.inputs(2560, 32_768)[:4]
    return lambda: injection._gate(*given)


def _inject(width: int, backward: bool) -> Callable:
    from engram_model.bench import injection

    given = injection.inputs(width, 32_768, grad=backward)
    if not backward:
        return lambda: injection._inject(*given)
    out = injection._inject(*given)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, given, grad, retain_graph=True)


def _table() -> Callable:
    from engram_model.bench import table

    slots = torch.randint(0, 36_000_000, (32_768, table.COLUMNS), device="cuda")
    return table._Step(slots, 36_000_000, torch.float32, table.EVERY_NUMBER)


def _gather() -> Callable:
    from engram_kernels import lookup

    table = torch.zeros(36_000_000, 80, dtype=torch.bfloat16, device="cuda")
    slots = torch.randint(0, len(table), (32_768, 16), device="cuda")
    return lambda: lookup(table, slots)


def _gather_text() -> Callable:
    from engram_kernels import lookup_ngrams
    from engram_model.bench import lookup
    from engram_model.bench.text import token_ids
    from engram_model.hashing import NgramHasher

    ids = token_ids(lookup.TOKENS)[0]
    hasher = NgramHasher([1], 3, 8, [2_262_000] * 2, int(ids.max()) + 1, pad_id=2)
    table = torch.zeros(hasher.rows(1), 80, dtype=torch.bfloat16, device="cuda")
    same = torch.arange(int(ids.max()) + 1, dtype=torch.int32, device="cuda")
    given = (ids.reshape(-1, lookup.CONTEXT).cuda(), same, *lookup.constants(hasher, 1))
    pad = torch.tensor([2], device="cuda")
    return lambda: lookup_ngrams(table, *given, pad)


OPERATIONS: dict[str, Callable[[], Callable]] = {
    "gather, uniform": _gather,
    "gather, text": _gather_text,
    "gate, A": _gate,
    "inject, A": lambda: _inject(2560, False),
    "inject, B": lambda: _inject(512, False),
    "inject backward, A": lambda: _inject(2560, True),
    "inject backward, B": lambda: _inject(512, True),
    "table step, 36M rows": _table,
}


def main(name: str) -> None:
    """Run an operation twice, the second time with the profiler on."""
    operation = OPERATIONS[name]()
    operation()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    operation()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(sys.argv[1])
