"""Embedding, blocks and the final norm: the part that every task shares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .absolute_positions import make_absolute_position
from .block import Block
from .cache import StateCache
from .config import ParibusConfig
from .embedding import Embedding, EmbeddingConfig
from .initialization import get_initialization, initialize_module, mark_places
from .mixer import Context, Placement, make_context
from .norm import make_norm
from .patches import ClassToken, PatchEmbedding
from .prefix import read_prefix
from .residual import Stream
from .state import State


@dataclass
class BackboneOutput(BaseModelOutputWithPast):
    """What the backbone returns."""

    losses: dict[str, Tensor] | None = None
    """In training, what its parts add to the task's loss (weighted), by name."""


class ParibusPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of every model of this library."""

    config_class = ParibusConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True

    def post_init(self) -> None:
        """Tell every linear map and embedding where it stands, for the initialisation that follows."""
        config = self.config
        mark_places(self, config.hidden_size, config.num_hidden_layers, config.tie_word_embeddings)
        super().post_init()

    def _init_weights(self, module: nn.Module) -> None:
        initialize_module(module, self.config.initialization)


class ParibusModel(ParibusPreTrainedModel):
    """Token ids or embeddings -> hidden states after the final norm."""

    def __init__(self, config: ParibusConfig) -> None:
        super().__init__(config)
        get_initialization(config.initialization)
        self.embedding, self.class_token = _make_embedding(config)
        placement = Placement(
            config.hidden_size, causal=config.causal, max_length=config.max_position_embeddings, grid=config.grid
        )
        self.position = make_absolute_position(config.position, placement)
        self.blocks = nn.ModuleList(Block(config, name, layer) for layer, name in enumerate(config.layer_blocks()))
        self._check_streams()
        self.norm = make_norm(config.norm, config.hidden_size)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # transformers may set another
        self.post_init()

    def _check_streams(self) -> None:
        """All blocks carry as many residual streams, or the one cannot read what the other writes."""
        first, *others = (self._block_at(layer).residual.streams for layer in range(len(self.blocks)))
        names = self.config.layer_blocks()
        for name, streams in zip(names[1:], others, strict=True):
            if streams != first:
                raise ValueError(
                    f"block '{name}': residual: its scheme carries {streams} streams; that of block '{names[0]}' "
                    f"carries {first}, and all blocks of a model must carry as many"
                )

    @property
    def num_states(self) -> int:
        """How many states a cache holds: one for each layer, and one for positions that are added to embeddings."""
        return len(self.blocks) + (self.position is not None)

    def get_input_embeddings(self) -> nn.Module:
        """The table of the token embedding, or the map of an image's patches."""
        return self.embedding.projection if isinstance(self.embedding, PatchEmbedding) else self.embedding.table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of the token embedding, or the map of an image's patches."""
        if isinstance(self.embedding, PatchEmbedding):
            self.embedding.projection = value  # type: ignore[assignment]  # transformers hands in an nn.Linear
        else:
            self.embedding.table = value  # type: ignore[assignment]  # transformers hands in an nn.Embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: StateCache | None = None,
        pixel_values: Tensor | None = None,
        condition: Tensor | None = None,
        prefix_length: Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Run the backbone.

        Args:
            input_ids: [B, T].
            attention_mask: [B, S + T] (past included) or [B, T]: 0 is padding; equal non-zero numbers belong
                together, so a mask of segment ids packs several documents in a row.
            inputs_embeds: [B, T, D] in place of ids.
            pixel_values: [B, channels, size, size] in place of ids, for a model of images.
            condition: [B, D], what rows are made for; see `Context.condition`.
            prefix_length: [B], how many tokens of each segment, from its first, see one another both ways; 0 is none.
            past_key_values: what an earlier call returned; a cache of another kind must be empty and is replaced.

        Raises:
            ValueError: not exactly one of ids (or pixels) and embeddings; a cache of another kind that holds tokens;
                a prefix that the model was not made for, or that began in the cache.
        """
        x = self._embed(input_ids, pixel_values, inputs_embeds)
        cache = self._cache(past_key_values, use_cache)
        states = cache.states() if cache is not None else [None] * self.num_states
        segments = _segments(attention_mask, x.shape[1])
        if self.position is not None:
            x, states[-1] = self.position(x, segments=segments, state=states[-1], keep_state=cache is not None)
        if self.class_token is not None:
            x = self.class_token(x)
        hidden_states = [x]
        context = make_context(self.blocks)
        context.condition = condition
        context.prefix_length = self._prefix(prefix_length, len(x))
        scheme = self._block_at(0).residual
        recompute = torch.is_grad_enabled() and cache is None and not output_hidden_states
        stream = scheme.start(x, recompute)
        for layer in range(len(self.blocks)):
            block = self._block_at(layer)
            stream, states[layer] = self._block(block, stream, segments, states[layer], cache is not None, context)
            if output_hidden_states:
                hidden_states.append(scheme.end(stream).to(x.dtype))
        x = self.norm(scheme.end(stream).to(x.dtype))
        if cache is not None:
            cache.store(states, x.shape[1])
        output = BackboneOutput(
            last_hidden_state=x,
            past_key_values=cache,
            hidden_states=(*hidden_states[:-1], x) if output_hidden_states else None,
            losses=context.losses if self.training else None,
        )
        return output if return_dict else output.to_tuple()

    def _embed(self, ids: Tensor | None, pixels: Tensor | None, embeddings: Tensor | None) -> Tensor:
        of_images = isinstance(self.embedding, PatchEmbedding)
        wanted, other = ("pixel_values", "input_ids") if of_images else ("input_ids", "pixel_values")
        given, unfit = (pixels, ids) if of_images else (ids, pixels)
        if unfit is not None or (given is None) == (embeddings is None):
            raise ValueError(f"pass exactly one of {wanted} and inputs_embeds, and no {other}")
        if embeddings is not None:
            return embeddings
        x: Tensor = self.embedding(given)
        return x

    def _prefix(self, prefix_length: Tensor | None, rows: int) -> Tensor | None:
        if prefix_length is None:
            return None
        if not self.config.task.get("prefix", False):
            raise ValueError(
                f"prefix_length is given; the model's task is {self.config.task}, "
                "and {'name': 'causal_lm', 'prefix': True} is needed"
            )
        return read_prefix(prefix_length, rows)

    def _block_at(self, layer: int) -> Block:
        block = self.blocks[layer]
        assert isinstance(block, Block), "made in __init__"
        return block

    def _block(
        self, block: Block, x: Stream, segments: Tensor | None, state: State, keep_state: bool, context: Context
    ) -> tuple[Stream, State]:
        arguments = (x, segments, state, keep_state, context)
        if self.gradient_checkpointing and self.training and block.residual.streams == 1:
            return self._gradient_checkpointing_func(block.__call__, *arguments)
        return block(*arguments)

    def _cache(self, past: StateCache | None, use_cache: bool) -> StateCache | None:
        if past is not None and not isinstance(past, StateCache):
            if past.get_seq_length() > 0:
                raise ValueError(f"past_key_values is a {type(past).__name__} with tokens in it; pass a StateCache")
            past = None
        if past is None and use_cache:
            return StateCache(self.num_states)
        return past


def _make_embedding(config: ParibusConfig) -> tuple[Embedding | PatchEmbedding, ClassToken | None]:
    """Of ids, or of an image's patches, with the token that goes behind those."""
    if config.image is None:
        return Embedding(config.vocab_size, config.hidden_size, EmbeddingConfig(**config.embedding)), None
    image = config.image_config
    return PatchEmbedding(image, config.hidden_size), ClassToken(config.hidden_size) if image.class_token else None


def _segments(attention_mask: Tensor | None, T: int) -> Tensor | None:
    """The segments of the present tokens; None, the fast case, when all of them continue their row."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise ValueError(f"attention_mask has {attention_mask.dim()} dimensions; [B, T] is needed")
    segments = attention_mask[:, -T:]
    return None if bool((segments == 1).all()) else segments


def parameter_count(model: nn.Module) -> int:
    """Number of distinct parameters (tied ones once)."""
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(config: ParibusConfig, model_class: type[ParibusPreTrainedModel]) -> ParibusPreTrainedModel:
    """The model without memory or values, to count its parameters."""
    with torch.device("meta"):
        return model_class(config)
