"""The command line: what it prints and where, what it writes, and one line for every error."""

import errno
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from safetensors.numpy import load_file

import engram_probes as ep
from engram_app.cli import app, explain
from engram_app.console import number

DOCS = Path(__file__).parents[2] / "docs"
TEXT = "The miller of Ostrava said, nothing is lost."
HEAVY = ("torch", "transformers", "datasets", "pandas", "plotly", "streamlit", "numpy")


def test_help_needs_no_library():
    code = f"import engram_app.cli, sys; sys.exit(bool(set({HEAVY}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_is_fast():
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", "engram_app", "--help"], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - started < 3  # 0.4 s on a quiet machine
    for command in ("explore", "report", "probe", "train", "tokenize", "eval", "info", "doctor"):
        assert command in run.stdout


def test_info(engram, pair):
    code, out, err = engram("info", "memory", "--json")
    facts = json.loads(out)
    stored = sum(a.size for a in load_file(pair / "memory" / "model.safetensors").values())
    assert code == 0 and err == ""
    assert facts["parameters"]["total"] <= stored  # buffers are stored too
    assert facts["memory"]["layers"] == [0, 2] and facts["architecture"]["streams"] == 4
    code, out, _ = engram("info", "plain")
    assert code == 0 and "parameters total\t" in out


def test_info_shows_the_card(engram, pair, tmp_path):
    folder = shutil.copytree(pair / "plain", tmp_path / "carded")
    loss = {"loss": 1.5, "low": 1.25, "high": 1.75, "bits_per_byte": 0.5}
    one = {"options": {"data": "world:"}, "sources": {"all": loss}}
    (folder / "card.json").write_text(json.dumps({"evaluations": [one]}))
    _, out, _ = engram("info", folder)
    assert out.endswith("all\t1.5000\t1.2500\t1.7500\t0.5000\n")


def test_doctor(engram):
    code, out, _ = engram("doctor", "--json")
    checks = {check["check"]: check for check in json.loads(out)["checks"]}
    assert code == 0
    assert checks["hash"]["state"] == "ok" and checks["checkpoints"]["found"] == "memory, plain"


def test_doctor_finds_a_damaged_checkpoint(engram, pair, tmp_path, monkeypatch):
    folder = shutil.copytree(pair, tmp_path / "all")
    (folder / "plain" / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("ENGRAM_CHECKPOINTS", str(folder))
    code, out, _ = engram("doctor")
    assert code == 1
    assert "checkpoints\tbroken" in out


def test_probe_gates(engram, tmp_path):
    code, out, err = engram("probe", "gates", "memory", "--text", TEXT, "--out", tmp_path, "--json")
    document, result = json.loads(out), ep.load_result(tmp_path)
    assert code == 0 and err.startswith("opening")
    assert document["summary"] == result.summary()
    added = [row["added"] for row in document["table"] if row["layer"] == 2]
    assert added == pytest.approx(result.values("added", 2).tolist())
    assert result.provenance.command.startswith("engram probe gates memory --text 'The miller")


def test_probe_gates_of_a_corpus(engram, tmp_path):
    spec = "world:?seed=0&split=valid&tokens=600"
    code, out, _ = engram("probe", "gates", "memory", "--data", spec, "--out", tmp_path)
    result = ep.load_result(tmp_path)
    assert code == 0 and out.splitlines()[0] == result.summary()
    assert result.kind == "gate-profile" and result.positives[0] > 0
    assert out.splitlines()[1].split("\t") == ["group", "layer", "gate", "added", "tokens"]


def test_probe_gates_by_ngram(engram, corpus, tmp_path):
    words = ("probe", "gates", "memory", "--data", corpus, "--controls", 3)
    index = ("--index", tmp_path / "index")
    code, out, err = engram(*words, *index, "--count-data", corpus, "--out", tmp_path / "profile")
    result = ep.load_result(tmp_path / "profile")
    assert code == 0 and "counting n-grams: 24 documents" in err
    assert out.splitlines()[0] == result.summary() and result.orders == (2, 3)
    row = next(line for line in out.splitlines() if line.startswith("3-gram, seen 4 to 15\t2"))
    group = result.groups.index("3-gram, seen 4 to 15")
    assert row.split("\t")[-1] == str(result.group_tokens[group, 1]) != "0"
    never = [line for line in out.splitlines() if line.startswith("3-gram, seen 0")]
    assert never[0].split("\t")[2:] == ["–", "–", "0"]  # the corpus was counted itself
    code, out, err = engram(*words, *index)
    assert code == 0 and "counting" not in err
    code, _, err = engram(*words, *index, "--count-data", "world:?tokens=1K")
    assert code == 2 and "leave out --count-data" in err


def test_probe_rows(engram, corpus, tmp_path):
    words = ("probe", "rows", "memory", "--data", corpus, "--top", 2, "--controls", 5)
    code, out, _ = engram(*words, "--out", tmp_path / "rows")
    result, lines = ep.load_result(tmp_path / "rows"), out.splitlines()
    assert code == 0 and lines[0] == result.summary()
    assert len(lines) == 2 + len(result.to_frame()) == 2 + 8 * 2
    cells = dict(zip(lines[1].split("\t"), lines[2].split("\t"), strict=True))
    assert cells["slot"] == str(result.slots[0]) and f"[{result.token[0][0]}]" in cells["text"]
    code, out, _ = engram(*words, "--slots", f"2:{result.slots[-1]}", "--by", "gate", "--json")
    document = json.loads(out)
    assert code == 0 and {row["slot"] for row in document["table"]} == {result.slots[-1]}
    code, out, _ = engram(*words, "--ngram", " the boats", "--json")
    assert code == 0 and json.loads(out)["facts"]["rows"] == 4


def test_probe_slots_compression(engram, corpus, tmp_path):
    words = ("probe", "slots", "memory", "--compression")
    code, out, _ = engram(*words, "--data", corpus, "--out", tmp_path / "audit")
    audit = ep.load_result(tmp_path / "audit")
    assert code == 0 and out.splitlines()[0] == audit.summary()
    assert len(out.splitlines()) == 2 + (audit.raw_tokens > 1).sum()
    assert audit.provenance.corpus["documents"] == 24 and audit.occurrences.sum() > 0
    code, out, _ = engram(*words)
    assert code == 0 and out.splitlines()[1] == "compressed_id\traw_tokens\ttexts"


def test_probe_attribute(engram, tmp_path):
    words = ("probe", "attribute", "memory", "--text", TEXT, "--target", " the", "--draws", 20)
    code, out, _ = engram(*words, "--out", tmp_path, "--json")
    document, result = json.loads(out), ep.load_result(tmp_path)
    assert code == 0 and document["summary"] == result.summary() and result.target == "·the"
    shares = {row["component"]: row["contribution"] for row in document["table"]}
    assert sum(shares.values()) == pytest.approx(result.logit)
    assert shares["2_engram_order3_head1"] == pytest.approx(
        result.contribution[result.components.index("2_engram_order3_head1")]
    )
    code, out, _ = engram("probe", "attribute", "plain", "--text", TEXT)
    assert code == 0 and out.splitlines()[-1].startswith("remainder\tremainder\t")


def test_probe_patch(engram, tmp_path):
    other = TEXT.replace("Ostrava", "Varnholm")
    words = ("probe", "patch", "memory", "--text", TEXT, "--target", " the", "--against", " boats")
    words = (*words, "--steps", 2, "--draws", 2, "--check", 3)
    code, out, _ = engram(*words, "--corrupted", other, "--out", tmp_path, "--json")
    document, result = json.loads(out), ep.load_result(tmp_path)
    assert code == 0 and document["summary"] == result.summary() and result.steps == 2
    node, place = result.strongest(1)[0]
    first = document["table"][0]
    assert (first["node"], first["place"]) == (result.nodes[node], result.places[place])
    assert first["estimate"] == pytest.approx(result.estimate[0, node, place])
    pairs = tmp_path / "pairs.jsonl"
    record = {"clean": TEXT, "corrupted": other, "target": " the", "against": " boats"}
    turned = {**record, "target": " boats", "against": " the"}
    pairs.write_text("\n".join(map(json.dumps, (record, turned))))
    code, _, err = engram("probe", "patch", "memory", "--pairs", pairs, "--steps", 1)
    known = result.metric[0, 0] * result.metric[0, 1] < 0  # one of the two is then right
    assert (code, "of none of the 2 pairs" in err) == ((0, False) if known else (2, True))


def test_probe_edit(engram, corpus, tmp_path):
    from engram_model.row_patch import RowPatch

    words = ("probe", "edit", "memory", "--text", "The miller counts", "--answer", " boats")
    code, out, _ = engram(
        *words, "--data", corpus, "--out", tmp_path / "edit", "--method", "closed"
    )
    result, patch = (
        ep.load_result(tmp_path / "edit"),
        RowPatch.load(tmp_path / "edit/patch.safetensors"),
    )
    assert code == 0 and out.splitlines()[0] == result.summary()
    assert result.rows == patch.rows and result.documents == 24


def test_probe_lens_with_twin(engram, corpus, tmp_path):
    words = ("probe", "lens", "memory", "--twin", "plain", "--data", corpus)
    folder = tmp_path / "lens"
    code, out, err = engram(*words, "--out", folder)
    lens, twin = ep.load_result(folder), ep.load_result(folder / "twin")
    difference = ep.load_result(folder / "difference")
    assert code == 0 and "lens of memory: 24 documents" in err
    assert out.splitlines()[0] == difference.summary()
    assert np.allclose(difference.difference, lens.mean - twin.mean)
    assert lens.provenance.corpus["source"]["spec"] == corpus


def test_probe_lens_without_memory(engram, tmp_path):
    words = ("probe", "lens", "memory", "--without-memory", "--text", TEXT)
    code, out, _ = engram(*words, "--out", tmp_path / "lens")
    on, off = (ep.load_result(tmp_path / "lens" / name) for name in (".", "without_memory"))
    difference = ep.load_result(tmp_path / "lens" / "difference")
    assert code == 0 and out.splitlines()[0] == difference.summary()
    assert off.without_memory and not on.without_memory
    assert np.allclose(difference.grids("kl")[1], off.grid("kl"))
    code, _, err = engram(*words, "--twin", "plain")
    assert code == 2 and "a difference is of two lenses" in err


def test_probe_lens_of_one_text(engram):
    code, out, _ = engram("probe", "lens", "plain", "--text", TEXT)
    table = [line.split("\t") for line in out.splitlines()[1:]]
    assert code == 0
    assert table[0] == ["depth", "kl", "low", "high"]
    assert table[-1] == ["3", "0", "–", "–"]  # the last depth is the model itself; one text


def test_probe_slots(engram, corpus, tmp_path):
    folder, index = tmp_path / "slots", tmp_path / "index"
    words = ("probe", "slots", "memory", "--index", index)
    code, out, err = engram(*words, "--text", TEXT, "--data", corpus, "--out", folder)
    trace, load = ep.load_result(folder), ep.load_result(folder / "load")
    lines = out.splitlines()
    assert code == 0 and "counting n-grams: 24 documents" in err
    assert (lines[0], lines[-1]) == (trace.summary(), load.summary())
    cells = dict(zip(lines[1].split("\t"), lines[2 + 5 * 4 + 3].split("\t"), strict=True))
    assert (cells["position"], cells["layer"], cells["order"]) == ("5", "2", "3")
    assert cells["rows"] == " ".join(map(str, trace.slots[1, 5, 2:]))
    assert cells["tenants"] == " ".join(map(str, trace.tenants[1, 5, 2:]))
    code, out, err = engram(*words, "--json")  # the index is there: no corpus is read again
    assert code == 0 and "counting" not in err
    table = json.loads(out)["table"]
    assert [row["unused"] for row in table] == load.unused.ravel().tolist()
    code, _, err = engram(*words, "--data", f"{corpus} + world:?tokens=1K")
    assert code == 2 and "holds the index of another corpus" in err
    (index / "counts-2.npy").write_bytes(b"")
    code, _, err = engram(*words)
    assert code == 3 and "counts-2.npy is damaged" in err.splitlines()[-1]


def test_probe_slots_of_a_text_alone(engram):
    code, out, _ = engram("probe", "slots", "memory", "--text", TEXT)
    assert code == 0 and out.splitlines()[1].split("\t")[-1] == "norms"


def test_probe_slots_of_an_ngram_and_by_number(engram, corpus, tmp_path):
    words = ("probe", "slots", "memory", "--data", corpus, "--out", tmp_path / "rows")
    code, out, _ = engram(*words, "--ngram", " of Varnholm")
    found = ep.load_result(tmp_path / "rows")
    assert code == 0 and out.splitlines()[0] == found.summary()
    assert found.own_reads.sum() > 0 and found.provenance.command.startswith("engram probe slots")
    cells = [line.split("\t")[4] for line in out.splitlines()[2:]]
    assert cells == [str(slot) for slot in found.slots]
    code, out, err = engram(*words, "--rows", f"2:{found.slots[-1]}", "--json")
    assert code == 0, err
    [row] = json.loads(out)["table"]
    assert row["reads"] == found.reads[-1] and row["layer"] == 2


def test_probe_cka(engram, corpus, tmp_path):
    words = ("--twin", "plain", "--data", corpus, "--k", 2, "--permutations", 5)
    code, out, _ = engram("probe", "cka", "memory", *words, "--out", tmp_path / "cka")
    result = ep.load_result(tmp_path / "cka")
    assert code == 0 and result.positions == "sampled"  # the corpus knows no entities
    assert out.splitlines()[0] == result.summary()
    assert (result.model_a, result.model_b) == ("memory", "plain")


def test_probe_cka_with_itself_opens_it_once(engram, corpus):
    words = ("--twin", "memory", "--data", corpus, "--k", 1, "--permutations", 0, "--no-sinks")
    code, out, err = engram("probe", "cka", "memory", *words)
    rows = [line.split("\t") for line in out.splitlines()[1:]]
    assert code == 0 and err.count("opening") == 1 and "put back" not in out
    assert rows[0] == ["layer", "like", "low", "high", "neighbours", "procrustes", "rsa"]
    assert [row[1] for row in rows[1:]] == ["0", "1", "2"]


def test_probe_cka_over_training(engram, pair, corpus, tmp_path):
    steps = []
    for place, step in ((1, 10), (2, 20)):
        folder = shutil.copytree(pair / "memory", tmp_path / f"step-{place}")
        log = {"step": step, "tokens_per_step": 64}
        (folder / "training_log.json").write_text(json.dumps(log))
        steps.append(folder)
    words = ("--twin", "plain", "--null", "plain", "--data", corpus, "--k", 2)
    last = ("probe", "cka", steps[1], *words, "--steps", steps[0])
    code, out, _ = engram(*last, "--out", tmp_path / "out", "--json")
    document, result = json.loads(out), ep.load_result(tmp_path / "out")
    assert code == 0 and document["kind"] == "cka-training"
    assert result.checkpoints == ("step-1", "step-2") and result.null_model == "plain"
    assert [row["tokens"] for row in document["table"]] == [640] * 3 + [1280] * 3
    assert document["table"][4]["like"] == pytest.approx(result.soft_index[1, 1])
    code, _, err = engram("probe", "cka", steps[1], *words)
    assert code == 2 and "--null is for --steps" in err


def test_probe_suppress(engram, tmp_path):
    words = ("probe", "suppress", "memory", "--tasks", "arith,phrases", "--items", 3)
    code, out, err = engram(*words, "--out", tmp_path, "--json")
    document, result = json.loads(out), ep.load_result(tmp_path)
    assert code == 0 and "asking before and after: 12 items" in err
    assert document["summary"] == result.summary()
    row = document["table"][1]
    assert (row["task"], row["items"]) == ("phrases", 3)
    assert row["change"] == pytest.approx(result.change[1]) and row["chance"] == 0.25
    assert result.provenance.command.startswith("engram probe suppress memory")


def test_probe_suppress_a_part_on_questions_of_ones_own(engram, tmp_path):
    rows = [
        {"prompt": f"{i} boats at", "answer": " dusk", "options": [" dusk", " noon"], "suite": "s"}
        for i in range(4)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"prompt": "a", "answer": f" {x}", "relation": "r"} for x in "bcdef"]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = ("--data", f"json:{tmp_path / 'own.jsonl'}", "--facts", tmp_path / "facts.jsonl")
    part = ("--how", "mean", "--layers", 2, "--orders", "2,3", "--heads", 1, "--slots", "2:430,2:6")
    code, out, err = engram(
        "probe", "suppress", "memory", *own, *part, "--out", tmp_path / "out", "--seed", 1
    )
    assert code == 0, err
    result = ep.load_result(tmp_path / "out")
    assert result.tasks == ("s", "facts") and result.items.tolist() == [4, 5]
    assert result.part == "2 rows, head 1 of the memory of layer 2"
    assert [line.split("\t")[0] for line in out.splitlines()[1:]] == ["task", "s", "facts"]


SPANS = "world:?seed=0&split=valid&tokens=20K"


def test_probe_linear(engram, tmp_path):
    words = ("probe", "linear", "memory", "--data", SPANS, "--label", "mechanism", "--folds", 2)
    small = ("--positions", 80, "--depths", "0,3", "--documents", 60, "--twin", "plain")
    code, out, err = engram(*words, *small, "--out", tmp_path / "linear", "--json")
    document, result = json.loads(out), ep.load_result(tmp_path / "linear")
    assert code == 0 and document["summary"] == result.summary()
    assert result.at == "next" and 60 < result.positions <= 80 and result.twin == "plain"
    table = {(row["source"], row["depth"]): row for row in document["table"]}
    assert len(table) == len(result.sources) == 10  # 4 baselines, 3 models at 2 depths
    accuracy = [table["memory", depth]["accuracy"] for depth in (0, 3)]
    assert accuracy == pytest.approx(result.curve()[1].tolist())
    assert result.provenance.corpus["source"]["spec"] == SPANS
    assert "reading mechanism: 10 probes" in err


def test_probe_routing(engram, tmp_path):
    words = ("probe", "routing", "memory", "--data", SPANS, "--documents", 3, "--twin", "plain")
    few = ("--changes", "zero,noise", "--permutations", 3)
    code, out, err = engram(*words, *few, "--out", tmp_path / "routing", "--json")
    document, result = json.loads(out), ep.load_result(tmp_path / "routing")
    twin = ep.load_result(tmp_path / "routing" / "twin")
    assert code == 0 and document["summary"] == result.summary()
    assert result.changes == ("zero", "noise") and twin.changes == ()
    assert len(document["table"]) == len(result.layers) + len(twin.layers)
    first = document["table"][0]
    assert first["kept zero"] == pytest.approx(result.kept[0, 0, 0])
    assert result.provenance.corpus["source"]["spec"] == SPANS
    assert "routing of plain: 3 documents" in err


def test_probe_intervene(engram, tmp_path):
    words = ("probe", "intervene", "memory", "--text", TEXT, "--edit", "gate=0.9@pos=2-3")
    words += ("--edit", "swap=New York@pos=4", "--generate", 2, "--controls", 2)
    code, out, _ = engram(*words, "--out", tmp_path, "--json")
    document, found = json.loads(out), ep.load_result(tmp_path)
    assert code == 0 and document["summary"] == found.summary()
    assert found.edits == ("gate=0.9@pos=2-3", "swap=New York@pos=4")
    assert found.generated.shape == (2, 2) and found.control_kl.shape[0] == 3
    assert [row["token"] for row in document["table"]] == list(found.tokens)
    assert document["table"][0]["helped"] is None
    code, _, err = engram(*words[:5], "--edit", "melt")
    assert code == 2 and "no edit 'melt'" in err


def test_probe_attention(engram, tmp_path):
    words = ("probe", "attention", "memory", "--text", TEXT, "--twin", "plain")
    few = ("--changes", "zero", "--sequences", 2, "--length", 5)
    code, out, _ = engram(*words, *few, "--out", tmp_path / "attention", "--json")
    document, result = json.loads(out), ep.load_result(tmp_path / "attention")
    assert code == 0 and document["summary"] == result.summary()
    assert result.twin == "plain" and result.pattern.shape[-1] == len(result.tokens)
    assert len(document["table"]) == len(result.scores) * len(result.layers)
    row = next(r for r in document["table"] if (r["score"], r["layer"]) == ("near", 1))
    assert row["zero"] == pytest.approx(result.layer_change[0, result.score("near"), 1])


def test_probe_heads(engram, tmp_path):
    words = ("probe", "heads", "memory", "--text", TEXT, "--draws", 2, "--out", tmp_path, "--json")
    code, out, _ = engram(*words)
    document, result = json.loads(out), ep.load_result(tmp_path)
    assert code == 0 and document["summary"] == result.summary() and result.draws == 2
    assert len(document["table"]) == len(result.layers) * result.heads
    row = next(r for r in document["table"] if (r["layer"], r["head"]) == (2, 1))
    assert row["moved"] == pytest.approx(float(result.heads_moved()[2, 1]))
    code, _, err = engram(*words[:5], "--how", "melt")
    assert code == 2 and "no change 'melt'" in err


def test_eval(engram, corpus):
    code, out, _ = engram("eval", "memory", "--data", corpus, "--json")
    losses = json.loads(out)["sources"]
    assert code == 0 and losses["all"]["documents"] == 24
    shown = engram("eval", "memory", "--data", corpus)[1].splitlines()
    assert (
        shown[0] == f"losses on {corpus}"
        and shown[-1].split("\t")[1] == f"{losses['all']['loss']:.4f}"
    )


def test_eval_out(engram, bad, tmp_path):
    rows = [{"prompt": "a", "answer": f" {x}", "relation": "r"} for x in "bcdef"]
    (bad / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "eval"
    words = ("--tasks", "arith", "--facts", bad / "facts.jsonl", "--items", 4, "--out", out)
    code, shown, err = engram("eval", "memory", *words)
    assert code == 0 and "arith, " in err and "(4 items each, at most)" in err
    config, metrics = (json.loads((out / f"{n}.json").read_text()) for n in ("config", "metrics"))
    assert config["checkpoint"] == "memory" and config["command"].startswith("engram eval memory")
    assert len(config["weights_sha256"]["model.safetensors"]) == 64
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert [item["suite"] for item in items] == ["arith"] * 4 + ["facts"] * 4
    lines = [line.split("\t") for line in shown.splitlines()]
    accuracy = metrics["tasks"]["facts"]["all"]["all"]["accuracy"]
    assert ["facts", "all", f"{accuracy:.3f}"] in [line[:3] for line in lines]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[0]["event"] == "answering begins" and log[-1]["event"] == "answering is done"
    code, _, err = engram("eval", "memory", *words)
    assert code == 2 and "is not empty" in err
    again = json.loads(engram("eval", "memory", *words[:-2], "--json")[1])
    assert {name: again[name] for name in metrics} == metrics


def test_compare(engram, corpus, tmp_path):
    for name in ("memory", "plain"):
        engram("eval", name, "--data", corpus, "--out", tmp_path / name)
    file = tmp_path / "difference.json"
    code, shown, _ = engram(
        "compare", tmp_path / "memory", "--with", tmp_path / "plain", "--out", file
    )
    [loss, *_] = json.loads(file.read_text())["differences"]
    assert code == 0 and loss["what"] == "loss, all" and loss["units"] == 24
    assert loss["difference"] == pytest.approx(loss["first"] - loss["second"])
    assert shown.splitlines()[1].split("\t")[:2] == ["loss, all", f"{loss['first']:.4f}"]


def test_compare_of_trainings(engram, tmp_path):
    log = {"preset": "p", "overrides": {}, "step": 1}
    options = dict(tokens=1, context=None, batch=1, accumulate=1, valid="v")
    for name in ("a0", "a1", "b0", "b1"):
        (tmp_path / name).mkdir()
        loss = {"eval_loss": (1.5 if name[0] == "a" else 2.5) + int(name[1]) / 100, "step": 1}
        run = {**log, "options": {**options, "seed": int(name[1])}, "history": [loss]}
        (tmp_path / name / "training_log.json").write_text(json.dumps(run))
    a, b = ([tmp_path / f"{side}{seed}" for seed in (0, 1)] for side in "ab")
    code, out, _ = engram("compare", *a, "--with", b[0], "--with", b[1])
    assert code == 0 and out.splitlines()[1].split("\t")[1:4] == ["1.5050", "2.5050", "-1.0000"]
    assert out.splitlines()[1].split("\t")[6] == "less"


def test_world(engram, tmp_path):
    code, out, _ = engram("world", "--out", tmp_path, "--tokens", "2K")
    paths = out.split()
    assert code == 0 and paths[:2] == [f"{tmp_path}/train.jsonl", f"{tmp_path}/valid.jsonl"]
    assert f"{tmp_path}/suites/knowledge.jsonl" in paths
    assert json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["family"]


def test_tokenize_then_train(engram, corpus, pair, tmp_path):
    tokens, run = tmp_path / "tokens", tmp_path / "run"
    tokenizer = ("--tokenizer", pair / "plain")
    code, out, _ = engram("tokenize", "--data", corpus, *tokenizer, "--out", tokens)
    assert code == 0 and "of 24 documents" in out
    fields = ("--set", "num_hidden_layers=2", "--set", "engram_layer_ids=[0]")
    size = ("--tokens", "256", "--batch", 2, "--context", 32)
    code, out, err = engram(
        "train", "engram-tiny", "--data", f"tokens:{tokens}", *tokenizer, *size, *fields,
        "--out", run,
    )  # fmt: skip
    assert (code, out.strip()) == (0, str(run)), err
    assert json.loads(engram("info", run, "--json")[1])["memory"]["layers"] == [0]


def test_commands_print_colours_only_in_a_terminal(engram):
    for words in (("info", "memory"), ("doctor",), ("--help",)):
        code, out, err = engram(*words)
        assert code == 0 and "\x1b" not in out + err


@pytest.fixture
def bad(pair, tmp_path):
    """Damaged things by name."""
    for name in ("truncated", "retokenized"):
        shutil.copytree(pair / "memory", tmp_path / name)
    weights = tmp_path / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    _swap_two_tokens(tmp_path / "retokenized" / "tokenizer.json")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "no_question.jsonl").write_text('{"prompt": "Where?"}')
    (tmp_path / "latin1.txt").write_bytes("Göteborg".encode("latin-1"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("ten years of work")
    return tmp_path


def _swap_two_tokens(file):
    tokenizer = json.loads(file.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(tokenizer))


def probe(*words):
    return ("probe", "lens", "memory", *words)


def suppress(*words):
    return ("probe", "suppress", "memory", *words)


ERRORS = {
    "no checkpoint": (("info", "nowhere"), 3, "no checkpoint at nowhere; bundled ones: memory"),
    "not a checkpoint": (("info", "{bad}/full"), 3, "it has no config.json"),
    "truncated weights": (("eval", "{bad}/truncated"), 3, "is damaged: "),
    "truncated weights, info": (("info", "{bad}/truncated"), 3, "is damaged: "),
    "changed tokenizer": (("eval", "{bad}/retokenized"), 3, "not the one the model was trained"),
    "empty corpus": (probe("--data", "text:{bad}/empty.txt"), 3, "is empty"),
    "no facts": (("eval", "memory", "--facts", "{bad}/latin1.txt"), 3, "not UTF-8"),
    "no file of facts": (("eval", "memory", "--facts", "{bad}/none"), 3, "cannot be read"),
    "no such suite": (("eval", "memory", "--tasks", "nope"), 2, "no suite 'nope'"),
    "no such device": (("eval", "memory", "--device", "tpu"), 2, "no device 'tpu'"),
    "empty corpus, report": (
        ("report", "memory", "--data", "text:{bad}/empty.txt", "--out", "{bad}/r"), 3, "is empty"
    ),
    "not UTF-8": (probe("--data", "text:{bad}/latin1.txt"), 3, "not UTF-8 at byte 1"),
    "no such file": (probe("--data", "text:{bad}/none.txt"), 3, "no such file"),
    "no such kind": (probe("--data", "csv:{bad}/none.csv"), 2, "csv: is no kind of corpus"),
    "text too long": (("probe", "gates", "memory", "--text", "boats " * 300), 2, "reads 192"),
    "empty text": (("probe", "gates", "memory", "--text", " "), 2, "the text is empty"),
    "no memory": (("probe", "gates", "plain", "--text", "boats"), 2, "has no memory"),
    "slots of nothing": (("probe", "slots", "memory"), 2, "give one of --text, --ngram"),
    "slots of rows of no layer": (
        ("probe", "slots", "memory", "--rows", "0:1,2"),
        2,
        "--rows 0:1,2: 2 has no layer",
    ),
    "index of a text": (
        ("probe", "gates", "memory", "--text", "boats", "--count-data", "world:"),
        2,
        "give --data, not --text",
    ),
    "rows twice": (("probe", "rows", "memory", "--slots", "0:1", "--ngram", "a b"), 2, "not both"),
    "compression of a text": (
        ("probe", "slots", "memory", "--compression", "--text", "boats"),
        2,
        "--text and --compression: give one of them",
    ),
    "no index": (("probe", "slots", "memory", "--index", "{bad}"), 3, "no index in"),
    "index among other things": (
        ("probe", "slots", "memory", "--data", "world:", "--index", "{bad}/full"),
        2,
        "is not empty",
    ),
    "text and corpus": (probe("--text", "a", "--data", "world:"), 2, "not both"),
    "suppress without memory": (
        ("probe", "suppress", "plain", "--tasks", "arith"), 2, "nothing to suppress"
    ),
    "no suite to suppress on": (suppress("--tasks", "nope"), 2, "no suite 'nope'"),
    "no way to suppress": (suppress("--tasks", "arith", "--how", "off"), 2, "'off' is no way"),
    "no such order": (
        suppress("--tasks", "arith", "--how", "mean", "--orders", "7"), 2, "order 7 is not among"
    ),
    "orders are no numbers": (suppress("--orders", "two"), 2, "--orders two: give whole numbers"),
    "slots of no layer": (suppress("--slots", "2:1,5"), 2, "write LAYER:ROW"),
    "no questions in a text": (
        suppress("--data", "text:{bad}/empty.txt"), 2, "json:FILE with prompt, answer and options"
    ),
    "no question": (suppress("--data", "json:{bad}/no_question.jsonl"), 3, "is no question"),
    "k too large": (("probe", "cka", "memory", "--twin", "plain", "--k", "9"), 2, "has 3 layers"),
    "no spans": (("probe", "linear", "memory", "--data", "text:{bad}/full/*"), 3, "no column 'spa"),
    "no such label": (
        ("probe", "linear", "memory", "--data", SPANS, "--label", "hue"), 2, "has a label hue"
    ),
    "no such place": (("probe", "linear", "memory", "--at", "end"), 2, "'next' or 'entity'"),
    "no depths": (("probe", "linear", "memory", "--depths", "all"), 2, "give whole numbers"),
    "out holds other things": (probe("--text", "a", "--out", "{bad}/full"), 2, "is not empty"),
    "out is a file": (probe("--text", "a", "--out", "{bad}/empty.txt"), 2, "is a file"),
    "report over other things": (("report", "memory", "--out", "{bad}/full"), 2, "no report"),
    "no such command": (("nope",), 2, "No such command 'nope'; see `engram --help`"),
    "no such option": (("info", "memory", "--fast"), 2, "No such option"),
    "no one token": (
        ("probe", "attribute", "plain", "--text", "a", "--target", "boats at"), 2, "not one"
    ),
    "target alone": (
        ("probe", "attribute", "plain", "--text", "a", "--target", "b", "--against", "b"),
        2, "give two different ones",
    ),
    "missing option": (("probe", "attribute", "memory"), 2, "Missing option '--text'"),
    "one text to patch": (("probe", "patch", "memory", "--text", "a"), 2, "needs --corrupted"),
    "two kinds of pairs": (
        ("probe", "patch", "memory", "--text", "a", "--data", "world:"),
        2,
        "one of --text, --pairs and --data",
    ),
    "corrupted alone": (("probe", "patch", "memory", "--corrupted", "a"), 2, "go with --text"),
    "pairs of two worlds": (
        ("probe", "patch", "memory", "--data", "world: + world:"),
        2,
        "give a world:",
    ),
    "no number": (("world", "--out", "{bad}/w", "--tokens", "many"), 2, "no number of tokens"),
    "no such field": (
        ("train", "engram-tiny", "--data", "world:", "--out", "{bad}/t", "--set", "depth=3"),
        2, "--set depth=3",
    ),
    "no such preset": (
        ("train", "engram-huge", "--data", "world:?tokens=1K", "--out", "{bad}/t"), 2, "no preset"
    ),
    "no such control": (
        ("train", "engram-tiny", "--data", "world:", "--out", "{bad}/t", "--control", "none"),
        2, "no control 'none'",
    ),
    "nothing to compare": (("compare", "{bad}/full", "--with", "{bad}/full"), 3, "no finished"),
    "nothing to explore": (("explore", "{bad}/full"), 3, "it has no config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_one_line_and_a_code(name, engram, bad):
    words, code, message = ERRORS[name]
    words = [word.format(bad=bad) for word in words]
    got, out, err = engram(*words)
    last = err.rstrip("\n").splitlines()[-1]
    assert got == code, err
    assert last.startswith("engram: ") and message in last
    assert out == "" and "Traceback" not in err
    assert err.count("engram: ") == 1


def test_taken_port(engram):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = engram("explore", "memory", "--port", port, "--no-browser")
    assert code == 2 and f"engram: port {port} of 127.0.0.1 cannot be used" in err


def test_nothing_is_left_behind_by_an_error(engram, bad):
    engram("report", "memory", "--data", f"text:{bad}/empty.txt", "--out", f"{bad}/fresh")
    assert not (bad / "fresh").exists()
    assert (bad / "full" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: No space left", 1),
        (MemoryError(), "out of memory", 1),
        (RuntimeError("CUDA out of memory. Tried to"), "out of memory", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (KeyError("x"), "internal error, KeyError", 1),
    ],
)
def test_other_errors(error, message, code):
    line, got = explain(error)
    assert message in line and "\n" not in line and got == code


def test_interrupted(engram, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("engram_app.commands.info.describe", stop)
    assert engram("info", "memory") == (130, "", "engram: interrupted; what was done is kept\n")


def test_debug_shows_where(engram, monkeypatch):
    monkeypatch.setenv("ENGRAM_DEBUG", "1")
    with pytest.raises(Exception, match="no checkpoint at nowhere"):
        engram("info", "nowhere")


@pytest.mark.parametrize(("text", "value"), [("1000", 1000), ("1.5K", 1500), ("60m", 60_000_000)])
def test_number(text, value):
    assert number(text) == value


def _options(command, name="engram"):
    """Every command with its options, as `engram probe lens --twin`."""
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            yield name, max(parameter.opts, key=len)
    for sub, inner in getattr(command, "commands", {}).items():
        yield name, sub
        yield from _options(inner, f"{name} {sub}")


def test_documentation_names_every_command_and_option():
    pages = (DOCS / "cli.md").read_text()
    found = list(_options(typer.main.get_command(app)))
    assert len(found) > 40
    for command, option in found:
        negative = option.replace("--", "--no-", 1)  # flags that are on
        assert option in pages or negative in pages, f"{command} {option}"


def test_any_causal_model_can_be_looked_at(engram, tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(n_embd=32, n_layer=3, n_head=2, n_positions=192)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(
        tmp_path / "gpt"
    )
    tokenizer.save_pretrained(tmp_path / "gpt")
    words = ("probe", "lens", "memory", "--twin", tmp_path / "gpt", "--text", TEXT)
    code, out, err = engram(*words)
    assert code == 0, err
    assert out.splitlines()[1].split("\t")[1:3] == ["kl memory", "kl gpt"]
    (tmp_path / "gpt" / "model.safetensors").write_bytes(b"")
    code, _, err = engram(*words)
    assert code == 3 and "is damaged: its header cannot be read" in err.splitlines()[-1]
