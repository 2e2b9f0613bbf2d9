"""Whole language models to be timed: ours with any mixer, of equal parameters, and the models of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, Mamba2Config, Mamba2ForCausalLM

from paribus.data.batches import Data
from paribus.nn.backbone import parameter_count
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.studies.equalizers import TOLERANCE, equalize
from paribus.studies.study import Study
from paribus.training.model import build_model, check_model
from paribus.training.run import Budget, Run

from .timing import Loss

VOCABULARY = 256
_LLAMA_NAMES = {
    "model.embedding.table": "model.embed_tokens",
    "model.blocks": "model.layers",
    "residual.mixer_norm": "input_layernorm",
    "residual.channel_norm": "post_attention_layernorm",
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
    inner: int
    """Of the gated channel mixer."""
    heads: int = 4


def default_shape(width: int, layers: int) -> Shape:
    """With the library's default expansion, 8/3."""
    return Shape(width, layers, round(width * 8 / 3))


def batch(tokens: int, length: int) -> tuple[Tensor, Tensor]:
    """Random inputs and targets [B, T] of about `tokens` tokens, one row at least."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(VOCABULARY, (max(1, tokens // length), length + 1), generator=generator)
    return drawn[:, :-1], drawn[:, 1:].contiguous()


def mixer_settings(spec: str) -> dict[str, Any]:
    """``NAME`` or ``NAME:PRESET`` as a model's settings have it."""
    name, _, preset = spec.partition(":")
    return {"name": name, "preset": preset} if preset else {"name": name}


def ours(shape: Shape, length: int, mixer: str = "attention") -> ParibusForCausalLM:
    """Our model with `mixer` in every layer, initialised.

    Raises:
        ValueError: no such mixer, or one that does not fit.
    """
    run = _run(shape, length, mixer)
    check_model(run)
    return _built(run)


def equal_models(shape: Shape, length: int, mixers: list[str]) -> dict[str, ParibusForCausalLM]:
    """Our model with attention and with each of `mixers`, channel mixers resized until parameters agree.

    Raises:
        ValueError: no such mixer, one that does not fit, or sizes that cannot be made equal.
    """
    others = [mixer for mixer in dict.fromkeys(mixers) if mixer != "attention"]
    reference = _run(shape, length, "attention")
    if not others:
        return {"attention": _built(reference)}
    levels = {name: mixer_settings(name) for name in ("attention", *others)}
    study = Study(
        question="How fast is each mixer?",
        base=reference,
        vary={"model.blocks.main.mixer": levels},
        reference="attention",
        equal="parameters",
    )
    return {name: _built(run) for name, run in equalize(study).runs.items()}


def _built(run: Run) -> ParibusForCausalLM:
    model = build_model(run)
    assert isinstance(model, ParibusForCausalLM), "the default task"
    return model


def _run(shape: Shape, length: int, mixer: str) -> Run:
    """A run for the sake of its model; it is never trained."""
    channel = {"name": "glu", "expansion": shape.inner / shape.width}
    model = {
        "vocab_size": VOCABULARY,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "max_position_embeddings": length,
        "blocks": {"main": {"mixer": mixer_settings(mixer), "channel": channel}},
    }
    data = Data(corpora={"none": 1.0}, sequence_length=length, batch_size=1)
    return Run(name="benchmark", model=model, data=data, budget=Budget(steps=1))


def ours_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """As the training loop asks for it."""
    return model(input_ids=inputs, targets=targets, return_logits=False).loss


def llama_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of the same targets; `labels` only says that a loss is wanted."""
    return model(input_ids=inputs, labels=targets, shift_labels=targets).loss


def logits_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The same of a model that returns logits, or an output that has them."""
    output = model(inputs)
    logits = getattr(output, "logits", output)
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def llama(shape: Shape, length: int, twin: ParibusForCausalLM) -> LlamaForCausalLM:
    """Llama of the same shape with the weights of our attention model `twin`."""
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


@dataclass(frozen=True)
class Peer:
    """Somebody else's model whose every block is one of our mixers, with no channel mixer."""

    mixer: str
    name: str
    build: Callable[[Shape], nn.Module]
    loss: Loss = logits_loss


def mamba2_of_transformers(chunk: int, shape: Shape) -> nn.Module:
    """transformers' Mamba2 with our mixer's default sizes and chunks of `chunk` tokens."""
    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_heads=shape.heads,
        head_dim=2 * shape.width // shape.heads,
        state_size=64,
        n_groups=1,
        chunk_size=chunk,
        use_cache=False,
    )
    return Mamba2ForCausalLM(config)


def mamba_of_mambapy(shape: Shape) -> nn.Module:
    """The Mamba of the package mambapy, a parallel scan in plain torch, between an embedding and a head.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from mambapy.mamba import Mamba, MambaConfig
    except ImportError:
        raise ValueError("its peer is the package mambapy, which is not installed: pip install mambapy") from None
    return nn.Sequential(
        nn.Embedding(VOCABULARY, shape.width),
        Mamba(MambaConfig(d_model=shape.width, n_layers=shape.layers)),
        nn.RMSNorm(shape.width),
        nn.Linear(shape.width, VOCABULARY, bias=False),
    )


PEERS = (
    Peer("mamba2", "transformers_mamba2", partial(mamba2_of_transformers, 256)),
    Peer("mamba2", "transformers_mamba2_chunk_64", partial(mamba2_of_transformers, 64)),
    Peer("mamba", "mambapy", mamba_of_mambapy),
)
"""transformers' Mamba2 with its default chunks, and with those that are its fastest on a CPU."""


def beside_peer(peer: Peer, shape: Shape, length: int) -> tuple[ParibusForCausalLM, nn.Module]:
    """Our model and its peer's; ours has a channel mixer one channel wide, since theirs has none.

    Raises:
        ValueError: the peer is not installed, or the parameters differ by more than the equalizer's tolerance.
    """
    model = ours(Shape(shape.width, shape.layers, 1), length, peer.mixer)
    theirs = peer.build(shape)
    counts = parameter_count(model), parameter_count(theirs)
    if abs(counts[0] - counts[1]) > TOLERANCE * counts[1]:
        raise ValueError(f"{peer.mixer} has {counts[0]:,} parameters and {peer.name} {counts[1]:,}; not comparable")
    return model, theirs
