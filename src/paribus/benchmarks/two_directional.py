"""Training steps of our models that see both sides, beside transformers' BERT and ViT of the same shape.

Equal are width, layers, heads, inner width, GELU, LayerNorm and where it stands (after the sum, as BERT; before each
branch, as ViT), learned positions and the batch. Ours has no biases in its blocks. The classifier gets ViT's function:
its weights are ours, and the losses are compared before anything is timed. BERT does more in two places: a norm behind
its embeddings in place of our last one, and one more map, activation and norm before its head. Its head makes the
logits of all tokens, ours those of the hidden ones only, 15 % of them, and never all at once; that is our gain where
the vocabulary is large. Each peer runs with both of its kinds of attention. A step is the training loop's: forward,
backward, clipping, AdamW, with the rounds interleaved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, AutoModelForMaskedLM, BertConfig, ViTConfig

from paribus.data.masking import Masking
from paribus.nn.backbone import parameter_count
from paribus.nn.initialization import initialize
from paribus.nn.model_settings import read_model_config
from paribus.nn.task import TaskModel, task_model

from .record import append_rows, show
from .timing import CLOCKS, Loss, interleaved, per_second, ratios, training_step
from .whole import Shape

_PATCH, _CHANNELS, _CLASSES = 4, 3, 10
_MASK_TOKEN = 253
_MASK_RATE = 0.15
ATTENTIONS = ("eager", "sdpa")
"""Of the peers."""
_VIT_NAMES = {
    "model.embedding.projection": "vit.embeddings.patch_embeddings.projection",
    "model.blocks": "vit.layers",
    "residual.mixer_norm": "layernorm_before",
    "residual.channel_norm": "layernorm_after",
    "mixer.query": "attention.q_proj",
    "mixer.key": "attention.k_proj",
    "mixer.value": "attention.v_proj",
    "mixer.output": "attention.o_proj",
    "channel.up": "mlp.fc1",
    "channel.output": "mlp.fc2",
    "model.norm": "vit.layernorm",
    "head": "classifier",
}
_COLUMNS = (
    "task",
    "length",
    "vocabulary",
    "peer",
    "attention",
    "parameters",
    "peer_parameters",
    "tokens_per_second",
    "ratio_to_peer",
    "ratio_quartile_1",
    "ratio_quartile_3",
)


@dataclass(frozen=True)
class Contest:
    """Our model and its peers, which compute the same from the same batch."""

    facts: dict[str, Any]
    """What the rows of the table say of it."""
    mine: nn.Module
    mine_loss: Loss
    peers: dict[str, nn.Module]
    """By the kind of their attention."""
    peer_loss: Loss
    inputs: Tensor
    targets: Tensor
    num_tokens: int
    """Of the batch."""


def bench(
    *,
    lengths: list[int],
    vocabularies: list[int],
    image_sizes: list[int],
    tokens: int,
    width: int,
    layers: int,
    clock: str,
    rounds: int,
    threads: int,
    results: Path,
) -> None:
    """Measure, print and append to two_directional.csv.

    Raises:
        ValueError: a width that its heads do not divide, a vocabulary without room for the mask token, or an image
            that its patches do not fill.
    """
    torch.set_num_threads(threads)
    shape = Shape(width, layers, 4 * width)
    sizes = [(length, vocabulary) for length in lengths for vocabulary in vocabularies]
    contests = (
        *(partial(beside_bert, shape, *size, tokens) for size in sizes),
        *(partial(beside_vit, shape, size, tokens) for size in image_sizes),
    )
    for make in contests:
        found = compare(make(), rounds, CLOCKS[clock])
        rows = [{"width": width, "layers": layers, **row, "clock": clock} for row in found]
        show(rows, _COLUMNS)
        append_rows(results, "two_directional", rows)


def compare(contest: Contest, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Rows: our model beside each peer."""
    models = {"": (contest.mine, contest.mine_loss)}
    models |= {name: (peer, contest.peer_loss) for name, peer in contest.peers.items()}
    steps = {
        name: training_step(model, loss, contest.inputs, contest.targets, clock=clock)
        for name, (model, loss) in models.items()
    }
    seconds = interleaved(steps, rounds)
    return [
        {
            **contest.facts,
            "attention": name,
            "parameters": parameter_count(contest.mine),
            "peer_parameters": parameter_count(peer),
            "tokens_per_step": contest.num_tokens,
            "tokens_per_second": per_second(contest.num_tokens, seconds[""]),
            "peer_tokens_per_second": per_second(contest.num_tokens, seconds[name]),
            **ratios(seconds[""], seconds[name], "peer"),
        }
        for name, peer in contest.peers.items()
    ]


def beside_bert(shape: Shape, length: int, vocabulary: int, tokens: int) -> Contest:
    """Our masked language model, its head tied as BERT's, and a batch of about `tokens` tokens, one row at least."""
    task = {"name": "masked_lm", "mask_token": _MASK_TOKEN}
    text = {"vocab_size": vocabulary, "max_position_embeddings": length, "tie_word_embeddings": True}
    drawn = torch.randint(vocabulary, (max(1, tokens // length), length), generator=torch.Generator().manual_seed(0))
    masking = Masking(_MASK_RATE, "bert")
    everywhere = torch.ones_like(drawn, dtype=torch.bool)
    inputs, labels = masking(drawn, everywhere, mask_token=_MASK_TOKEN, vocab_size=vocabulary, seed=0, step=0)
    return Contest(
        facts={"task": "masked_lm", "length": length, "vocabulary": vocabulary, "peer": "bert"},
        mine=_ours(shape, "post", {"task": task, **text}),
        mine_loss=masked_loss,
        peers={name: bert(shape, length, vocabulary, name) for name in ATTENTIONS},
        peer_loss=bert_loss,
        inputs=inputs,
        targets=labels,
        num_tokens=inputs.numel(),
    )


def bert(shape: Shape, length: int, vocabulary: int, attention: str) -> nn.Module:
    """BERT without dropout."""
    config = BertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=length,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **_peer_sizes(shape),
    )
    model: nn.Module = AutoModelForMaskedLM.from_config(config, attn_implementation=attention)
    return model


def beside_vit(shape: Shape, size: int, tokens: int) -> Contest:
    """Our image classifier, ViT with the same weights, and a batch of about `tokens` patches, one image at least."""
    task = {"name": "image_classification", "num_classes": _CLASSES}
    image = {"size": size, "patch_size": _PATCH, "num_channels": _CHANNELS, "class_token": True}
    length = (size // _PATCH) ** 2 + 1
    mine = _ours(shape, "pre", {"task": task, "image": image, "max_position_embeddings": length})
    generator = torch.Generator().manual_seed(0)
    num_images = max(1, tokens // length)
    contest = Contest(
        facts={"task": "image_classification", "length": length, "vocabulary": "", "peer": "vit"},
        mine=mine,
        mine_loss=image_loss,
        peers={name: vit(shape, mine, name) for name in ATTENTIONS},
        peer_loss=image_loss,
        inputs=torch.rand(num_images, _CHANNELS, size, size, generator=generator) * 2 - 1,
        targets=torch.randint(_CLASSES, (num_images,), generator=generator),
        num_tokens=num_images * length,
    )
    expected = image_loss(mine, contest.inputs, contest.targets)
    for peer in contest.peers.values():
        torch.testing.assert_close(image_loss(peer, contest.inputs, contest.targets), expected)
    return contest


def vit(shape: Shape, twin: TaskModel, attention: str) -> nn.Module:
    """ViT with the weights of our classifier `twin`, its biases zero."""
    image = twin.config.image_config
    config = ViTConfig(
        image_size=image.size,
        patch_size=image.patch_size,
        num_channels=image.num_channels,
        layer_norm_eps=twin.model.norm.eps,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **_peer_sizes(shape),
    )
    config.num_labels = _CLASSES
    model: nn.Module = AutoModelForImageClassification.from_config(config, attn_implementation=attention)
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    for name, value in twin.state_dict().items():
        if name == "model.class_token.vector":
            weights["vit.embeddings.cls_token"][0, 0] = value
        elif name == "model.position.table":  # the class token, which is ViT's first, has no position
            weights["vit.embeddings.position_embeddings"][0, 1:] = value[:-1]
        else:
            theirs = _vit_name(name)
            weights[theirs] = value.view_as(weights[theirs])
    model.load_state_dict(weights)
    return model


def masked_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Ours, as the training loop asks for it."""
    return model(input_ids=inputs, labels=labels, return_logits=False).loss


def bert_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """BERT's, which returns logits as well."""
    return model(input_ids=inputs, labels=labels).loss


def image_loss(model: nn.Module, pixels: Tensor, classes: Tensor) -> Tensor:
    """Of a classifier, ours or ViT's."""
    return model(pixel_values=pixels, labels=classes).loss


def _ours(shape: Shape, residual: str, settings: dict[str, Any]) -> TaskModel:
    """Our model with attention, a perceptron, LayerNorm and learned positions, initialised."""
    block = {
        "mixer": {"name": "attention", "preset": "no_position", "num_heads": shape.heads},
        "channel": {"name": "mlp", "expansion": shape.inner / shape.width},
        "residual": {"name": residual},
        "norm": "layer_norm",
    }
    sizes = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "causal": False}
    whole = {"blocks": {"main": block}, "norm": "layer_norm", "position": "learned"}
    config = read_model_config({**sizes, **whole, **settings})
    model = task_model(config)(config)
    initialize(model, 0, config.initialization)
    return model


def _peer_sizes(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "hidden_act": "gelu",
    }


def _vit_name(name: str) -> str:
    for mine, theirs in _VIT_NAMES.items():
        name = name.replace(mine, theirs)
    return name
