"""Our own tokenizer: byte-level BPE, trained on a corpus."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engram_model import world
from engram_model.corpora import iter_documents, parse
from engram_model.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")  # ids 0, 1 and 2; the pad id is the demo's
BYTES = 256


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, special_tokens: tuple[str, ...] = SPECIAL_TOKENS
) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of at most `vocab_size` tokens, specials and 256 bytes included.

    special_tokens: bos, eos and pad first, in this order; they get the ids 0, 1, 2. The tokenizer
    adds none of them by itself and gives any text back exactly. Every digit is a token of its own:
    numbers are then spelled alike wherever they stand and no vocabulary goes into years and dates.
    The same texts in the same order give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    least = BYTES + len(special_tokens)
    if vocab_size < least:
        raise UsageError(f"vocab_size {vocab_size} is too small; use {least} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos, eos, pad = special_tokens[:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        add_bos_token=False,
        clean_up_tokenization_spaces=False,
        name_or_path="engram-bpe",
    )


def train_default_bpe(
    corpus_spec: str,
    vocab_size: int,
    *,
    world_seed: int = 1_000_003,
    characters: int = 16_000_000,
    online: bool = False,
) -> "PreTrainedTokenizerFast":
    """Train on a sample of a corpus and on a world that no model is trained on.

    Had the tokenizer seen the names of the world that a model is trained on, it would make single
    tokens of them, and nothing would be left for an n-gram memory to put together. So every
    `world:` part of the corpus is left out, and a ninth of the sample comes from the world of
    `world_seed`, which has the same wording but other names. characters: size of the sample, taken
    evenly from the whole corpus.
    """
    parts = parse(corpus_spec, online=online)
    if any(p.kind == "world" and world.parse_spec(p.spec).seed == world_seed for p in parts):
        raise UsageError(f"world_seed {world_seed} is a world of the corpus; use another")
    others = [part.spec for part in parts if part.kind != "world"]
    other_world = world.WorldSpec(seed=world_seed, tokens=max(1, characters // 9 // 4))
    texts = [record["text"] for record in other_world.documents()]
    if others:
        texts += _sample(" + ".join(others), characters - characters // 9, online)
    return train_bpe(texts, vocab_size)


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Beside a checkpoint, on one line: less than half the size of the indented file."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def _sample(corpus_spec: str, characters: int, online: bool) -> Iterator[str]:
    """Paragraphs from all over a corpus, about `characters` in all (or all there are)."""
    total = sum(len(d["text"]) for d in iter_documents(corpus_spec, online=online))
    share = min(1.0, characters / total)
    seen = taken = 0
    for document in iter_documents(corpus_spec, online=online):
        for paragraph in document["text"].split("\n\n"):
            seen += len(paragraph) + 2
            if taken < share * seen:
                taken += len(paragraph) + 2
                yield paragraph + "\n\n"
