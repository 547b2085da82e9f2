"""Residuals of every depth, streams collapsed, against the plain forward pass."""

from collections.abc import Iterator
from typing import Any

import torch

from engram_model.bench.measure import Machine, Row
from engram_model.modeling import EngramForCausalLM
from engram_model.presets import preset_config
from engram_probes.capture import Subject

LENGTH = 512
# Experts a multiple of 8 wide, as grouped products on a GPU want; the second is only for a GPU.
LARGER: dict[str, Any] = dict(hidden_size=1024, intermediate_size=2736, moe_intermediate_size=512)


def capture(machine: Machine) -> Iterator[Row]:
    """A batch as probes run it: engram-mini, and on a GPU one of 1,024 wide."""
    on_gpu = machine.device == "cuda"
    length = 32 if machine.quick else LENGTH
    for fields in ({}, LARGER) if on_gpu else ({},):
        torch.manual_seed(0)
        config = preset_config("engram-mini", **fields)
        model = EngramForCausalLM(config).to(machine.device)
        model = model.to(torch.bfloat16 if on_gpu else torch.float32).eval()
        subject = Subject.of(model)
        tokens = 2 * length if machine.quick else subject.tokens_at_once
        ids = torch.randint(3, config.vocab_size, (tokens // length, length)).tolist()
        yield _capture(machine, subject, ids)


def _capture(machine: Machine, subject: Subject, batch: list[list[int]]) -> Row:
    @torch.inference_mode()
    def forward():
        return subject.model(subject.tensor(batch), use_cache=False, logits_to_keep=1).logits[:, -1]

    functions = {"ours": lambda: subject.residuals(batch), "forward alone": forward}
    kept = functions["ours"]()
    assert torch.equal(kept.last_logits, functions["forward alone"]())
    normed = subject.norm(kept.depths[-1])
    assert torch.allclose(normed, kept.last_hidden, atol=1e-5, rtol=0.02)
    size = sum(depth.nbytes for depth in kept.depths) / 1e6
    case = f"{subject.model.config.hidden_size} wide, {len(batch)} texts of {len(batch[0])}"
    notes = ["the same logits bit for bit", f"{len(kept.depths)} depths kept, {size:.0f} MB"]
    row = machine.row("capture", case, functions, graphs=False, notes=notes)
    bound = 1.05 if machine.device == "cuda" else 1.10
    return row.goal("x forward alone", 1 / row.ratio("forward alone"), bound, at_least=False)
