"""Alignment: which layers of the model and of its twin are alike; pair by pair."""

import shlex

import numpy as np
import streamlit as st

from engram_app.explorer import alignments, cached
from engram_app.explorer.page import draw, finding, not_here, origin, plain, requested
from engram_app.explorer.state import Looking, choose, choose_models, pick_from, put
from engram_probes.alignment import Alignment
from engram_probes.alignment_training import TrainingAlignment
from engram_probes.results import Result

MEASURES = {
    "cka": "CKA",
    "neighbours": "Neighbours",
    "procrustes": "Procrustes",
    "rsa": "RSA",
    "sinks": "CKA with special tokens",
}
TRAINING = {"soft": "Layer it is most like", "final": "CKA with its last state"}


def chosen(looking: Looking) -> Result | None:
    """A saved result, or one computed on request."""
    known = alignments.choices(looking)
    name = next(iter(known))
    if len(known) > 1:
        name = pick_from(
            "Result", "alignment_result", tuple(known),
            lambda name: alignments.label(name, known.get(name), looking),
        )  # fmt: skip
    one = known[name]
    if one is not None:
        return cached.saved(one.folder)
    why = (
        f"There is no saved alignment of {looking.name} and {looking.twin_name}. One is computed "
        f"on {alignments.DOCUMENTS} documents of the synthetic world, in about a minute."
    )
    key = f"alignment_{looking.path}_{looking.twin}"
    return alignments.compute(looking) if requested(key, "Compute it", why) else None


def show_pair(result: Alignment, measure: str) -> None:
    """One cell: its interval, what chance gives, and its row and column."""
    st.subheader("A pair of layers", anchor=False)
    rows, columns = result.matrix.shape
    column = result.largest_shift[0] if np.isfinite(result.soft_index).any() else 0
    row = int(np.argmax(np.nan_to_num(result.matrix[:, column], nan=-1)))
    with st.container(horizontal=True, gap="medium"):
        column = layer(f"Layer of {result.model_a}", "alignment_a", columns, column)
        row = layer(f"Layer of {result.model_b}", "alignment_b", rows, row)
    st.markdown(plain(result.pair_summary(row, column)))
    draw(
        result.figure(measure, pair=(row, column)),
        f"Layer {column} of {result.model_a}, layer {row} of {result.model_b}, and the others",
        "alignment_pair",
        frame=lambda: result.pair_frame(row, column),
    )
    table = result.pair_frame(row, column).dropna(axis="columns", how="all").round(3)
    st.dataframe(table, hide_index=True, alt="The pair by each measure")


def layer(label: str, key: str, count: int, default: int) -> int:
    return int(pick_from(label, key, tuple(map(str, range(count))), default=str(default)))


def look_at(row: int, column: int) -> None:
    """A click on the matrix."""
    put("alignment_b", str(row))
    put("alignment_a", str(column))


def show(result: Alignment) -> None:
    finding(result.summary())
    measure = choose("Measure", "alignment_measure", result.measures, MEASURES.__getitem__)
    draw(
        result.figure(measure),
        f"{MEASURES[measure]}, {result.samples:,} samples of {result.documents:,} documents",
        "alignment",
        frame=result.to_frame,
        on_cell=look_at,
    )
    right = "the same without them" if measure == "sinks" else "what chance alone gives"
    line = "" if measure == "sinks" else (
        f"White: the layer of {result.model_b} that each layer of {result.model_a} is most like "
        f"(centre of the {result.k} most alike). "
    )  # fmt: skip
    st.caption(plain(f"{line}Right: {right}. Click a cell, or choose a pair beneath."))
    show_pair(result, measure)
    draw(
        result.figure("soft"),
        "Soft alignment by each measure, with 95% intervals",
        "alignment_soft",
        frame=result.soft_frame,
    )


def show_training(result: TrainingAlignment) -> None:
    finding(result.summary())
    what = choose("Shown", "alignment_training", tuple(TRAINING), TRAINING.__getitem__)
    draw(
        result.figure(what),
        f"{TRAINING[what]}, by tokens trained on",
        "alignment_training_figure",
        frame=result.to_frame,
    )


def page() -> None:
    looking = choose_models()
    st.title("Alignment", anchor=False)
    if looking.twin is None:
        not_here("An alignment is of two models: choose one to compare with in the sidebar.")
        return
    result = chosen(looking)
    if isinstance(result, TrainingAlignment):
        show_training(result)
    elif isinstance(result, Alignment):
        show(result)
    if result is None:
        return
    command, python = shlex.split(result.provenance.command), ""
    if isinstance(result, Alignment) and not command:  # computed here
        command, python = alignments.reproduce(result, looking)
    origin(result, command, python)


page()
