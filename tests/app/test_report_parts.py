"""The parts of a report that are measured on request, and the lens through a tuned one."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_app.report import write_report
from engram_app.report.compare import compare, open_run, write_comparison
from engram_app.report.parts import ON_REQUEST
from engram_app.report.parts.attention import Attention
from engram_app.report.parts.patching import Patching
from engram_app.report.parts.routing import Routing
from engram_app.report.parts.rows import Rows
from engram_model.errors import CheckpointError, UsageError
from engram_model.tasks import Pair

DATA = "world:?seed=0&split=valid&tokens=2K"
CLEAN = "The harbour master of Varnholm counts the"
CORRUPTED = "The harbour master of Ostrava counts the"
SMALL = {
    "routing": {"permutations": 5},
    "attention": {"sequences": 3, "length": 10},
    "patching": {
        **dict(text=CLEAN, corrupted=CORRUPTED, target=" boats", against=" wheel"),
        **dict(steps=2, draws=3),
    },
    "rows": {"top": 2, "controls": 3, "tokens": "100"},
}
WORDS = dict(probes=ON_REQUEST, data=DATA, tokens=600, options=SMALL)


@pytest.fixture(scope="module")
def runs(pair, tmp_path_factory):
    """The model against its twin, with two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        words = dict(twin=str(pair / "plain"), seed=seed, **WORDS)
        write_report(str(pair / "memory"), folder / str(seed), **words)
    return folder


@pytest.fixture(scope="module")
def results(runs):
    return {name: ep.load_result(runs / "0" / "results" / name) for name in ON_REQUEST}


@pytest.fixture(scope="module")
def numbers(runs):
    document = json.loads((runs / "0" / "report.json").read_text())
    return {number["id"]: number for number in document["key_numbers"]}


def test_numbers_are_those_of_the_results(results, numbers):
    routing, attention, patching, rows = (results[name] for name in ON_REQUEST)
    for change, name in enumerate(("zero", "noise", "other", "shuffle")):  # layers 0 to 2 follow
        kept = numbers[f"routing.kept.{name}"]
        assert kept["value"] == pytest.approx(routing.kept[change, 0].mean())
        assert kept["headline"] == (name == "zero")
    near = attention.scores.index("near")
    twin = numbers["attention.near.twin"]
    ends = (attention.overall, attention.overall_low, attention.overall_high)
    assert (twin["value"], twin["low"], twin["high"]) == tuple(end[near] for end in ends)
    assert numbers["attention.near.noise"]["value"] == pytest.approx(
        attention.layer_change[1, near].mean()
    )
    assert numbers["attention.induction"]["value"] == attention.repeated[0].max()
    node, place = patching.strongest(1)[0]
    strongest = numbers["patching.strongest"]
    assert strongest["value"] == patching.exact[0, node, place] and strongest["low"] is None
    assert patching.nodes[node] in strongest["name"]
    row = np.nanargmax(rows.strength[:, 0])
    assert numbers["rows.strongest"]["value"] == rows.mean[row]
    assert rows.strength.shape[1] == 2 and rows.tokens < routing.group_tokens[0]


def test_routing_warns_of_what_cannot_be_told_apart(results):
    result = results["routing"]
    ones = np.ones_like(result.difference)
    apart = replace(result, documents=30, difference_low=ones, difference_high=2 * ones)
    assert Routing().alerts({"routing": apart}) == []
    alike = replace(apart, difference_low=np.where(np.arange(3)[:, None, None] == 1, -ones, ones))
    (alert,) = Routing().alerts({"routing": alike})
    assert alert.startswith("In 2 of 2 layers") and "taken away" in alert  # of "other"
    (alert,) = Routing().alerts({"routing": replace(apart, documents=29)})
    assert alert == "Little text: intervals draw from 29 documents only."


def test_attention_warns_of_what_cannot_be_told_apart(results):
    result = replace(results["attention"], documents=30)
    ones = np.ones_like(result.overall)
    told = dict(overall_low=ones, overall_high=2 * ones)
    seen = replace(result, repeated_low=result.fresh_high + 0.1, **told)
    assert Attention().alerts({"attention": seen}) == []
    told["overall_low"] = -ones
    alerts = Attention().alerts({"attention": replace(seen, **told)})
    assert len(alerts) == 1 and "twin's attention" in alerts[0]
    alerts = Attention().alerts({"attention": replace(seen, repeated_low=result.fresh_high)})
    assert alerts == ["No head looks to what followed a token before more than at chance."]


def test_rows_warn_of_what_cannot_be_told_apart(results):
    result = replace(results["rows"], documents=30)
    ones = np.ones(len(result.slots))
    words = dict(mean_low=3 * ones, mean_high=4 * ones, control=ones, control_high=2 * ones)
    apart = replace(result, reads=result.reads.clip(1), **words)
    assert Rows().alerts({"rows": apart}) == []
    (apart_number,) = [n for n in Rows().key_numbers({"rows": apart}) if n.id == "rows.apart"]
    assert apart_number.value == 1
    alike = replace(apart, mean_low=np.r_[ones[:2], 3 * ones[2:]])
    (alert,) = Rows().alerts({"rows": alike})
    assert f"of 2 of {len(ones)} rows cannot be told" in alert
    unread = replace(result, reads=np.zeros_like(result.reads))
    assert f"{len(ones)} of {len(ones)} rows are not read" in Rows().alerts({"rows": unread})[0]
    assert Rows().key_numbers({"rows": unread}) == []


@pytest.fixture(scope="module")
def several(pair):
    """Patching of pairs whose answers are what the model prefers."""
    model, tokenizer = em.load(pair / "memory", device="cpu")
    texts = [f"The {who} of {town} counts the" for who in ("miller", "smith")
             for town in ("Varnholm", "Ostrava", "Mlava")]  # fmt: skip
    logits = {}
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
        with torch.no_grad():
            logits[text] = len(ids), model(torch.tensor([ids])).logits[0, -1]
    pairs = []
    for clean, (length, ours) in logits.items():
        for corrupted, (other, theirs) in logits.items():
            if clean < corrupted and length == other:
                gap = ours - theirs
                pairs.append(Pair(clean, corrupted, int(gap.argmax()), int(gap.argmin())))
    return ep.attribution_patching(model, tokenizer, pairs, steps=2, check=20)


def test_patching_of_several_pairs(several):
    assert several.pairs > 1
    numbers = {number.id: number for number in Patching().key_numbers({"patching": several})}
    assert numbers["patching.strongest"].low <= numbers["patching.strongest"].value
    assert numbers["patching.memory"].value == several.shares()["memory"]
    section = Patching().section({"patching": several})
    assert f"{several.pairs} of {several.tried} pairs" in section.caveats[-1]
    assert [figure.table.header[1] for figure in section.figures] == ["place", "inside", "cells"]
    cells = sum(int(row[1].replace(",", "")) for row in section.figures[2].table.rows)
    assert cells == np.isfinite(several.exact).sum()
    alerts = " ".join(Patching().alerts({"patching": several}))
    assert f"over {several.pairs} pairs only" in alerts
    few = replace(several, tried=3 * several.pairs, estimate=np.zeros_like(several.estimate))
    alerts = " ".join(Patching().alerts({"patching": few}))
    assert f"To only {several.pairs} of {few.tried} pairs" in alerts and "are estimates" in alerts


def test_finished_parts_are_kept(pair, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("engram_app.report.page.render", full)
        with pytest.raises(OSError, match="No space left"):
            write_report(str(pair / "memory"), tmp_path / "out", **WORDS)
    assert "kept from the run" not in capsys.readouterr().err
    assert write_report(str(pair / "memory"), tmp_path / "out", **WORDS).is_file()
    err = capsys.readouterr().err
    assert all(f"{name}: kept from the run that was stopped" in err for name in ON_REQUEST)
    assert (
        "rows: about the first 100 of " in err
        and "patching: one pair of texts; every effect" in err
    )


def test_compared(runs, tmp_path):
    same = compare(open_run(runs / "0"), open_run(runs / "0"))
    assert all(change.difference == 0 and change.verdict != "more" for change in same)
    document = write_comparison(runs / "0", runs / "1", tmp_path / "out")
    assert not document["only_first"] and not document["only_second"]
    html = (tmp_path / "out" / "comparison.html").read_text()
    for name in ("routing-kept", "attention-near", "patching-nodes", "rows"):
        assert f'id="figure-first-{name}"' in html and f'id="figure-second-{name}"' in html


def test_of_a_model_without_memory_or_twin(pair, tmp_path):
    words = {**WORDS, "probes": ["attention", "patching"], "options": {
        name: SMALL[name] for name in ("attention", "patching")}}  # fmt: skip
    page = write_report(str(pair / "plain"), tmp_path / "out", **words)
    document = json.loads(page.with_name("report.json").read_text())
    found = [number["id"] for number in document["key_numbers"]]
    assert {"attention.near", "attention.induction", "patching.gap"} < set(found)
    assert not any("memory" in name or "twin" in name for name in found)
    with pytest.raises(UsageError, match="routing cannot be measured: the model has no memory"):
        write_report(str(pair / "plain"), tmp_path / "other", **{**WORDS, "probes": ["routing"]}
                     | {"options": {}})  # fmt: skip


def test_a_twin_of_other_depth_is_left_out_with_a_note(pair, make_model, tokenizer, tmp_path):
    folder = tmp_path / "deep"
    make_model(layers=4, memory_layers=(), max_position_embeddings=192).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = {"attention": SMALL["attention"]}
    words = {**WORDS, "probes": ["attention"], "options": options, "twin": str(folder)}
    page = write_report(str(pair / "memory"), tmp_path / "out", **words)
    document = json.loads(page.with_name("report.json").read_text())
    assert "Attention of the twin: the models have other numbers of blocks." in document["alerts"]
    assert "attention.near.twin" not in {number["id"] for number in document["key_numbers"]}


@pytest.fixture(scope="module")
def tuned(pair, tmp_path_factory):
    """A copy of the pair, a tuned lens beside each."""
    folder = tmp_path_factory.mktemp("tuned") / "pair"
    shutil.copytree(pair, folder)
    for name in ("memory", "plain"):
        tune(folder / name)
    return folder


def tune(folder, tokens=600):
    texts = [f"In {1900 + i} the miller counted {i * 37 % 101} boats at dusk." for i in range(150)]
    model, tokenizer = em.load(folder, device="cpu")
    ep.tune_lens(
        model, tokenizer, texts, tokens=tokens, batch_tokens=200, held_out_tokens=100
    ).save(folder)  # fmt: skip


TUNED = dict(probes=["lens"], data=DATA, tokens=600, options={"lens": {"tuned": True}})


def test_through_tuned_lenses(tuned, tmp_path, capsys):
    words = dict(twin=str(tuned / "plain"), **TUNED)
    page = write_report(str(tuned / "memory"), tmp_path / "out", **words)
    document = json.loads(page.with_name("report.json").read_text())
    for result, name in (("lens", "memory"), ("lens-twin", "plain")):
        lens = ep.load_result(tmp_path / "out" / "results" / result)
        assert lens.translators == ep.TunedLens.load(tuned / name).sha256
    assert document["findings"][0].startswith("Under the tuned lens the top token of memory")
    (section,) = document["sections"]
    assert "translated by the tuned lens" in section["method"]
    assert "tuned lens is trained" in section["caveats"][0]
    assert all("(tuned lens)" in number["name"] for number in document["key_numbers"])
    assert "its twin, through tuned lenses" in capsys.readouterr().err


def test_a_tuned_lens_that_is_missing_or_another_models(tuned, pair, tmp_path):
    words = dict(twin=str(pair / "plain"), **TUNED)
    with pytest.raises(UsageError, match=r"lens cannot be measured: no tuned lens in .*plain"):
        write_report(str(tuned / "memory"), tmp_path / "out", **words)
    wrong = shutil.copytree(tuned / "memory", tmp_path / "wrong")
    for file in ep.TunedLens.files:
        shutil.copy(tuned / "plain" / file, wrong / file)
    with pytest.raises(UsageError, match="lens cannot be measured: this tuned lens is that of"):
        write_report(str(wrong), tmp_path / "out", **TUNED)
    (wrong / ep.TunedLens.files[1]).write_bytes(b"")
    with pytest.raises(UsageError, match="lens cannot be measured: "):
        write_report(str(wrong), tmp_path / "out", **TUNED)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError):
        ep.TunedLens.load(pair / "plain")


def test_a_lens_is_measured_again_through_another_tuned_lens(tuned, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(tuned / "memory", tmp_path / "memory")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("engram_app.report.page.render", stopped)
    for tokens, kept in ((None, False), (None, True), (700, False)):
        if tokens:
            tune(folder, tokens)
        with pytest.raises(KeyboardInterrupt):
            write_report(str(folder), tmp_path / "out", **TUNED)
        assert ("lens: kept from the run" in capsys.readouterr().err) == kept
