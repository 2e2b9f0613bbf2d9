"""Bits per hidden byte of held-out documents, the primary metric of masked language models, and pseudo-perplexity.

Which tokens are hidden is decided by the document alone: the same for every model, whatever it was trained to fill.
A hidden token is always replaced by the mask token. Dividing by bytes makes tokenizers comparable in unit, though a
token of several bytes is hidden whole, and its neighbours are farther away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paribus.data.batches import HeldOutDocument
from paribus.data.masking import chosen, draw
from paribus.nn.tasks.masked_lm import ParibusForMaskedLM

from .bits_per_byte import DocumentBits

RATE = 0.15
"""The share of tokens that are hidden when models are judged, whatever they were trained with."""
SCORED_ALONE = 512
"""Tokens of a split, at most, that pseudo-perplexity is measured on: each costs a pass over its whole window."""
_LOGITS_AT_ONCE = 2**21


@dataclass(frozen=True)
class HiddenDocument:
    """A document and what of it is hidden."""

    document: HeldOutDocument
    may_hide: np.ndarray
    """bool [tokens]: which are not special."""
    hidden: np.ndarray
    """bool [tokens]."""
    hidden_bytes: np.ndarray
    """bool [bytes]: those of the hidden tokens."""


@dataclass(frozen=True)
class _Question:
    """A window, and the positions in it whose true tokens are asked for."""

    document: int
    window: np.ndarray
    """The true tokens [T]."""
    hidden: np.ndarray
    """bool [T]: what is replaced by the mask token."""
    asked: np.ndarray
    """bool [T]."""


def hide(documents: Sequence[HeldOutDocument], tokenizer: Any) -> list[HiddenDocument]:
    """Hide `RATE` of the tokens of each document, at least one, by its hash; special tokens never."""
    special = np.array(sorted(tokenizer.all_special_ids))
    found = []
    for document in documents:
        may_hide = ~np.isin(document.tokens, special)
        order = draw(b"hidden " + document.content, (1, len(may_hide)))
        hidden = chosen(torch.from_numpy(order), torch.from_numpy(may_hide)[None], RATE)[0].numpy()
        lengths = np.diff(token_ends(document, tokenizer), prepend=0)
        found.append(HiddenDocument(document, may_hide, hidden, np.repeat(hidden, lengths)))
    return found


def token_ends(document: HeldOutDocument, tokenizer: Any) -> np.ndarray:
    """Where each token of a document ends, in bytes: [tokens].

    What lies between two tokens, such as a space that a tokenizer drops, is the later one's. Several tokens that make
    up one character share its bytes evenly; of the byte tokenizer each has one.
    """
    text = document.content.decode()
    byte_of = np.cumsum([0, *(len(character.encode()) for character in text)])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = byte_of[[end for _, end in encoded["offset_mapping"]]]
    assert len(ends) == len(document.tokens), "tokenized as it was before"
    if len(ends):
        ends[-1] = len(document.content)
    distinct, first, count = np.unique(ends, return_index=True, return_counts=True)
    begin = np.concatenate([[0], distinct[:-1]])
    within = np.arange(1, len(ends) + 1) - np.repeat(first, count)
    shared: np.ndarray = within * np.repeat(distinct - begin, count) // np.repeat(count, count)
    return np.repeat(begin, count) + shared


def masked_document_bits(
    model: ParibusForMaskedLM, documents: Sequence[HiddenDocument], sequence_length: int
) -> list[DocumentBits]:
    """The bits of each document's hidden tokens, Σ -log2 p(token | what is visible in its window), and their bytes.

    A document is cut into windows of `sequence_length` tokens; the last one reaches back, so that all are as long.
    """
    questions = [
        _Question(index, document.document.tokens[window], document.hidden[window], document.hidden[window] & new)
        for index, document in enumerate(documents)
        for window, new in _windows(len(document.hidden), sequence_length)
    ]
    nats = np.zeros(len(documents))
    for question, value in zip(questions, _nats(model, questions), strict=True):
        nats[question.document] += value
    return [
        DocumentBits(hidden.document.corpus, value / math.log(2), int(hidden.hidden_bytes.sum()))
        for hidden, value in zip(documents, nats.tolist(), strict=True)
    ]


def pseudo_perplexity(
    model: ParibusForMaskedLM, documents: Sequence[HiddenDocument], sequence_length: int
) -> tuple[float, int]:
    """exp of the mean -log p(token | all others of its window), each token hidden alone; and of how many tokens.

    Salazar et al. 2020, arXiv:1910.14659. Measured on `SCORED_ALONE` tokens, chosen by the documents' hashes, or on all
    that are not special, if there are no more.
    """
    questions = list(_one_by_one(documents, sequence_length))
    nats = torch.tensor(_nats(model, questions), dtype=torch.float64)
    return float(nats.mean().exp()), len(questions)


def filled_text(model: ParibusForMaskedLM, hidden: HiddenDocument, sequence_length: int, tokenizer: Any) -> str:
    """The first window of a document, its hidden tokens filled with the likeliest.

    ⟦x⟧ is what was filled in; ⟦x|y⟧ where the truth is y.
    """
    window = slice(0, sequence_length)
    asked = hidden.hidden[window]
    truth = hidden.document.tokens[window].astype(np.int64)
    with _evaluated(model):
        likeliest = _logits(model, [_Question(0, truth, asked, asked)])[0].argmax(-1).cpu().numpy()
    filled = np.where(asked, likeliest, truth)
    text = ""
    edges = [0, *(np.flatnonzero(np.diff(asked)) + 1), len(asked)]
    for begin, end in pairwise(edges):
        guess, true = (tokenizer.decode(ids[begin:end].tolist()) for ids in (filled, truth))
        shown = guess if np.array_equal(filled[begin:end], truth[begin:end]) else f"{guess}|{true}"
        text += f"⟦{shown}⟧" if asked[begin] else true
    return text


def _one_by_one(documents: Sequence[HiddenDocument], sequence_length: int) -> Iterator[_Question]:
    """A question for each token that is scored alone: those with the lowest numbers, drawn over all documents."""
    drawn = [draw(b"alone " + hidden.document.content, hidden.may_hide.shape) for hidden in documents]
    every = np.sort(np.concatenate([order[hidden.may_hide] for order, hidden in zip(drawn, documents, strict=True)]))
    last = every[:SCORED_ALONE].max(initial=-1)
    for index, (hidden, order) in enumerate(zip(documents, drawn, strict=True)):
        scored = hidden.may_hide & (order <= last)
        for window, new in _windows(len(scored), sequence_length):
            for place in np.flatnonzero(scored[window] & new):
                alone = np.arange(len(new)) == place
                yield _Question(index, hidden.document.tokens[window], alone, alone)


def _windows(num_tokens: int, sequence_length: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Windows that cover a document, and in each, bool [T], the tokens that no window before it has."""
    for begin in range(0, num_tokens, sequence_length):
        end = min(begin + sequence_length, num_tokens)
        start = max(0, end - sequence_length)
        yield slice(start, end), np.arange(start, end) >= begin


def _nats(model: ParibusForMaskedLM, questions: Sequence[_Question]) -> list[float]:
    """Σ -log p of the tokens that each question asks for."""
    found = [0.0] * len(questions)
    lengths = [len(question.asked) for question in questions]
    asking = sorted((i for i, question in enumerate(questions) if question.asked.any()), key=lambda i: -lengths[i])
    rows = max(1, _LOGITS_AT_ONCE // (max(lengths, default=1) * model.config.vocab_size))
    with _evaluated(model):
        for begin in range(0, len(asking), rows):
            part = asking[begin : begin + rows]
            logits = _logits(model, [questions[index] for index in part])
            for row, index in enumerate(part):
                places = torch.from_numpy(np.flatnonzero(questions[index].asked)).to(logits.device)
                truth = torch.from_numpy(questions[index].window.astype(np.int64)).to(logits.device)[places]
                found[index] = -float(logits[row, places].double().log_softmax(-1).gather(1, truth[:, None]).sum())
    return found


def _logits(model: ParibusForMaskedLM, questions: Sequence[_Question]) -> Tensor:
    """[B, T, V]; rows are padded on the right, which the mask hides from a model that sees both sides."""
    T = max(len(question.asked) for question in questions)
    inputs, segments = (torch.zeros(len(questions), T, dtype=torch.long) for _ in range(2))
    for row, question in enumerate(questions):
        tokens = torch.from_numpy(question.window.astype(np.int64))
        hidden = torch.from_numpy(question.hidden)
        inputs[row, : len(tokens)] = tokens.masked_fill(hidden, model.settings.mask_token)
        segments[row, : len(tokens)] = 1
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=inputs.to(device), attention_mask=segments.to(device)).logits
    return logits


@contextmanager
def _evaluated(model: ParibusForMaskedLM) -> Iterator[None]:
    """Have the model in evaluation mode, without gradients; it is left in the mode it was in."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)
