"""Results outlive the model: saved, opened elsewhere, shown in a notebook."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

import engram_model as em
import engram_probes as ep
from engram_model.errors import CheckpointError
from engram_probes.provenance import checkpoint_sha256, weights_sha256
from engram_probes.schema import result_schema

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(
    params=[
        "gates",
        "lens",
        "text_lens",
        "alignment",
        "training_alignment",
        "attribution",
        "difference",
        "suppression",
        "slots",
        "row_load",
        "rows_of_ngram",
        "contexts",
        "audit",
        "linear",
        "patching",
        "routing",
        "attention",
        "predictions",
        "token_comparison",
        "head_map",
    ]
)
def result(request):
    if request.param == "difference":
        lens, twin = (request.getfixturevalue(name) for name in ("lens", "twin_lens"))
        return lens.minus(twin)
    return request.getfixturevalue(request.param)


def test_round_trip_is_exact(result, tmp_path):
    opened = ep.load_result(result.save(tmp_path / "run"))
    assert type(opened) is type(result)
    assert opened.arrays().keys() == result.arrays().keys()
    for name, array in result.arrays().items():
        assert opened.arrays()[name].dtype == array.dtype
        np.testing.assert_array_equal(opened.arrays()[name], array, err_msg=name)
    for field in fields(result):
        if field.name not in result.axes:
            assert getattr(opened, field.name) == getattr(result, field.name), field.name
    assert opened.to_frame().equals(result.to_frame())


def test_json_keeps_to_the_published_schema(result, tmp_path):
    schema = json.loads((DOCS / "result.schema.json").read_text())
    document = json.loads((result.save(tmp_path) / result.files[0]).read_text())
    jsonschema.validate(document, schema)
    for wrong in ({**document, "fields": {}}, {**document, "kind": "row"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_published_schema_is_that_of_the_classes():
    """`make schema` writes it."""
    published = json.loads((DOCS / "result.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(published)
    assert published == json.loads(json.dumps(result_schema()))
    kept = [
        *(DOCS / "results").rglob("result.json"),
        *(DOCS.parent / "checkpoints").rglob("tuned_lens.json"),
    ]
    assert len(kept) > 30
    for path in kept:
        document = json.loads(path.read_text())
        of_kind = {**published["$defs"][document["kind"]], "$defs": published["$defs"]}
        jsonschema.validate(document, of_kind)


def test_opens_without_torch(gates, tmp_path):
    folder = gates.save(tmp_path / "run")
    code = (
        "import sys, engram_probes as ep; "
        f"result = ep.load_result({str(folder)!r}); result.figure(); print(result.summary()); "
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=_environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == gates.summary()


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}


def test_views_are_short_and_harmless(result):
    assert "\n" not in repr(result) and len(repr(result)) < 200
    html = result._repr_html_()
    assert "<script" not in html and len(html) < 4000
    assert result.summary().endswith(".") and "\n" not in result.summary()


def test_a_token_that_is_a_tag_is_escaped(engram, tokenizer):
    result = ep.gate_map(engram, tokenizer, "<b>")
    assert "<b>" not in result._repr_html_().replace("<br>", "")
    assert "&lt;" in result.figure().to_json() or "\\u0026lt;" in result.figure().to_json()


def test_a_text_of_special_tokens_only_is_drawn_and_said(engram, tokenizer):
    for probe in (ep.gate_map, ep.logit_lens, ep.inspect_slots):
        result = probe(engram, tokenizer, tokenizer.eos_token)
        assert "special" in result.summary()
        assert result.figure().layout.meta["alt"]
        assert not result.to_frame().empty


def test_provenance_says_what_was_measured(gates, engram, tokenizer):
    from engram_model.compression import tokenizer_sha256

    origin = gates.provenance
    assert origin.tokenizer_sha256 == tokenizer_sha256(tokenizer)
    assert len(origin.models[0]["weights_sha256"]) == 64
    assert origin.models[0]["dtype"] == "float32" and origin.versions["torch"]
    named = gates.with_provenance(command="engram probe gates")
    assert named.provenance.command == "engram probe gates" and origin.command == ""
    assert named.gate is gates.gate


def test_a_bridge_has_the_models_checksum(engram, tokenizer):
    import engram_model as em
    from engram_probes.provenance import weights_sha256

    bridge = em.hooked(engram, tokenizer)
    assert weights_sha256(bridge.original_model) == weights_sha256(engram)
    again = em.hooked(bridge.original_model, tokenizer).original_model
    assert weights_sha256(again) == weights_sha256(engram)


def test_weights_have_one_checksum_in_any_dtype(make_model):
    import torch

    from engram_probes.provenance import weights_sha256

    model = make_model().to(torch.bfloat16)
    before = weights_sha256(model)
    assert weights_sha256(model.float()) == before
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert weights_sha256(model) != before


def test_json_explains_the_arrays(alignment, tmp_path):
    document = json.loads((alignment.save(tmp_path) / "result.json").read_text())
    assert document["kind"] == "cka" and document["summary"] == alignment.summary()
    assert document["arrays"]["matrix"]["axes"] == ["row", "column"]
    assert document["arrays"]["soft_index"]["unit"] == "layer of model_b"


def test_saving_again_replaces_and_leaves_other_files(gates, lens, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    gates.save(tmp_path)
    lens.save(tmp_path)
    assert isinstance(ep.load_result(tmp_path), ep.LogitLens)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["arrays.safetensors", "notes.txt", "result.json"]


def test_damage_is_noticed(gates, tmp_path):
    folder = gates.save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no result in"):
        ep.load_result(tmp_path / "elsewhere")
    arrays = (folder / "arrays.safetensors").read_bytes()
    (folder / "arrays.safetensors").write_bytes(arrays[:-8])
    with pytest.raises(CheckpointError, match="checksum"):
        ep.load_result(folder)
    (folder / "arrays.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        ep.load_result(folder)
    document = json.loads((folder / "result.json").read_text())
    for changed, message in [({"schema": 99}, "schema 99"), ({"kind": "pie"}, "not the result")]:
        (folder / "result.json").write_text(json.dumps({**document, **changed}))
        with pytest.raises(CheckpointError, match=message):
            ep.load_result(folder)


def test_wrong_shapes_are_refused(gates):
    from dataclasses import replace

    with pytest.raises(ValueError, match="layer, position, stream"):
        replace(gates, gate=gates.gate[0])
    with pytest.raises(ValueError, match="tokens"):
        replace(gates, tokens=gates.tokens[:-1])
    with pytest.raises(ValueError, match="read-only"):
        gates.gate[0, 0, 0] = 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checksum_of_a_checkpoint_is_that_of_its_model(make_model, tokenizer, tmp_path, dtype):
    make_model(streams=2).to(dtype).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert checkpoint_sha256(tmp_path) == weights_sha256(em.load(tmp_path)[0])


def test_checksum_of_a_checkpoint_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint_sha256(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint_sha256(tmp_path / "gone")
