"""Training tokens per second, forward, backward, clipping and AdamW, beside transformers' Llama in one process.

Our attention model and Llama get the same shape, the same weights and the same batch, so they compute the same loss
(checked before anything is timed). Rounds are interleaved: in each, every model takes one step, in alternating order,
and the ratio to Llama is taken within the round, so that a busy machine slows both. With one thread the clock can be
the processor's, which stands still while other programs run. The step is that of the training loop: no logits are
returned, gradients are clipped at norm 1.

The inner width of `demo` and `odd` is what the library's default expansion gives, 213 and 683; that of `wide`, 688, is
one that matrix products like, so that Llama is also seen at its best.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from paribus.nn.backbone import parameter_count
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.tasks.causal_lm import ParibusForCausalLM

from .record import append_rows, machine

VOCABULARY = 256
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
_LLAMA_NAMES = {
    "model.embedding": "model.embed_tokens",
    "model.blocks": "model.layers",
    "mixer_norm": "input_layernorm",
    "channel_norm": "post_attention_layernorm",
    "mixer.query": "self_attn.q_proj",
    "mixer.key": "self_attn.k_proj",
    "mixer.value": "self_attn.v_proj",
    "mixer.output": "self_attn.o_proj",
    "channel.gate": "mlp.gate_proj",
    "channel.up": "mlp.up_proj",
    "channel.output": "mlp.down_proj",
    "head": "lm_head",
}


@dataclass(frozen=True)
class Shape:
    """Sizes that both models share."""

    width: int
    layers: int
    heads: int
    inner: int


SHAPES = {"demo": Shape(80, 4, 4, 213), "odd": Shape(256, 6, 4, 683), "wide": Shape(256, 6, 4, 688)}


def ours(shape: Shape, length: int, mixer: str = "attention") -> ParibusForCausalLM:
    """Our model with `mixer` in every layer, initialised."""
    block = {"mixer": {"name": mixer}, "channel": {"name": "glu", "expansion": shape.inner / shape.width}}
    config = ParibusConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        max_position_embeddings=length,
        blocks={"main": block},
    )
    model = ParibusForCausalLM(config)
    initialize(model, seed=0)
    return model


def llama(shape: Shape, length: int, twin: ParibusForCausalLM) -> LlamaForCausalLM:
    """Llama of the same shape with the weights of `twin`."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=length,
        rms_norm_eps=twin.model.norm.eps,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict({_llama_name(name): weight for name, weight in twin.state_dict().items()})
    assert parameter_count(model) == parameter_count(twin)
    return model


def _llama_name(name: str) -> str:
    for mine, theirs in _LLAMA_NAMES.items():
        name = name.replace(mine, theirs)
    return name


def ours_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """As the training loop asks for it."""
    return model(input_ids=inputs, shift_labels=targets, return_logits=False).loss


def llama_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of the same targets; `labels` only says that a loss is wanted."""
    return model(input_ids=inputs, labels=targets, shift_labels=targets).loss


def training_step(
    model: nn.Module, loss: Callable[..., Tensor], inputs: Tensor, targets: Tensor, clock: Callable[[], float]
) -> Callable[[], float]:
    """One update of `model`; returns how many seconds it took by `clock`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        begin = clock()
        loss(model, inputs, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return clock() - begin

    return step


def interleaved(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in every round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            seconds[name].append(steps[name]())
    return {name: values[1:] for name, values in seconds.items()}


def compare(
    shape: Shape, length: int, mixers: list[str], tokens: int, rounds: int, clock: str = "wall"
) -> list[dict[str, Any]]:
    """Rows of the table: Llama, then our model with each mixer, `tokens` tokens a step."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(VOCABULARY, (max(1, tokens // length), length + 1), generator=generator)
    inputs, targets = batch[:, :-1], batch[:, 1:].contiguous()
    twin = ours(shape, length)
    models: dict[str, nn.Module] = {"llama": llama(shape, length, twin)}
    torch.testing.assert_close(ours_loss(twin, inputs, targets), llama_loss(models["llama"], inputs, targets))
    models |= {mixer: ours(shape, length, mixer) for mixer in mixers}
    steps = {
        name: training_step(model.train(), llama_loss if name == "llama" else ours_loss, inputs, targets, CLOCKS[clock])
        for name, model in models.items()
    }
    seconds = interleaved(steps, rounds)
    return [_row(name, models[name], inputs.numel(), seconds[name], seconds["llama"]) for name in models]


def _row(name: str, model: nn.Module, tokens: int, seconds: list[float], base: list[float]) -> dict[str, Any]:
    ratios = [theirs / mine for mine, theirs in zip(seconds, base, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {
        "model": name,
        "parameters": parameter_count(model),
        "tokens_per_step": tokens,
        "tokens_per_second": round(tokens / median(seconds)),
        "ratio_to_llama": round(median(ratios), 3),
        "ratio_quartile_1": round(low, 3),
        "ratio_quartile_3": round(high, 3),
        "rounds": len(seconds),
    }


def main(arguments: list[str]) -> None:
    """Measure, print a table and append it to results/training_speed.csv."""
    parser = argparse.ArgumentParser(prog="benchmarks training_speed", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048], help="tokens in a row")
    parser.add_argument("--mixers", nargs="+", default=["attention"], help="our mixers, each a model of its own")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="the processor's tells nothing of many threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    facts = machine()
    print(f"{'shape':6}{'length':>7}  {'model':18}{'parameters':>11}{'tokens/s':>10}  ratio to Llama (quartiles)")
    for shape in options.shapes:
        for length in options.lengths:
            rows = compare(SHAPES[shape], length, options.mixers, options.tokens, options.rounds, options.clock)
            for row in rows:
                print(
                    f"{shape:6}{length:7}  {row['model']:18}{row['parameters']:11,}{row['tokens_per_second']:10,}  "
                    f"{row['ratio_to_llama']:.2f} ({row['ratio_quartile_1']:.2f} to {row['ratio_quartile_3']:.2f})"
                )
            kept = [{"shape": shape, "length": length, **row, "clock": options.clock, **facts} for row in rows]
            append_rows("training_speed", kept)
