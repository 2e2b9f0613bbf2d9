"""The architecture as transformers stores it: sizes, named blocks and a layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from transformers import PretrainedConfig

from .embedding import EmbeddingConfig
from .patches import ImageConfig
from .settings import nearest, read_settings

CAUSAL_LM: dict[str, Any] = {"name": "causal_lm"}
DEFAULT_BLOCKS: dict[str, Any] = {"main": {"mixer": {"name": "attention"}, "channel": {"name": "glu"}}}


@dataclass(frozen=True)
class BlockConfig:
    """One kind of block: which token mixer, channel mixer, residual scheme and norm."""

    mixer: dict[str, Any]
    """``{"name": ..., "preset": ..., **settings of that mixer}``."""
    channel: dict[str, Any] | None
    """The same of a channel mixer; None (null in JSON) is a block without one."""
    residual: dict[str, Any] = field(default_factory=lambda: {"name": "pre"})
    """The same of the residual scheme."""
    norm: str = "rms_norm"
    dropout: float = 0.0
    """Of each branch's output, in training."""
    token_shift: Literal["none", "half", "learned"] = "none"
    """Whether each branch reads tokens partly replaced by their neighbours: half the channels, or a learned share."""


class ParibusConfig(PretrainedConfig):
    """Sizes, ``blocks`` by name, and the ``layout``: the pattern of block names, repeated to `num_hidden_layers`.

    Published checkpoints import this class; it is never subclassed (a subclass would lose its ``__init__``).

    Args:
        vocab_size: tokens that the model knows.
        hidden_size: D, the width of the residual stream.
        num_hidden_layers: blocks, one after the other.
        max_position_embeddings: the longest sequence in tokens.
        blocks: kinds of block by name, each a `BlockConfig`.
        layout: the blocks' names in their order, repeated to the number of layers; a run may name a hybrid.
        causal: whether tokens see only those before them.
        task: what the model is for: ``name`` (causal_lm, masked_lm, image_classification, image_generation) and the
            settings of that task.
        image: for the tasks on images, their size, patches and scan order, an `ImageConfig`; null for text.
        norm: the last norm, after all blocks; each block names its own.
        embedding: how ids become vectors: ``rank`` of the table (0: no factors) and ``scale``.
        position: what is added to the embeddings; positions inside attention are settings of that mixer.
        initialization: the rule of all linear maps and embeddings.
        tie_word_embeddings: whether the head's matrix is the embedding's.
        bos_token_id: what texts begin with.
        eos_token_id: what texts end with.
        pad_token_id: what rows are filled up with.

    Raises:
        ValueError: a block or layout that does not fit, naming the block, the key and the nearest valid one.
    """

    model_type = "paribus"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 256,
        num_hidden_layers: int = 4,
        max_position_embeddings: int = 1024,
        blocks: Mapping[str, Any] = DEFAULT_BLOCKS,
        layout: tuple[str, ...] | list[str] = ("main",),
        causal: bool = True,
        task: Mapping[str, Any] = CAUSAL_LM,
        image: Mapping[str, Any] | None = None,
        norm: str = "rms_norm",
        embedding: Mapping[str, Any] | None = None,
        position: str = "none",
        initialization: str = "fan_in",
        tie_word_embeddings: bool = False,
        bos_token_id: int | None = 255,
        eos_token_id: int | list[int] | None = 255,
        pad_token_id: int | None = 254,
        **transformers_keys: Any,  # transformers writes keys of its own (dtype, auto_map, ...) and reads them back here
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.max_position_embeddings = max_position_embeddings
        self.blocks = _read_blocks(blocks)
        self.layout = _read_layout(layout)
        self.causal = causal
        self.task = _read_task(task)
        self.image = None if image is None else asdict(read_settings(ImageConfig, image, "model: image"))
        self.norm = norm
        self.embedding = asdict(read_settings(EmbeddingConfig, embedding or {}, "model: embedding"))
        self.position = position
        self.initialization = initialization
        self.tie_word_embeddings = tie_word_embeddings
        self._check()
        for name, token in (("bos", bos_token_id), ("eos", eos_token_id), ("pad", pad_token_id)):
            _check_token(name, token)
        super().__init__(  # type: ignore[call-arg]  # its fields are made by a decorator that mypy cannot follow
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **transformers_keys,
        )

    def _check(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"model: {name} is {value!r}; a whole number of at least 1 is needed")
        for name in ("norm", "position", "initialization"):
            if not isinstance(value := getattr(self, name), str):
                raise ValueError(f"model: {name} is {value!r}; a name is needed")
        for name in ("causal", "tie_word_embeddings"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"model: {name} is {value!r}; true or false is needed")
        if self.tie_word_embeddings and self.initialization == "mup":
            raise ValueError(
                "model: initialization 'mup' scales table and head apart; tie_word_embeddings must be false"
            )
        if self.image is not None and self.image_config.num_tokens > self.max_position_embeddings:
            raise ValueError(
                f"model: max_position_embeddings is {self.max_position_embeddings}; an image has "
                f"{self.image_config.num_tokens} tokens, and at least as many are needed"
            )
        if not self.layout:
            raise ValueError("model: layout is empty; name at least one block")
        for name in self.layout:
            if name not in self.blocks:
                raise ValueError(f"model: layout names the block '{name}'; {nearest(name, self.blocks)}")
        for name in self.blocks:
            self.block(name)

    @property
    def image_config(self) -> ImageConfig:
        """The settings under `image`, which must be there."""
        assert self.image is not None, "asked of models of images only"
        return read_settings(ImageConfig, self.image, "model: image")

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patch rows and columns of an image; None for text."""
        return None if self.image is None else self.image_config.grid

    def block(self, name: str) -> BlockConfig:
        """The settings of the block `name`, checked."""
        block = read_settings(BlockConfig, self.blocks[name], f"block '{name}'")
        if not 0 <= block.dropout < 1:
            raise ValueError(f"block '{name}': dropout is {block.dropout}; 0 or more and less than 1 is needed")
        return block

    def layer_blocks(self) -> list[str]:
        """The block name of every layer: the layout repeated until `num_hidden_layers` are named."""
        return [self.layout[layer % len(self.layout)] for layer in range(self.num_hidden_layers)]


def _read_blocks(blocks: Any) -> dict[str, Any]:
    """A copy, so that the caller's stay as they are; what is in a block is checked when it is read."""
    if not isinstance(blocks, Mapping):
        raise ValueError(f"model: blocks is {blocks!r}; an object of blocks by name is needed")
    return {name: dict(block) if isinstance(block, Mapping) else block for name, block in blocks.items()}


def _read_layout(layout: Any) -> list[str]:
    if not isinstance(layout, list | tuple) or not all(isinstance(name, str) for name in layout):
        raise ValueError(f"model: layout is {layout!r}; a list of names of blocks is needed")
    return list(layout)


def _read_task(task: Any) -> dict[str, Any]:
    """A copy; the settings beside the name are the task's own, which checks them."""
    if not isinstance(task, Mapping) or not isinstance(task.get("name"), str):
        raise ValueError(f"model: task is {task!r}; an object with the key 'name' is needed")
    return dict(task)


def _check_token(name: str, token: Any) -> None:
    """transformers allows None, and several ends of a text."""
    tokens = token if name == "eos" and isinstance(token, list) else [token]
    for value in tokens:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"model: {name}_token_id is {token!r}; the number of a token, or null, is needed")
