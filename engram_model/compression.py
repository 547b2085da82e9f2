"""Raw token ids -> compressed ids: tokens whose text is equal after normalisation share one.

Source: arXiv 2601.07372 section 2.2 and its public code; the same rule is in DeepSeek-V4.1-Flash.
"""

import hashlib
import json
import re
import unicodedata

import numpy as np

ONLY_SPACE = "\ue000"  # stands in for a lone space while both ends are stripped
UNDECODABLE = "�"
PROBE = "The year 1984's café, in Tōkyō (東京):\n\tx = f(3.14) 🙂  Princess of Wales, nevertheless"


def normalise(text: str) -> str:
    """NFKC, NFD, no accents, lower case, blanks to one space, stripped (a lone space stays).

    >>> normalise(" Café"), normalise("\\n"), normalise("ﬁ")
    ('cafe', ' ', 'fi')
    """
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    text = re.sub(r"[ \t\r\n]+", " ", text)
    return (ONLY_SPACE if text == " " else text).strip().replace(ONLY_SPACE, " ")


def compression_map(tokenizer) -> np.ndarray:
    """Compressed id of every raw id.

    Ids whose decoded text is equal after `normalise` share one; a token that is part of a UTF-8
    character is keyed by its own string, one that normalises to nothing by its text. Compressed
    ids are given in the order of first use.

    Args:
        tokenizer: a fast transformers tokenizer; the Rust tokenizer beneath it decodes, because
            the wrapper's clean-up of spaces would change the keys.

    Returns:
        int64 [vocab].
    """
    backend = tokenizer.backend_tokenizer
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    ids: dict[str, int] = {}
    table = np.empty(size, dtype=np.int64)
    for raw in range(size):
        text = backend.decode([raw], skip_special_tokens=False)
        key = backend.id_to_token(raw) if UNDECODABLE in text else normalise(text) or text
        table[raw] = ids.setdefault(key, len(ids))
    return table


def compression_sha256(table: np.ndarray) -> str:
    """Checksum of a compression map, independent of how it is stored."""
    return hashlib.sha256(np.ascontiguousarray(table, dtype="<i8").tobytes()).hexdigest()


def tokenizer_sha256(tokenizer) -> str:
    """Checksum of a tokenizer: every token string by id, and how it splits a probing text.

    The second part notices other merges or another splitting into words, which a vocabulary alone
    does not show; the tokenizer file itself would also change with the library's version.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    split = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return hashlib.sha256(json.dumps([vocabulary, split]).encode()).hexdigest()
