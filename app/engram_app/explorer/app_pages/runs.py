"""Runs: reports, results, evaluations and trainings on disk, opened without a model."""

from typing import Any

import streamlit as st

from engram_app.explorer.catalogue import BUNDLED, Run, catalogue
from engram_app.explorer.opened import Opened
from engram_app.explorer.page import finding, not_here, one_line_errors, plain
from engram_app.explorer.runs_parts import open_run
from engram_app.explorer.state import choose, pick_from, type_in

EVERY = "all"
KINDS = {
    EVERY: "All",
    "report": "Reports",
    "result": "Results",
    "paper": "The paper",
    "evaluation": "Evaluations",
    "comparison": "Comparisons",
    "training": "Trainings",
    "unreadable": "Unreadable",
}
FIRST = BUNDLED / "cka-mini"  # where nothing was given


def search(runs: list[Run]) -> list[Run]:
    """Those of the kind and with the words that were asked for."""
    words = type_in("Search", "runs_words", 200, "name, model, corpus, finding")
    here = {run.kind for run in runs}
    kinds = [kind for kind in KINDS if kind == EVERY or kind in here]
    kind = choose("Kind", "runs_kind", kinds, KINDS.__getitem__)
    return [run for run in runs if kind in (EVERY, run.kind) and run.has(words)]


def listed(runs: list[Run]) -> None:
    """The list; a click on a row opens it, as the box beneath does from the keyboard."""
    rows = [
        {
            "name": run.name,
            "finding": run.finding,
            "kind": run.kind,
            "models": run.models,
            "corpus": run.corpus,
            "date": run.date,
        }
        for run in runs
    ]

    def clicked() -> None:
        chosen: Any = st.session_state["runs_list"].selection.rows
        if chosen:
            st.session_state["run"] = runs[chosen[0]].path

    st.dataframe(
        rows,
        key="runs_list",
        height=250,
        hide_index=True,
        on_select=clicked,
        selection_mode="single-row",
        alt=f"{len(runs)} runs on disk",
        column_config={"finding": st.column_config.TextColumn(width=420)},
    )


def page() -> None:
    st.title("Runs", anchor=False)
    given = Opened.now().results
    runs = catalogue(given)
    found = search(runs)
    if not found:
        finding("Nothing on disk is like that." if runs else "There is nothing saved here yet.")
        not_here(
            "Ask for other words or another kind; `engram report` and `engram probe` write runs, "
            "and folders named reports and runs in the working directory are listed here."
        )
        return
    listed(found)
    by_path = {run.path: run for run in found}
    paths = list(by_path)
    if not given and str(FIRST) in by_path:
        paths.insert(0, paths.pop(paths.index(str(FIRST))))
    path = pick_from("Open", "run", paths, lambda path: f"{by_path[path].name}")
    run = by_path[path]
    st.header(plain(run.name), anchor=False)
    with one_line_errors():
        open_run(run, runs)


page()
