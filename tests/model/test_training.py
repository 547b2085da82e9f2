"""Training: the optimiser, balancing, and a run that survives a kill and a full disk."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engram_model.errors import CheckpointError, CorpusError, EngramError, UsageError
from engram_model.training.optimizer import MuonAdamW, StackedMuon, parameter_groups
from engram_model.training.tokens import TokenBlocks, open_tokens, write_tokens
from engram_model.training.train import TrainOptions, train

STEPS = 12
WORLD = "world:?seed=0&tokens=12K"


@pytest.fixture(scope="module")
def corpus(tokenizer, tmp_path_factory):
    """Folder with a tokenizer and the token file of a small world."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer.save_pretrained(folder / "tokenizer")
    write_tokens(WORLD, tokenizer, folder / "tokens")
    return folder


def options(corpus, **fields) -> TrainOptions:
    given = dict(
        tokens=STEPS * 2 * 64,
        context=64,
        batch=2,
        tokenizer=str(corpus / "tokenizer"),
        log_every=1,
        save_every=4,
    )
    return TrainOptions(**{**given, **fields})


def run(corpus, out, resume=False, **fields):
    data = f"tokens:{corpus / 'tokens'}"
    return train("engram-tiny", data, out, options(corpus, **fields), resume=resume)


def losses(out) -> list[float]:
    history = json.loads((out / "training_log.json").read_text())["history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    valid = f"tokens:{corpus / 'tokens'}"
    return run(corpus, out, valid=valid, eval_every=6)


def test_log_has_losses_experts_and_gates(unbroken):
    history = json.loads((unbroken / "training_log.json").read_text())["history"]
    steps = [entry for entry in history if "loss" in entry]
    assert len(steps) == STEPS and steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["expert_load_max"] >= 1 and 0 < steps[-1]["gate_mean_1"] < 1
    assert len([entry for entry in history if "eval_loss" in entry]) == 2


def test_checkpoint_loads_and_its_expert_biases_moved(unbroken):
    import engram_model as em

    model, _ = em.load(unbroken)
    biases = [layer.mlp.gate.e_score_correction_bias for layer in model.model.layers[1:]]
    assert all(bias.abs().max() > 0 for bias in biases)
    assert max(float(bias.abs().max()) for bias in biases) <= STEPS * 1e-3 + 1e-6


KILLED = """
import sys
from engram_model.training.train import TrainOptions, train
train("engram-tiny", sys.argv[1], sys.argv[2], TrainOptions(**eval(sys.argv[3])))
"""


def test_killed_run_resumes_with_the_same_losses(corpus, unbroken, tmp_path):
    out = tmp_path / "run"
    fields = vars(options(corpus)).copy()
    command = [sys.executable, "-c", KILLED, f"tokens:{corpus / 'tokens'}", str(out), repr(fields)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    marker = out / "trainer" / "checkpoint-4" / "trainer_state.json"
    deadline = time.monotonic() + 120
    while not marker.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "model.safetensors").exists()
    run(corpus, out, resume=True)
    assert losses(out) == pytest.approx(losses(unbroken), abs=1e-6)


@pytest.mark.parametrize(
    "error, free",
    [
        (OSError(errno.ENOSPC, "No space left on device"), 10**9),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), 0),
    ],
    ids=["python", "torch's writer"],
)
def test_full_disk_keeps_the_last_checkpoint(corpus, tmp_path, monkeypatch, error, free):
    out, save = tmp_path / "run", torch.save

    def full_at_second_checkpoint(*args, **kwargs):
        if (out / "trainer" / "checkpoint-8").exists():
            raise error
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full_at_second_checkpoint)
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr("engram_model.training.train.shutil.disk_usage", lambda path: usage)
    message = r"cannot write to .*(No space left|the disk is full).*resume from checkpoint-4"
    with pytest.raises(EngramError, match=message) as caught:
        run(corpus, out)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert [p.name for p in (out / "trainer").glob("checkpoint-*")] == ["checkpoint-4"]
    monkeypatch.undo()
    run(corpus, out, resume=True)
    assert len(losses(out)) == STEPS


def test_loss_that_is_not_finite_stops_the_run(corpus, tmp_path):
    with pytest.raises(EngramError, match=r"the loss is .* lower the learning rate"):
        run(corpus, tmp_path / "run", lr=1e20)


def test_no_checkpoint_of_a_diverged_run_is_kept(corpus, tmp_path):
    """A loss is finite until the step after; the gradient of the step before may not be."""
    with pytest.raises(EngramError, match=r"the (loss|gradient) is"):
        run(corpus, tmp_path / "run", lr=1e20, save_every=1, log_every=100)
    for folder in (tmp_path / "run" / "trainer").glob("checkpoint-*"):
        weights = load_file(folder / "model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values()), folder


def test_run_that_diverges_in_its_last_steps_is_not_written(corpus, tmp_path, monkeypatch):
    from engram_model.training.loop import EngramTrainer

    def step(self, *args, **kwargs):
        late = self.state.global_step == STEPS - 1
        return torch.tensor(float("nan") if late else 1.0)

    monkeypatch.setattr(EngramTrainer, "training_step", step)
    with pytest.raises(EngramError, match="loss is nan"):
        run(corpus, tmp_path / "run", log_every=100, save_every=100)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_kept_checkpoints_are_those_of_the_way(corpus, unbroken, tmp_path):
    import engram_model as em

    out = run(corpus, tmp_path / "run", keep=(3 * 128, 4 * 128 - 1, STEPS * 128))
    kept = {path.name: em.load(path)[0] for path in (out / "kept").iterdir()}
    assert sorted(kept) == ["step-12", "step-3", "step-4"]
    last = em.load(out)[0].state_dict()
    assert all(torch.equal(last[n], w) for n, w in kept["step-12"].state_dict().items())
    assert not torch.equal(last["lm_head.weight"], kept["step-3"].state_dict()["lm_head.weight"])
    log = json.loads((out / "kept" / "step-4" / "training_log.json").read_text())
    assert log["step"] == 4 and log["options"]["keep"] == [384, 511, 1536]
    assert losses(out) == pytest.approx(losses(unbroken), abs=1e-6)
    with pytest.raises(UsageError, match="training is shorter"):
        run(corpus, tmp_path / "other", keep=(STEPS * 128 + 1,))


def test_refuses_a_folder_that_holds_a_run(corpus, unbroken, tmp_path):
    with pytest.raises(UsageError, match="use --resume"):
        run(corpus, unbroken)
    with pytest.raises(UsageError, match="no complete checkpoint to resume"):
        run(corpus, tmp_path / "nothing", resume=True)


def test_resume_must_be_the_same_run(corpus, unbroken):
    with pytest.raises(UsageError, match=r"was begun with lr 0.008, not 0.1"):
        run(corpus, unbroken, resume=True, lr=0.1)


def test_refuses_a_corpus_smaller_than_one_step(corpus, tmp_path):
    with pytest.raises(CorpusError, match="fewer than the 100000 of one step"):
        run(corpus, tmp_path / "run", batch=100_000)


def test_balancing_moves_the_bias_against_the_load(make_model):
    from engram_model.training.callbacks import BalanceExperts

    model = make_model(1).train()
    balance = BalanceExperts(model, speed=0.25)
    balance.on_train_begin(None, None, None)
    for load in balance.loads:
        load += torch.tensor([9.0, 1.0, 4.0, 2.0])  # the mean is 4
    balance.on_step_end(None, None, None)
    for router in balance.routers:
        assert router.e_score_correction_bias.tolist() == [-0.25, 0.25, 0.0, 0.25]
    assert balance.statistics() == {"expert_load_max": 2.25, "expert_load_mean": 2.25}
    balance.on_train_end(None, None, None)


def test_two_processes_prepare_once_and_write_once(tmp_path):
    """No token file and no tokenizer beforehand: the first process makes them for both."""
    out, script = tmp_path / "run", tmp_path / "two.py"
    fields = dict(tokens=2 * 2 * 2 * 64, context=64, batch=2, log_every=1)
    script.write_text(KILLED)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    arguments = [str(script), WORLD, str(out), repr(fields)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*launch, *arguments], capture_output=True, text=True, timeout=240, env=environment
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    log = json.loads((out / "training_log.json").read_text())
    assert log["tokens_per_step"] == 2 * 2 * 64 and len(losses(out)) == 2
    assert ended.stderr.count("step 1/2") == 1


def test_half_written_checkpoint_is_passed_over(tmp_path):
    from engram_model.training.train import last_complete

    for step, text in ((4, "{}"), (8, '{"half')):
        folder = tmp_path / "trainer" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(text)
    (tmp_path / "trainer" / "checkpoint-12").mkdir()
    assert last_complete(tmp_path).endswith("checkpoint-4")


def test_stacked_muon_equals_torch_muon_slice_by_slice():
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (3, 20, 8)):
        stacked = torch.nn.Parameter(torch.randn(shape))
        slices = [torch.nn.Parameter(piece.clone()) for piece in stacked.detach()]
        ours = StackedMuon([stacked], lr=0.02)
        theirs = torch.optim.Muon(slices, lr=0.02, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            stacked.grad = torch.randn(shape)
            for piece, grad in zip(slices, stacked.grad, strict=True):
                piece.grad = grad.clone()
            ours.step()
            theirs.step()
        # Newton-Schulz runs in bfloat16, where a batched product may round otherwise
        assert torch.allclose(stacked, torch.stack(list(slices)), atol=1e-3)


def test_every_parameter_has_its_optimiser(make_model):
    model = make_model(4)
    groups = parameter_groups(model)
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert sorted(id(w) for group in groups.values() for w in group) == sorted(names)
    named = {kind: {names[id(w)] for w in group} for kind, group in groups.items()}
    assert named["table"] == {f"model.layers.{i}.engram.embed.weight" for i in (0, 2)}
    assert all("experts." in name for name in named["experts"])
    assert "model.layers.0.engram.wkv.weight" in named["matrix"]
    assert "model.layers.0.self_attn.o_proj.weight" in named["matrix"]
    assert {"model.embed_tokens.weight", "model.layers.1.mlp.gate.weight"} <= named["other"]
    optimizer = MuonAdamW(model, lr=0.01)
    rates = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
    assert {rates[id(w)] for w in groups["table"]} == {0.05}
    assert {rates[id(w)] for kind in ("matrix", "experts") for w in groups[kind]} == {0.01}


def test_blocks_hold_every_token_once(corpus):
    file = open_tokens(corpus / "tokens")
    blocks = TokenBlocks(file, 64, seed=0)
    seen = np.concatenate([block["input_ids"].numpy() for block in blocks])
    assert len(seen) == len(file) // 64 * 64
    left = np.bincount(file.tokens, minlength=400) - np.bincount(seen, minlength=400)
    assert left.min() >= 0 and left.sum() == len(file) % 64


def test_token_files_that_cannot_be_used(corpus, tokenizer, tmp_path):
    (tmp_path / "broken").mkdir()
    with pytest.raises(CorpusError, match="not a complete token file"):
        open_tokens(tmp_path / "broken")
    with pytest.raises(CorpusError, match="fewer than one context of 10000000"):
        TokenBlocks(open_tokens(corpus / "tokens"), 10_000_000)
    with pytest.raises(UsageError, match="exists"):
        write_tokens(WORLD, tokenizer, corpus / "tokens")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(CorpusError, match="empty"):
        write_tokens(f"text:{tmp_path / 'empty.txt'}", tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokens_of_another_tokenizer_are_refused(corpus, tmp_path):
    from engram_model.bpe import train_bpe

    train_bpe(["other words entirely"] * 9, 300).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        run(corpus, tmp_path / "run", tokenizer=str(tmp_path / "other"))


def test_refuses_the_optimiser_state_of_another_model(make_model):
    models = (make_model(1, layers=n, memory_layers=(0,)) for n in (1, 2))
    optimizer, other = (MuonAdamW(model, 0.01) for model in models)
    with pytest.raises(CheckpointError, match="the optimiser's state is not this model's"):
        optimizer.load_state_dict(other.state_dict())
