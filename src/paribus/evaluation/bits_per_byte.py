"""Bits per byte of held-out documents: the primary metric, comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from paribus.data.batches import HeldOutDocument
from paribus.nn.loss import IGNORE
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

_LOGITS_AT_ONCE = 2**21


@dataclass(frozen=True)
class DocumentBits:
    """What a model needs to write one document."""

    corpus: str
    bits: float
    num_bytes: int


@torch.no_grad()
def document_bits(
    model: ParibusForCausalLM, documents: Sequence[HeldOutDocument], sequence_length: int, start_token: int
) -> list[DocumentBits]:
    """The bits of each document: Σ -log2 p(token | the tokens of its window before it).

    A document, begun by `start_token`, is cut into windows of `sequence_length` tokens; every token is predicted
    exactly once, and a window knows nothing of the one before it. The same for every model.
    """
    was_training = model.training
    model.eval()
    nats = np.zeros(len(documents))
    windows = list(_windows(documents, sequence_length, start_token))
    windows.sort(key=lambda window: -len(window[1]))
    rows = max(1, _LOGITS_AT_ONCE // (sequence_length * model.config.vocab_size))
    device = next(model.parameters()).device
    for begin in range(0, len(windows), rows):
        part = windows[begin : begin + rows]
        inputs, targets = _pad([tokens for _, tokens in part], device)
        logits = model(input_ids=inputs).logits  # B T V; padding on the right is invisible to a causal model
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction="none"
        )
        row_nats = losses.view(len(part), -1).double().sum(1).tolist()
        for (document, _), value in zip(part, row_nats, strict=True):
            nats[document] += value
    model.train(was_training)
    return [
        DocumentBits(document.corpus, value / math.log(2), document.num_bytes)
        for document, value in zip(documents, nats.tolist(), strict=True)
    ]


def bits_per_byte(documents: Sequence[DocumentBits]) -> float:
    """All bits over all bytes: long documents weigh more, as in compressing the whole."""
    return sum(document.bits for document in documents) / sum(document.num_bytes for document in documents)


def _windows(
    documents: Sequence[HeldOutDocument], sequence_length: int, start_token: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(document index, tokens): inputs are all but the last token, targets all but the first."""
    for index, document in enumerate(documents):
        tokens = np.concatenate([[start_token], np.asarray(document.tokens, dtype=np.int64)])
        for begin in range(0, len(tokens) - 1, sequence_length):
            yield index, tokens[begin : begin + sequence_length + 1]


def _pad(windows: list[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    T = max(len(window) for window in windows) - 1
    inputs = torch.zeros(len(windows), T, dtype=torch.long)
    targets = torch.full((len(windows), T), IGNORE)
    for row, window in enumerate(windows):
        tokens = torch.from_numpy(window)
        inputs[row, : len(window) - 1] = tokens[:-1]
        targets[row, : len(window) - 1] = tokens[1:]
    return inputs.to(device), targets.to(device)
