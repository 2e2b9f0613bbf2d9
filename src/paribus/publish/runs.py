"""Publishing a run, and using what was published or trained: text and bits per byte from either kind of folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paribus.data.batches import Data, held_out
from paribus.data.cache import cache_folder
from paribus.data.tokenizers import load_tokenizer
from paribus.evaluation.bits_per_byte import bits_per_byte, document_bits
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.training.folder import read_record, read_result
from paribus.training.load import load_run

from .publication import load_published, publish_model

_LONGEST_WINDOW = 1024
"""Tokens; a published folder does not say in what lengths it was trained."""
_MAX_DOCUMENT_BYTES = 8192


def publish_run(folder: Path, out: Path) -> Path:
    """Publish the finished run in `folder` as the Hugging Face folder `out`, proven to load.

    Raises:
        ValueError: not a run, one that is unfinished or diverged, or an `out` that holds something else.
    """
    result = read_result(folder)
    run, model = load_run(folder)
    if result is None or result["status"] != "finished":
        raise ValueError(f"'{folder}' cannot be published: it is {'unfinished' if result is None else 'diverged'}")
    assert isinstance(run.data, Data) and isinstance(model, ParibusForCausalLM), "the only task that is published"
    corpora = ", ".join(run.data.corpora)
    card = {
        "bits per byte, held-out test documents": result["scores"]["test"]["bits_per_byte"],
        "trained on": f"{result['tokens']:,} tokens of {corpora}, in sequences of {run.data.sequence_length:,}",
        "training FLOPs": result["flops"],
        "optimizer": f"{run.optimizer.name}, learning rate {run.optimizer.lr:g}, {run.schedule.name} schedule",
        "seed": run.seed,
        "run": f"{run.name}, fingerprint {read_record(folder)['fingerprint'][:16]}",
    }
    return publish_model(model, load_tokenizer(run.data.tokenizer), out, card=card, name=run.name)


def load_any(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a run or of a published folder.

    Raises:
        ValueError: `folder` is neither.
    """
    if (folder / "run.json").is_file():
        run, model = load_run(folder)
        assert isinstance(run.data, Data), "the only kind that is published"
        return model, load_tokenizer(run.data.tokenizer)
    if not (folder / "config.json").is_file():
        raise ValueError(f"'{folder}' is neither a run (run.json) nor a Hugging Face folder (config.json)")
    return load_published(folder)


def evaluate_folder(folder: Path, corpora: Sequence[str] | None, split: str, max_documents: int) -> dict[str, float]:
    """Bits per byte of a run or published model on held-out documents, by corpus, and on all together.

    Args:
        corpora: names or paths; None takes the corpora of the run (a published folder does not know any).

    Raises:
        ValueError: neither kind of folder, or a published folder without `corpora`.
    """
    if (folder / "run.json").is_file():
        run, model = load_run(folder)
        assert isinstance(run.data, Data), "the only kind that is published"
        tokenizer = load_tokenizer(run.data.tokenizer)
        data = run.data if corpora is None else replace(run.data, corpora=dict.fromkeys(corpora, 1.0))
    else:
        model, tokenizer = load_any(folder)
        if corpora is None:
            raise ValueError(f"'{folder}' does not say what text it was trained on; name some with --corpus")
        length = min(model.config.max_position_embeddings, _LONGEST_WINDOW)
        data = Data(dict.fromkeys(corpora, 1.0), tokenizer=str(folder), sequence_length=length)
    documents = held_out(data, split, cache_folder(), max_documents, _MAX_DOCUMENT_BYTES)
    assert isinstance(model, ParibusForCausalLM)
    bits = document_bits(model, documents, data.sequence_length, tokenizer.eos_token_id)
    values = {name: bits_per_byte([d for d in bits if d.corpus == name]) for name in sorted(data.corpora)}
    return values if len(values) == 1 else {**values, "all": bits_per_byte(bits)}
