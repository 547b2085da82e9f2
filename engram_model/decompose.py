"""Exact additive decomposition of a residual that runs in several mixed streams.

A site turns streams X into `comb^T X + post (x) out`; a memory adds its own vector to each stream.
Whatever reads the streams with weights r (one a stream) therefore reads, one site further back,
`<r, post>` of the site's output and the streams before it with weights `comb r`. Walking back from
any reading gives every writer's exact share; all mixing weights are held at the values they had.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Site:
    """An attention or MLP with its mixing: out [.., d], post [.., M], comb [.., M, M].

    comb None: the streams themselves pass unmixed.
    """

    label: str
    out: Tensor
    post: Tensor
    comb: Tensor | None


@dataclass(frozen=True)
class Write:
    """A memory's write: out [b, p, M, d], one vector a stream."""

    label: str
    out: Tensor


def readings(
    readout: Tensor, writers: Iterable[Site | Write], embedding: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """How each writer's output is read in `sum_m readout_m X_m`, newest first, the embedding last.

    Args:
        readout: [b, p, M, 1], weights with which the streams after the last writer are read, or
            [b, p, M, d] if each channel has its own.
        writers: sites and memories, newest first.
        embedding: [b, p, d], copied to every stream at the start.

    Yields:
        label, weights as `readout`'s and output [b, p, M, d], or [b, p, 1, d] where every stream
        was given the same; the sum over m of weights times output, over all writers, is the
        reading.
    """
    readout = readout.float()
    for writer in writers:
        if isinstance(writer, Write):
            yield writer.label, readout, writer.out.float()
            continue
        post = writer.post.float().unsqueeze(-1)
        yield writer.label, readout * post, writer.out.float().unsqueeze(-2)
        if writer.comb is not None:
            readout = torch.einsum("...jk,...kd->...jd", writer.comb.float(), readout)
    yield "embed", readout, embedding.float().unsqueeze(-2)


def contributions(
    readout: Tensor, writers: Iterable[Site | Write], embedding: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """What each writer adds to the reading: as `readings`, summed over streams.

    Yields:
        label and [b, p, d]; they sum to the reading.
    """
    for label, weights, out in readings(readout, writers, embedding):
        yield label, (weights * out).sum(-2)
