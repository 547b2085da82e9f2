"""What the results say: findings in sentences, key numbers with intervals, and alerts."""

import math
from dataclasses import dataclass

import numpy as np

from engram_app.report.measure import Measured
from engram_probes.alignment import Alignment
from engram_probes.gate_profiles import WHAT, GateProfile

FEW_DOCUMENTS, FEW_TOKENS, FEW_BLOCKS = 30, 5000, 8
ONE_SEED = (
    "Each model was trained once: intervals are over documents and say nothing about other "
    "training seeds."
)


@dataclass(frozen=True)
class KeyNumber:
    """A number of the header: what it is, with its interval and what it is over.

    id: its name in checks, see docs/report.md.
    difference: whether its sign is what matters.
    """

    id: str
    name: str
    value: float
    unit: str
    over: str
    low: float | None = None
    high: float | None = None
    difference: bool = False


def findings(found: Measured) -> list[str]:
    """One sentence a probe, the strongest first."""
    sentences = []
    if found.difference is not None:
        sentences.append(found.difference.summary())
    elif found.lens is not None:
        sentences.append(found.lens.summary())
    if found.alignment is not None:
        sentences.append(f"By CKA, {_lowered(found.alignment.summary())}")
    if found.gates:
        sentences.append(gate_finding(found))
    if found.gate_profile is not None:
        sentences.append(found.gate_profile.summary())
    return sentences


def gate_finding(found: Measured) -> str:
    """What the memory does on an average token of the texts."""
    gate, added = gate_numbers(found)
    return (
        f"Over {len(found.gates)} texts the mean gate is {gate:.2f} (0.5 is neutral) and the "
        f"memory adds {added:.2f} of the residual it enters on an average token."
    )


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def gate_numbers(found: Measured) -> tuple[float, float]:
    """Mean gate, and mean relative size of what is added, over all ordinary tokens."""
    gates = [g.values("gate")[:, ~g.special] for g in found.gates.values()]
    added = [g.values("added")[:, ~g.special] for g in found.gates.values()]
    return (
        float(np.concatenate(gates, axis=1).mean()),
        float(np.concatenate(added, axis=1).mean()),
    )


def key_numbers(found: Measured) -> list[KeyNumber]:
    """A handful of numbers, each with its interval where it has one."""
    numbers = []
    if found.lens is not None:
        lens = found.lens
        over = f"{lens.positions:,} tokens, {lens.documents:,} documents"
        half = lens.depths // 2
        value, low, high = (float(curve[half]) for curve in lens.curve("kl"))
        name = f"KL to the final prediction after {half} blocks"
        numbers.append(KeyNumber("lens.kl", name, value, "nats", over, *_ends(low, high)))
    if found.difference is not None:
        value, low, high = (float(number) for number in found.difference.settling)
        name = f"Settling depth, less that of {found.difference.other}"
        ends = _ends(low, high)
        numbers.append(KeyNumber("lens.settling", name, value, "blocks", over, *ends, True))
    if found.alignment is not None and np.isfinite(found.alignment.soft_index).any():
        numbers.append(_shift(found.alignment))
    if found.gates:
        gate, added = gate_numbers(found)
        over = f"{len(found.gates)} texts"
        numbers.append(KeyNumber("gates.mean", "Mean gate", gate, "0.5 is neutral", over))
        name = "Added by the memory"
        numbers.append(KeyNumber("gates.added", name, added, "of the residual", over))
    if found.gate_profile is not None:
        numbers += _auc_numbers(found.gate_profile)
    return numbers


def _auc_numbers(profile: GateProfile) -> list[KeyNumber]:
    """How well gates tell ends of names and phrases, averaged over layers and streams."""
    numbers = []
    for place, label in enumerate(profile.labels):
        auc = profile.auc[place, 0, 0]
        if np.isfinite(auc).all():
            over = f"{profile.positives[place]:,} ends, {profile.documents:,} documents"
            name = f"AUC of the gates at the end of a {WHAT[label]}"
            numbers.append(
                KeyNumber(f"gates.auc.{label}", name, float(auc.mean()), "0.5 is chance", over)
            )
    return numbers


def _shift(alignment: Alignment) -> KeyNumber:
    """Of the layers that the soft alignment can reach, the one that is shifted most."""
    shift = alignment.soft_index - np.arange(len(alignment.soft_index))
    within = np.where(_reachable(alignment), shift, np.nan)
    column = int(np.nanargmax(np.abs(within if np.isfinite(within).any() else shift)))
    ends = (float(ends[column]) - column for ends in (alignment.soft_low, alignment.soft_high))
    return KeyNumber(
        "cka.shift",
        f"Largest shift, at layer {column}",
        float(shift[column]),
        "layers",
        f"{alignment.samples:,} samples, {alignment.documents:,} documents",
        *_ends(*ends),
        True,
    )


def _reachable(alignment: Alignment) -> np.ndarray:
    """Bool [C]: layers whose own index the soft alignment can take with even weights."""
    layers = np.arange(len(alignment.soft_index))
    return (layers >= alignment.soft_floor) & (layers <= alignment.soft_ceiling)


def _ends(low: float, high: float) -> tuple[float | None, float | None]:
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (None, None)


def alerts(found: Measured) -> list[str]:
    """What a reader must know before believing the numbers."""
    lens, alignment = found.lens, found.alignment
    said = list(found.left_out)
    if lens is not None and (lens.documents < FEW_DOCUMENTS or lens.positions < FEW_TOKENS):
        said.append(
            f"Little text: the lens is over {lens.positions:,} tokens of {lens.documents:,} "
            "documents. Give more with --tokens."
        )
    if lens is not None and lens.cut:
        said.append(f"{lens.cut:,} documents were longer than the context and were cut.")
    if found.twin_lens is None:
        said.append("No twin was given: nothing here says what the memory changed.")
    if found.difference is not None:
        _, low, high = found.difference.settling
        if low <= 0 <= high:
            said.append("The difference in settling depth cannot be told from none.")
    if alignment is not None and np.isfinite(alignment.soft_index).any():
        shift = _shift(alignment)
        if shift.low is not None and shift.high is not None and shift.low <= 0 <= shift.high:
            said.append("The largest shift between layers cannot be told from none.")
        said += _alignment_alerts(alignment)
    return [*said, ONE_SEED]


def _alignment_alerts(alignment: Alignment) -> list[str]:
    said = []
    blocks = -(-alignment.documents // alignment.batch_size)
    if blocks < FEW_BLOCKS:
        said.append(f"The intervals of the alignment draw from {blocks} blocks of documents only.")
    below = float(np.mean(alignment.matrix <= alignment.null_high))
    if below > 0.05:
        said.append(f"{below:.0%} of the layer pairs are no more alike than permuted samples.")
    layers = np.arange(len(alignment.soft_index))
    bound = layers[~_reachable(alignment)]
    if bound.size:
        said.append(
            f"With k = {alignment.k} and even weights the soft alignment stays between "
            f"{alignment.soft_floor:g} and {alignment.soft_ceiling:g}: at the layers "
            f"{', '.join(map(str, bound))} a shift is partly the bound's."
        )
    return said
