"""Checkpoints: what opens, and one clear line for everything that must not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import engram_model as em
from engram_model.errors import CheckpointError


@pytest.fixture(scope="module")
def saved(make_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    make_model(2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def refused(path, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        em.load(path)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_loads_as_saved(saved, make_model, ids):
    model, tokenizer = em.load(saved)
    assert model.dtype == torch.float32 and not model.training
    with torch.no_grad():
        assert torch.equal(model(ids).logits, make_model(2)(ids).logits)
    assert tokenizer.bos_token_id == ids[0, 0]


def test_dtype_and_name(saved, monkeypatch):
    monkeypatch.setenv("ENGRAM_CHECKPOINTS", str(saved.parent))
    model, _ = em.load("tiny", dtype=torch.bfloat16, device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.model.layers[1].attn_hc.fn.dtype == torch.float32  # mixing stays exact


def test_wrong_path(tmp_path):
    refused(tmp_path / "none", "no checkpoint at .*none; bundled ones:")
    refused(tmp_path, "has no config.json")


def test_truncated_weights(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(copy, "model.safetensors is damaged: .* bytes where .* were written")


def test_weights_without_a_header(copy):
    (copy / "model.safetensors").write_bytes(b"nonsense")
    refused(copy, "its header cannot be read")


def test_missing_weights(copy):
    (copy / "model.safetensors").unlink()
    refused(copy, "model.safetensors is missing")


def test_damaged_config(copy):
    (copy / "config.json").write_text("{")
    refused(copy, "config.json is damaged")
    (copy / "config.json").write_text("[]")
    refused(copy, "holds a None model")


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}'])
def test_damaged_index(copy, content):
    (copy / "model.safetensors.index.json").write_text(content)
    refused(copy, "index.json is damaged")


def test_weights_of_another_shape(copy):
    edit(copy, "model.layers.0.engram.embed.weight", lambda tensor: tensor[:-1].contiguous())
    refused(copy, "1 mismatched keys in the weights, first model.layers.0.engram.embed.weight")


def test_tokenizer_without_its_special_tokens(copy):
    (copy / "tokenizer_config.json").write_text("{}")
    refused(copy, "the tokenizer's bos_token_id is None, the model's 0")


CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
BUNDLED = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_run_in_bfloat16(name):
    """A GPU's default; grouped products of 16-bit experts ask more of their widths."""
    model, tokenizer = em.load(name, dtype=torch.bfloat16, device="cpu")
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("The boat")["input_ids"]]])
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()


def test_another_kind_of_model(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "llama"}))
    refused(copy, "holds a 'llama' model")


def swap_two_ids(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def drop_merges(content):
    content["model"]["merges"] = content["model"]["merges"][:9]


@pytest.mark.parametrize("change", [swap_two_ids, drop_merges])
def test_changed_tokenizer(copy, change):
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    refused(copy, "the tokenizer is not the one the model was trained with")


def edit(copy, name, change):
    file = copy / "model.safetensors"
    weights = load_file(file)
    weights[name] = change(weights[name])
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("constant", ["multipliers", "primes", "offsets"])
def test_changed_hash_constants(copy, constant):
    edit(copy, f"model.layers.0.engram.{constant}", lambda tensor: tensor + 2)
    refused(copy, f"hash {constant} of layer 0 differ")


def test_changed_compression(copy):
    edit(copy, "model.layers.2.engram.compression", lambda tensor: tensor.flip(0))
    refused(copy, "compression map of layer 2 does not match its checksum")


def test_changed_seed_in_the_config(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "engram_seed": 1}))
    refused(copy, "hash multipliers of layer 0 differ")


def test_missing_tensor(copy):
    file = copy / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.engram.wkv.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    refused(copy, "1 missing keys in the weights, first model.layers.0.engram.wkv.weight")
