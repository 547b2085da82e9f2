"""Token ids to benchmark with: real text where there is some, else a Zipf law."""

import os

import numpy as np
import torch

VOCABULARY = 99_092  # compressed ids of DeepSeek-V4.1


def token_ids(count: int, skip: int = 0) -> tuple[torch.Tensor, str]:
    """`count` ids of the .npy file named by ENGRAM_BENCH_TOKENS; else drawn from a Zipf law.

    Returns:
        int64 [count], and what they are: "text" or "Zipf ids".
    """
    path = os.environ.get("ENGRAM_BENCH_TOKENS")
    if path:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)[skip : skip + count]
        if len(tokens) == count:
            return torch.as_tensor(tokens.astype(np.int64)), "text"
    return zipf_ids(count, skip), "Zipf ids"


def zipf_ids(count: int, seed: int = 0) -> torch.Tensor:
    """int64 [count]: few ids often, most seldom, each for itself."""
    return torch.as_tensor(np.random.default_rng(seed).zipf(1.2, count) % VOCABULARY)
