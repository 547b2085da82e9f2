"""Tiny random models, and a tokenizer trained on a few invented sentences."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():  # the kernels then run in Triton's interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

TEXT = (
    "The harbour master of Varnholm counts the boats at dusk. By the turning of the wheel, "
    "the miller of Ostrava said, nothing is lost. In 1923 the bridge over the Lune was 41 m long. "
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Byte-level BPE of 400 tokens, saved and loaded as a checkpoint's is."""
    from transformers import PreTrainedTokenizerFast

    from engram_model.bpe import train_bpe

    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe([TEXT] * 20, 400).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """Function: config fields -> a random model in which every part matters.

    All weights are drawn wide: with the usual small ones the streams mix evenly and the memory,
    whose convolution starts at zero, adds next to nothing, so that little could fail.
    """
    import torch

    def make(streams: int = 4, memory_layers=(0, 2), seed: int = 0, layers: int = 3, **fields):
        from engram_model.training.train import new_model

        overrides = dict(
            hidden_size=32,
            num_hidden_layers=layers,
            engram_layer_ids=list(memory_layers),
            engram_n_heads=2,
            engram_head_dim=8,
            engram_vocab_size=211,
            hc_mult=streams,
        )
        model = new_model("engram-tiny", tokenizer, {**overrides, **fields}, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                wide = weight.ndim > 1 or name.endswith(("base", "bias"))
                if wide:
                    weight.normal_(std=1.0 if name.endswith("base") else 0.2, generator=generator)
                elif "norm" in name or name.endswith(("q_weight", "k_weight")):
                    weight.uniform_(0.5, 1.5, generator=generator)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_qwen(tokenizer):
    """Function: config fields -> a random `qwen4_exp` model in which every part matters."""
    import torch
    from transformers import Qwen4ExpForCausalLM, Qwen4ExpTextConfig

    def make(seed: int = 0, **fields):
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in
                   ("bos", "eos", "pad")}  # fmt: skip
        sizes = dict(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4,
            max_position_embeddings=128, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
            linear_num_value_heads=4, moe_intermediate_size=16, shared_expert_intermediate_size=16,
            num_experts=4, num_experts_per_tok=2, hc_count=4, hc_lowrank=8,
            ple_layer_ids=[1, 3], ple_embed_dim=32, heads_per_ngram=2, ngram_vocab_size_base=211,
            make_ngram_vocab_size_divisible_by=8, split_ngram_parts=4,
            indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8,
            indexer_compress_ratio=4,
        )  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
        rope["mrope_section"] = [1, 1, 2]
        config = Qwen4ExpTextConfig(**{**sizes, **special, "rope_parameters": rope, **fields})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Qwen4ExpForCausalLM(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.2, generator=generator)
                elif "norm" in name:
                    weight.uniform_(-0.5, 0.5, generator=generator)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def ids(tokenizer):
    """[2, 24] token ids of text, `<bos>` first."""
    import torch

    encoded = tokenizer([TEXT, TEXT[57:] + TEXT], add_special_tokens=False)["input_ids"]
    return torch.tensor([[tokenizer.bos_token_id, *row[:23]] for row in encoded])


def pytest_sessionfinish(session, exitstatus):
    """In CI a skipped test is a failed run: whatever it needed should have been there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker: its reports are counted where they are gathered
        return
    if os.environ.get("CI") and exitstatus == 0 and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
