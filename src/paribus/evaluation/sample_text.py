"""Text that a causal language model writes."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def sample_text(model: Any, tokenizer: Any, prompt: str, num_tokens: int, seed: int) -> str:
    """Text that continues `prompt`, sampled at temperature 0.8 from the 40 likeliest tokens, the same for one seed.

    The prompt and `num_tokens` more, or as many as the model may read.

    Raises:
        ValueError: the prompt fills all the positions of the model.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.tensor([tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]], device=device)
    room = model.config.max_position_embeddings - ids.shape[1]
    if room < 1:
        raise ValueError(
            f"the prompt has {ids.shape[1]} tokens; the model reads {model.config.max_position_embeddings}"
        )
    num_tokens = min(num_tokens, room)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(ids, max_new_tokens=num_tokens, do_sample=True, temperature=0.8, top_k=40)
    model.train(was_training)
    return tokenizer.decode(output[0], skip_special_tokens=True)
