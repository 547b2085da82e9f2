"""`engram train`: a preset, a corpus, a folder; the loop is transformers' Trainer."""

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from engram_model.errors import CheckpointError, CorpusError, EngramError, UsageError

TRAINER = "trainer"  # sub-folder for what only a resumed run needs
KEPT = "kept"  # sub-folder for checkpoints from within the run
FREE = (
    "valid",
    "eval_every",
    "save_every",
    "log_every",
    "tokenizer",
    "graph",
    "keep",
)  # may change
FULL = 2**20  # bytes left on a disk that count as none


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the rates are those of the bundled nano models.

    Attributes:
        tokens: training tokens in all; epochs repeat the corpus as needed.
        context: tokens a sequence (None: the preset's).
        batch: sequences a step and device.
        lr: of Muon and AdamW; the memory's tables take five times as much.
        warmup: share of the steps over which the rate rises; then cosine to a tenth.
        balance: step of the experts' bias (0: no balancing).
        valid: corpus for the validation loss (None: none).
        tokenizer: folder with a tokenizer (None: train a byte-level BPE on the corpus).
        eval_every, save_every, log_every: steps.
        graph: replay each step's passes as a CUDA graph; None: where that is possible, see
            `training.loop.why_no_graph`.
        keep: numbers of tokens; the step that reaches one leaves a checkpoint in `OUT/kept/step-N`.
    """

    tokens: int = 60_000_000
    context: int | None = None
    batch: int = 64
    accumulate: int = 1
    lr: float = 8e-3
    weight_decay: float = 0.1
    warmup: float = 0.02
    balance: float = 1e-3
    seed: int = 0
    valid: str | None = None
    tokenizer: str | None = None
    eval_every: int = 200
    save_every: int = 200
    log_every: int = 10
    graph: bool | None = None
    keep: tuple[int, ...] = ()


def train(
    preset: str,
    data: str,
    out: str | Path,
    options: TrainOptions | None = None,
    *,
    resume: bool = False,
    overrides: dict | None = None,
) -> Path:
    """Train a preset on a corpus and write a checkpoint that `load` opens.

    Args:
        preset: a name of `engram_model.presets`.
        data: a corpus as for `load_corpus`, or `tokens:FOLDER` as written by `write_tokens`.
        out: folder of the run; must not hold one unless `resume`.
        options: see `TrainOptions`.
        resume: go on from the last complete checkpoint in `out`.
        overrides: fields of the config to replace.

    Returns:
        `out`, holding config, weights, tokenizer and training_log.json.

    Raises:
        UsageError: `out` holds a run, or nothing to resume, or no graph can be had.
        CorpusError: no readable corpus.
        EngramError: the loss is not finite, or the disk is full; the last checkpoint is kept.
    """
    import torch
    from accelerate import PartialState

    options, out = options or TrainOptions(), Path(out)
    described = _describe(preset, data, options, overrides or {})
    processes = PartialState(cpu=not torch.cuda.is_available())
    with _one_line_errors(out):
        with processes.main_process_first():  # it prepares; the others find all prepared
            if processes.is_main_process:
                _begin(out, described, resume)
            tokenizer = _tokenizer(options.tokenizer, data, preset, out)
            trainer = _trainer(preset, data, out, options, tokenizer, overrides or {})
        described = {**described, "resumed": resume}
        if processes.is_main_process and options.keep:
            _keep(trainer, tokenizer, out, described, options.keep)
        trainer.train(resume_from_checkpoint=last_complete(out) if resume else None)
        if processes.is_main_process:
            _write(trainer, tokenizer, out, described)
    return out


def last_complete(out: Path) -> str | None:
    """The newest checkpoint whose last file was written; a half-written one is passed over."""
    found = []
    for folder in (out / TRAINER).glob("checkpoint-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text())
            found.append((int(folder.name.split("-")[1]), str(folder)))
        except (OSError, ValueError):
            continue
    return max(found)[1] if found else None


def _describe(preset: str, data: str, options: TrainOptions, overrides: dict) -> dict:
    """What a run is; a resumed one must be the same but for what does not touch its losses."""
    fields = {**asdict(options), "keep": list(options.keep)}  # as JSON gives it back
    return {"preset": preset, "data": data, "overrides": overrides, "options": fields}


def _begin(out: Path, described: dict, resume: bool) -> None:
    """Check the folder, and write down what runs in it."""
    record = out / TRAINER / "run.json"
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise UsageError(f"{out} is not empty: use --resume to go on, or give another folder")
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps(described, indent=1))
        return
    if last_complete(out) is None or not record.exists():
        raise UsageError(f"{out} holds no complete checkpoint to resume from")
    before, now = _flat(json.loads(record.read_text())), _flat(described)
    changed = [name for name in now if name not in FREE and before.get(name) != now[name]]
    if changed:
        name = changed[0]
        raise UsageError(f"{out} was begun with {name} {before.get(name)}, not {now[name]}")


def _flat(described: dict) -> dict:
    return {**described["options"], **{k: v for k, v in described.items() if k != "options"}}


def _tokenizer(path: str | None, data: str, preset: str, out: Path):
    """The given tokenizer, the run's own, or a new byte-level BPE of the preset's size."""
    from transformers import PreTrainedTokenizerFast

    from engram_model.presets import preset_config

    own = out / "tokenizer.json"
    if path is None and not own.exists():
        from engram_model.bpe import save_tokenizer, train_default_bpe

        tokenizer = train_default_bpe(data, preset_config(preset).vocab_size)
        save_tokenizer(tokenizer, out)
        return tokenizer
    folder = Path(path) if path is not None else out
    if not (folder / "tokenizer.json").exists():
        raise CheckpointError(f"{folder} has no tokenizer.json")
    return PreTrainedTokenizerFast.from_pretrained(folder)


def new_model(preset: str, tokenizer, overrides: dict, seed: int = 0):
    """An untrained model of a preset, its hash made for this tokenizer."""
    import torch

    from engram_model.compression import compression_map, tokenizer_sha256
    from engram_model.modeling import EngramForCausalLM
    from engram_model.presets import preset_config

    table = compression_map(tokenizer)
    fields = dict(
        vocab_size=len(table),
        engram_compressed_vocab_size=int(table.max()) + 1,
        engram_pad_token_id=tokenizer.pad_token_id,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = preset_config(preset, **{**fields, **overrides})
    torch.manual_seed(seed)
    model = EngramForCausalLM(config)
    if config.engram_compressed_vocab_size != config.vocab_size:
        model.set_compression(table)
    return model


def _blocks(data: str, tokenizer, out: Path, name: str, context: int, seed: int | None):
    from engram_model.compression import tokenizer_sha256
    from engram_model.training.tokens import TokenBlocks, open_tokens, write_tokens

    if data.startswith("tokens:"):
        file = open_tokens(data.removeprefix("tokens:"))
    elif (out / TRAINER / name).exists():
        file = open_tokens(out / TRAINER / name)
    else:
        file = write_tokens(data, tokenizer, out / TRAINER / name)
    if file.meta["tokenizer_sha256"] != tokenizer_sha256(tokenizer):
        raise CheckpointError(f"{data} was made with another tokenizer than the one given")
    return TokenBlocks(file, context, seed)


def _trainer(preset, data, out: Path, options: TrainOptions, tokenizer, overrides: dict):
    import torch
    from transformers import TrainingArguments

    from engram_model.training.loop import EngramTrainer

    model = new_model(preset, tokenizer, overrides, options.seed)
    context = options.context or model.config.max_position_embeddings
    blocks = _blocks(data, tokenizer, out, "train", context, options.seed)
    valid = None
    if options.valid:
        valid = _blocks(options.valid, tokenizer, out, "valid", context, None)
    sequences = options.batch * options.accumulate * int(os.environ.get("WORLD_SIZE", 1))
    per_step = sequences * context
    if len(blocks) < sequences:
        raise CorpusError(
            f"the corpus has {len(blocks)} sequences of {context} tokens, fewer than the "
            f"{sequences} of one step: use a smaller batch or context, or more text"
        )
    cuda = torch.cuda.is_available()
    args = TrainingArguments(
        output_dir=str(out / TRAINER),
        max_steps=max(1, math.ceil(options.tokens / per_step)),
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=max(1, int(options.warmup * options.tokens / per_step)),
        max_grad_norm=1.0,
        bf16=cuda,
        use_cpu=not cuda,
        seed=options.seed,
        data_seed=options.seed,
        eval_strategy="steps" if valid else "no",
        eval_steps=options.eval_every,
        prediction_loss_only=True,
        save_steps=options.save_every,
        save_total_limit=2,
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=cuda,
        report_to=[],
        disable_tqdm=True,
    )
    return EngramTrainer(
        model=model,
        args=args,
        train_dataset=blocks,
        eval_dataset=valid,
        weight_decay=options.weight_decay,
        balance=options.balance,
        tokens_per_step=per_step,
        graph=options.graph,
    )


def _keep(trainer, tokenizer, out: Path, described: dict, tokens: tuple[int, ...]) -> None:
    """Have the trainer write checkpoints on its way."""
    from engram_model.training.callbacks import KeepWeights

    def write(step: int) -> None:
        folder = out / KEPT / f"step-{step}"
        partial = folder.with_name(f".{folder.name}")
        for old in (partial, folder):  # of a run that was broken off
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(trainer, tokenizer, partial, described)
        partial.rename(folder)

    steps = {math.ceil(count / trainer.tokens_per_step) for count in tokens}
    if max(steps) > trainer.args.max_steps:
        raise UsageError(
            f"no checkpoint can be kept after {max(tokens):,} tokens: training is shorter"
        )
    trainer.add_callback(KeepWeights(steps, write))


def _write(trainer, tokenizer, out: Path, described: dict) -> None:
    """Config, weights in bf16 shards under 15 MB (buffers as they are), tokenizer and log."""
    import torch
    from torch import nn

    from engram_model.bpe import save_tokenizer

    model = trainer.accelerator.unwrap_model(trainer.model)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {
        name: tensor.to(torch.bfloat16) if isinstance(tensor, nn.Parameter) else tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in tied
    }
    model.save_pretrained(out, state_dict=weights, max_shard_size="14MB")
    save_tokenizer(tokenizer, out)
    log = {
        **described,
        "step": trainer.state.global_step,
        "tokens_per_step": trainer.tokens_per_step,
        "graphed": trainer.graphed is not None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "history": trainer.state.log_history,
    }
    (out / "training_log.json").write_text(json.dumps(log, indent=1))


class _one_line_errors:
    """Turns a full disk or memory into one line, and removes what was half written."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        if error is None or isinstance(error, EngramError) or not isinstance(error, Exception):
            return
        full = isinstance(error, OSError) or _disk_full(self.out)  # torch's writer says neither
        memory = "out of memory" in str(error).lower()
        if not full and not memory:
            return
        kept = last_complete(self.out)
        for folder in (self.out / TRAINER).glob("checkpoint-*"):
            if kept is None or not (folder / "trainer_state.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
        reason = str(error).splitlines()[0] if isinstance(error, OSError) else "the disk is full"
        what = "out of memory" if memory else f"cannot write to {self.out}: {reason}"
        rest = f"resume from {Path(kept).name} with --resume" if kept else "no checkpoint was kept"
        raise EngramError(f"training stopped, {what}; {rest}") from error


def _disk_full(out: Path) -> bool:
    folder = next(place for place in (out, *out.absolute().parents) if place.exists())
    return shutil.disk_usage(folder).free < FULL
