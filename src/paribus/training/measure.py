"""What is measured on the model of a run: along the way on validation documents, at its end on test documents too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paribus.data.batches import HeldOutDocument, held_out
from paribus.data.tokenizers import load_tokenizer
from paribus.evaluation.bits_per_byte import DocumentBits, bits_per_byte, document_bits
from paribus.evaluation.cost import decoding_state_bytes
from paribus.nn.backbone import parameter_count
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .run import Run

SAMPLE_PROMPT = "The "
_SAMPLE_TOKENS = 160


class Measure:
    """The held-out documents of a run and what to ask of a model there."""

    def __init__(self, run: Run, cache: Path) -> None:
        self.run = run
        self.tokenizer = load_tokenizer(run.data.tokenizer)
        self.documents = {split: self._documents(split, cache) for split in ("validation", "test")}

    def _documents(self, split: str, cache: Path) -> list[HeldOutDocument]:
        settings = self.run.evaluation
        return held_out(self.run.data, split, cache, settings.num_documents(split), settings.max_bytes_per_document)

    def validation(self, model: ParibusForCausalLM) -> float:
        """Bits per byte on the validation documents."""
        return bits_per_byte(self._bits(model, "validation"))

    def final(self, model: ParibusForCausalLM, *, finished: bool) -> dict[str, Any]:
        """Everything that result.json says of the trained model; quality only when it did not diverge."""
        facts: dict[str, Any] = {
            "parameters": parameter_count(model),
            "state_bytes": decoding_state_bytes(model),
            "bits_per_byte": None,
            "documents": None,
            "sample": None,
        }
        if finished:
            bits = {split: self._bits(model, split) for split in self.documents}
            facts["bits_per_byte"] = {split: bits_per_byte(values) for split, values in bits.items()}
            facts["documents"] = [[document.corpus, document.bits, document.num_bytes] for document in bits["test"]]
            facts["sample"] = sample_text(model, self.tokenizer, SAMPLE_PROMPT, _SAMPLE_TOKENS, self.run.seed)
        return facts

    def _bits(self, model: ParibusForCausalLM, split: str) -> list[DocumentBits]:
        return document_bits(
            model, self.documents[split], self.run.data.sequence_length, self.tokenizer.eos_token_id
        )


@torch.no_grad()
def sample_text(model: ParibusForCausalLM, tokenizer: Any, prompt: str, num_tokens: int, seed: int) -> str:
    """Text that continues `prompt`, sampled at temperature 0.8 from the 40 likeliest tokens, the same for one seed."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.tensor([tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]], device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = model.generate(ids, max_new_tokens=num_tokens, do_sample=True, temperature=0.8, top_k=40)
    model.train(was_training)
    return tokenizer.decode(output[0], skip_special_tokens=True)
