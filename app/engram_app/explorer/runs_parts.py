"""How each kind of run is opened on the page Runs."""

import json
import shlex
from pathlib import Path
from typing import Any

import streamlit as st

from engram_app.explorer import cached
from engram_app.explorer.catalogue import BUNDLED, READERS, Run
from engram_app.explorer.page import draw, finding, numbers, origin, plain
from engram_app.explorer.state import choose, pick_from
from engram_app.report.write import JSON_FILE as REPORT
from engram_model.errors import CheckpointError, EngramError
from engram_probes.paper import PaperFigure, read_paper_figure
from engram_probes.provenance import Provenance
from engram_probes.records import (
    Evaluation,
    RunComparison,
    TrainingLog,
    read_comparison,
    read_training,
)
from engram_probes.results import Result
from engram_probes.views import views

LOSSES = {"eval_loss": "Valid loss", "loss": "Training loss"}
EVALUATED = {"loss": "Loss by source", "tasks": "Suites, above chance"}


def open_run(run: Run, runs: list[Run]) -> None:
    """Figures, table, where it comes from, command."""
    if run.kind == "unreadable":
        st.error(plain(run.finding), icon=":material/error:")
    elif run.kind == "report":
        _report(Path(run.path))
    elif run.kind == "result":
        result = cached.saved(run.path)
        finding(result.summary())
        _result(result, "runs")
        _beside_paper(Path(run.path), runs)
        origin(result, _command(result.provenance, run.path))
    else:
        record = READERS[run.kind](Path(run.path))
        finding(record.summary())
        _record(record, runs)


def _result(result: Result, key: str) -> None:
    offered = views(result)
    names = list(offered)
    name = pick_from("View", f"{key}_view_{result.kind}", names) if len(names) > 1 else names[0]
    title = f"{type(result).__name__}: {name}" if len(names) > 1 else type(result).__name__
    draw(result.figure(**offered[name]), title, key, frame=result.to_frame)


def _command(came: Provenance, path: str) -> list[str]:
    """What measured it; where that is not known, what opens it."""
    try:
        return shlex.split(came.command) or ["engram", "explore", path]
    except ValueError:
        return [came.command]


def _report(folder: Path) -> None:
    """All parts: finding by finding, each with its results' figures when it is opened."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        came = report["provenance"]
        sections = [(str(s["title"]), str(s["finding"]), list(s["results"]), s["caveats"])
                    for s in report["sections"]]  # fmt: skip
        for alert in report["alerts"]:
            st.warning(plain(str(alert)), icon=":material/priority_high:")
        command, key_numbers = str(report["command"]), report["key_numbers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no report that can be read: {type(error).__name__}: {error}"
        ) from None
    finding(str(report["findings"][0]) if report["findings"] else "A report without a finding.")
    for index, (title, found, results, caveats) in enumerate(sections):
        part = st.expander(
            f"**{plain(title)}** · {plain(found)}",
            expanded=index == 0,
            key=f"report_part_{index}",
            on_change="rerun",
        )
        if part.open:
            with part:
                _part(folder, results, caveats)
    import pandas as pd

    numbers(lambda: pd.DataFrame(key_numbers), "report_numbers", "Key numbers")
    st.divider()
    st.caption("From the command line")
    st.code(command or f"engram explore {folder}", language="bash", wrap_lines=True)
    with st.expander("Where this report comes from", icon=":material/info:"):
        st.code(json.dumps(came, indent=1, ensure_ascii=False), language="json", height=260)


def _part(folder: Path, results: list[str], caveats: Any) -> None:
    for name in results:
        try:
            if Path(name).name != name:
                raise CheckpointError(f"the report names a result {name!r} outside its folder")
            _result(cached.saved(folder / "results" / name), f"part_{name}")
        except EngramError as error:
            st.error(plain(str(error)), icon=":material/error:")
    for caveat in caveats:
        st.caption(plain(str(caveat)))


def _record(record: Any, runs: list[Run]) -> None:
    if isinstance(record, TrainingLog):
        _training(record, runs)
    elif isinstance(record, Evaluation):
        has = [what for what in EVALUATED if what == "loss" or record.tasks]
        what = choose("Measured", "runs_measured", has, EVALUATED.__getitem__)
        draw(record.figure(what), EVALUATED[what], "runs", frame=record.to_frame)
        _said(record.command, f"Read: {record.data}")
    elif isinstance(record, RunComparison):
        draw(record.figure(), "First less second", "runs", frame=record.to_frame)
        _said(record.command)
    else:
        _paper(record)


def _training(log: TrainingLog, runs: list[Run]) -> None:
    others = {run.name: run for run in runs if run.kind == "training" and run.models != log.name}
    like = [n for n, run in others.items() if run.models.split("-")[:2][-1:] == _size(log.name)]
    chosen = st.multiselect(
        "Trainings beside it", list(others), like[:5], key=f"runs_beside_{log.name}"
    )
    what = choose("Loss", "runs_loss", list(LOSSES), LOSSES.__getitem__)
    logs = [read_training(Path(others[name].path)) for name in chosen]
    draw(log.figure(what, logs), f"{LOSSES[what]} by tokens read", "runs", frame=log.to_frame)
    st.caption("Losses of trainings on other texts or with other tokenizers do not compare.")
    _said("", json.dumps(log.settings, ensure_ascii=False))


def _size(name: str) -> list[str]:
    """engram-mini-s1 -> mini."""
    return name.split("-")[1:2]


def _paper(paper: PaperFigure) -> None:
    """The paper's figure, and beside it each of ours that measures the same."""
    left, right = st.columns(2, gap="large")
    with left:
        draw(paper.figure(), f"The paper's figure {paper.number}", "paper", frame=paper.to_frame)
        st.caption(plain(f"{paper.source}; {paper.read}."))
    with right:
        if paper.ours:
            name, ours = _ours(paper.ours)
            draw(ours.figure(), f"Ours: {name}", "ours", frame=ours.to_frame)
        if not paper.ours:
            st.subheader("Ours", anchor=False)
        st.markdown(plain(paper.ours_says))


def _ours(names: tuple[str, ...]) -> tuple[str, Any]:
    """A result of ours, or several comparisons in one figure."""
    if (BUNDLED / names[0]).is_dir():
        return names[0], cached.saved(BUNDLED / names[0])
    read = [read_comparison(BUNDLED / name) for name in names]
    rows = [{**one.differences[0], "what": one.name} for one in read]
    return str(Path(names[0]).parent), RunComparison("a part taken away", "", tuple(rows))


def _beside_paper(folder: Path, runs: list[Run]) -> None:
    """Buttons to the paper's figures that measure the same as a result of ours."""
    for run in runs:
        if run.kind == "paper" and BUNDLED in folder.parents:
            paper = read_paper_figure(Path(run.path))
            if str(folder.relative_to(BUNDLED)) in paper.ours:
                st.button(
                    f"Beside the paper's figure {paper.number}",
                    key=f"beside_{paper.number}",
                    icon=":material/compare:",
                    on_click=_turn_to,
                    args=(run.path,),
                )


def _turn_to(path: str) -> None:
    """Open a run, which the words searched for may leave out."""
    st.session_state.update(run=path, runs_words="", runs_kind="all")


def _said(command: str, *facts: str) -> None:
    st.divider()
    st.caption(plain(" · ".join(facts)))
    if command:
        st.caption("From the command line")
        st.code(command, language="bash", wrap_lines=True)
