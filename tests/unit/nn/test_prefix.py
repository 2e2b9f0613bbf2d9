"""Prefixes: both readings of every mixer against two mixers of one direction each, and in whole models."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paribus.evaluation.contract.subjects import shake, tokens
from paribus.nn.channel import Channel
from paribus.nn.component import CHANNELS, MIXERS, RESIDUALS, make_channel, make_mixer
from paribus.nn.config import ParibusConfig
from paribus.nn.initialization import initialize
from paribus.nn.mixer import Context, Mixer, Placement, make_context
from paribus.nn.prefix import Prefixed, make_twin
from paribus.nn.segments import Rows
from paribus.nn.state import State
from paribus.nn.tasks.causal_lm import ParibusForCausalLM
from paribus.nn.tasks.masked_lm import ParibusForMaskedLM
from paribus.nn.token_shift import TokenShift

NEIGHBOURS = [name for name in CHANNELS.names() if not issubclass(CHANNELS.component(name, Mixer), Channel)]
MAKERS: dict[str, Callable[[Placement], Mixer]] = {
    **{name: functools.partial(make_mixer, {"name": name}) for name in MIXERS.names()},
    **{f"channel-{name}": functools.partial(make_channel, {"name": name}) for name in NEIGHBOURS},
    "shift-half": lambda placement: TokenShift(placement, "half"),
    "shift-learned": lambda placement: TokenShift(placement, "learned"),
    "attention-xpos": functools.partial(make_mixer, {"name": "attention", "position": "xpos"}),
}
PREFIX = {"name": "causal_lm", "prefix": True}


@functools.cache
def made(
    mixer: str = "attention", task: str = "prefix", residual: str = "pre", channel: str = "glu", **block: Any
) -> Any:
    """A model of two layers in float64; of any task it has the same weights."""
    chosen = {"prefix": PREFIX, "plain": {"name": "causal_lm"}, "both": {"name": "masked_lm", "mask_token": 60}}[task]
    parts = {"mixer": {"name": mixer}, "channel": {"name": channel}, "residual": {"name": residual}}
    config = ParibusConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        max_position_embeddings=32,
        blocks={"main": {**parts, **block}},
        task=chosen,
        causal=task != "both",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = (ParibusForMaskedLM if task == "both" else ParibusForCausalLM)(config)
    initialize(model, seed=1)
    shake(model)
    return model.double().eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(0))


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def reference(causal: Mixer, both: Mixer, x: Tensor, segments: Tensor, lengths: list[int]) -> Tensor:
    """Document by document: one mixer reads it, and one its prefix alone."""
    y = torch.zeros_like(x)
    for row, length in enumerate(lengths):
        for document in segments[row].unique().tolist():
            places = (segments[row] == document).nonzero()[:, 0]
            if document:
                found = causal(x[row, places][None], context=make_context(causal))[0][0]
                if length:
                    inside = both(x[row, places[:length]][None], context=make_context(both))[0][0]
                    found = torch.cat([inside, found[length:]])
                y = y.index_put((torch.tensor(row), places), found)
    return y


@pytest.mark.parametrize("name", MAKERS)
def test_each_token_is_read_by_the_mixer_of_its_direction(name: str) -> None:
    placement = Placement(width=32, num_layers=2, max_length=32)
    causal, both = MAKERS[name](placement), MAKERS[name](Placement(**{**vars(placement), "causal": False}))
    initialize(causal, seed=1)
    shake(causal)
    both.load_state_dict(causal.state_dict())
    causal, both = causal.double(), both.double()
    twin = make_twin(causal, MAKERS[name], name)
    assert twin is not None

    whole = [1] * 13
    packed = [0, 0, 1, 1, 1, 0, 1, 1, 4, 4, 4, 4, 0]
    for marks, lengths in (([whole, whole, whole], [0, 5, 20]), ([packed, packed, whole], [3, 2, 1])):
        x, segments = tokens(3, 13), torch.tensor(marks)
        inputs = [x.requires_grad_(), *causal.parameters()]
        context = make_context(causal)
        context.prefix_length = torch.tensor(lengths)
        plain = None if marks[0] is whole else segments
        y, state = Prefixed(causal, twin)(x, segments=plain, state=None, keep_state=False, context=context)
        expected = reference(causal, both, x, segments, lengths)
        close(y, expected)
        assert state is None
        weights = tokens(3, 13, seed=3)
        found = torch.autograd.grad((y * weights).sum(), inputs, allow_unused=True)
        of_x, *of_causal = torch.autograd.grad((expected * weights).sum(), inputs, allow_unused=True, retain_graph=True)
        _, *of_both = torch.autograd.grad((expected * weights).sum(), [x, *both.parameters()], allow_unused=True)
        close(found[0], of_x)
        for got, one, other in zip(found[1:], of_causal, of_both, strict=True):
            terms = [gradient for gradient in (one, other) if gradient is not None]
            assert (got is None) == (not terms)
            if got is not None:
                close(got, sum(terms[1:], terms[0]))


def test_attention_is_the_causal_mask_with_the_square_of_the_prefix_filled_in(ids: Tensor) -> None:
    settings = {"name": "attention", "num_heads": 1, "position": "none"}
    mixer = make_mixer(settings, Placement(width=8))
    initialize(mixer, seed=1)
    mixer = mixer.double()
    twin = make_twin(mixer, functools.partial(make_mixer, settings), "attention")
    x = tokens(2, 11, width=8)
    y, _ = Prefixed(mixer, twin)(
        x, segments=None, state=None, keep_state=False, context=Context(prefix_length=torch.tensor([4, 7]))
    )
    for row, length in enumerate((4, 7)):
        seen = torch.ones(11, 11).tril().bool()
        seen[:length, :length] = True
        scores = mixer.query(x[row]) @ mixer.key(x[row]).T / 8**0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        close(y[row], mixer.output(weights @ mixer.value(x[row])))


@pytest.mark.parametrize("name", MIXERS.names())
def test_a_prefix_is_what_a_model_of_both_directions_makes_of_it(name: str, ids: Tensor) -> None:
    model, both, plain = (made(name, task) for task in ("prefix", "both", "plain"))
    assert model.state_dict().keys() == both.state_dict().keys() == plain.state_dict().keys()
    lengths = torch.tensor([5, 8])
    logits = model(ids, prefix_length=lengths).logits
    for row, length in enumerate(lengths.tolist()):
        close(logits[row, :length], both(ids[row : row + 1, :length]).logits[0])
    close(model(ids, prefix_length=0 * lengths).logits, plain(ids).logits)
    close(model(ids).logits, plain(ids).logits)

    other = ids.clone()
    other[0, 4], other[1, 8] = 3 + ids[0, 4] % 50, 3 + ids[1, 8] % 50
    changed = (model(other, prefix_length=lengths).logits - logits).abs().amax(-1)
    assert changed[0, :4].max() > 1e-7, "no token of the prefix depends on its last one"
    assert changed[1, :8].max() == 0, "a token of the prefix depends on one behind it"


@pytest.mark.parametrize("name", MIXERS.names())
def test_the_cache_changes_nothing(name: str, ids: Tensor) -> None:
    model = made(name)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    asked = {
        "attention_mask": mask,
        "prefix_length": torch.tensor([5, 11]),
        "do_sample": False,
        "max_new_tokens": 3,
        "min_new_tokens": 3,
    }
    cached, bare = (
        model.generate(ids, use_cache=cache, output_logits=True, return_dict_in_generate=True, **asked)
        for cache in (True, False)
    )
    assert torch.equal(cached.sequences, bare.sequences)
    close(torch.stack(cached.logits), torch.stack(bare.logits))
    alone = model.generate(ids[:1, 4:], prefix_length=torch.tensor([5]), do_sample=False, max_new_tokens=3)
    assert torch.equal(cached.sequences[0, 4 : 4 + alone.shape[1]], alone[0])


def test_beams_repeat_prefixes(ids: Tensor) -> None:
    asked = {"prefix_length": torch.tensor([11, 3]), "num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4}
    model = made("gla")
    cached, bare = (model.generate(ids, use_cache=cache, do_sample=False, **asked) for cache in (True, False))
    assert torch.equal(cached, bare)


@pytest.mark.parametrize(
    ("residual", "mixer"), [*((name, "gla") for name in RESIDUALS.names()), ("pre", "rwkv7"), ("reversible", "rwkv7")]
)
def test_documents_pieces_and_gradients_with_every_residual_scheme(residual: str, mixer: str, ids: Tensor) -> None:
    model = made(mixer, residual=residual, channel="rwkv", token_shift="learned")
    lengths = torch.tensor([4, 4])
    logits = model(ids, prefix_length=lengths).logits
    packed, segments = ids.reshape(1, 22), torch.tensor([[1] * 11 + [2] * 11])
    close(model(packed, attention_mask=segments, prefix_length=lengths[:1]).logits.view_as(logits), logits)

    first = model(ids[:, :6], prefix_length=lengths, use_cache=True)
    rest = model(ids[:, 6:], prefix_length=lengths, past_key_values=first.past_key_values)
    close(torch.cat([first.logits, rest.logits], 1), logits)

    gradients = []
    for memory in ("kept", "hidden states", "checkpointed"):
        one = copy.deepcopy(model).train()
        if memory == "checkpointed":
            one.activation_checkpointing_enable()
        one(ids, prefix_length=lengths, labels=ids, output_hidden_states=memory == "hidden states").loss.backward()
        gradients.append([parameter.grad for parameter in one.parameters()])
    for kept, *others in zip(*gradients, strict=True):
        assert kept is not None and kept.isfinite().all()
        for other in others:
            close(other, kept)


def test_layers_share_no_table_between_readings(ids: Tensor) -> None:
    """With two directions xpos is rotary, whose table behind a prefix the next layer must not find."""
    model = copy.deepcopy(made("attention"))
    blocks = {
        position: {"mixer": {"name": "attention", "position": position}, "channel": {"name": "glu"}}
        for position in ("xpos", "rotary")
    }
    config = ParibusConfig(**{**model.config.to_dict(), "blocks": blocks, "layout": list(blocks)})
    other = ParibusForCausalLM(config).double().eval()
    other.load_state_dict(model.state_dict())
    lengths = torch.tensor([4, 4])
    first = other(ids[:, :6], prefix_length=lengths, use_cache=True)
    rest = other(ids[:, 6:], prefix_length=lengths, past_key_values=first.past_key_values)
    close(torch.cat([first.logits, rest.logits], 1), other(ids, prefix_length=lengths).logits)


def test_padding_behind_a_prefix_is_no_part_of_it(ids: Tensor) -> None:
    model, lengths = made("gla"), torch.tensor([3, 3])
    first = model(ids[:, :3], prefix_length=lengths, use_cache=True)
    mask = torch.tensor([[1] * 4, [1] * 3 + [0]])
    rest = model(ids[:, 3:4], attention_mask=mask, prefix_length=lengths, past_key_values=first.past_key_values)
    close(rest.logits[0], model(ids[:1, :4], prefix_length=lengths[:1]).logits[0, 3:])


class Losing(Mixer):
    """Adds one to a loss each time that it is called."""

    def mix(self, x: Tensor, rows: Rows, state: State, context: Context | None) -> tuple[Tensor, State]:
        assert context is not None
        context.add_loss("calls", torch.ones(()))
        return x, state


def test_losses_count_once() -> None:
    context = Context(prefix_length=torch.tensor([2]))
    parts = [Losing(Placement(8, causal=causal), None) for causal in (True, False)]
    Prefixed(*parts)(tokens(1, 4, width=8), segments=None, state=None, keep_state=False, context=context)
    assert context.losses == {"calls": 1}
    assert make_twin(make_channel({"name": "mixture_of_experts"}, Placement(8)), None, "channel") is None


def test_later_layers_get_the_first_value_of_each_tokens_own_reading(ids: Tensor) -> None:
    found = []
    for task, length in (("prefix", torch.tensor([6, 6])), ("both", None), ("plain", None)):
        block = made("rwkv7", task).model.blocks[0]
        context = Context(prefix_length=length)
        x = tokens(2, 11 if task != "both" else 6)
        block(x if task != "both" else tokens(2, 11)[:, :6], None, None, False, context)
        found.append(context.first_value[1])
    close(found[0], torch.cat([found[1], found[2][:, 6:]], 1))


def test_saved_and_loaded(ids: Tensor, tmp_path: Path) -> None:
    model, lengths = made("gla", token_shift="half"), torch.tensor([5, 9])
    model.save_pretrained(tmp_path)
    loaded = ParibusForCausalLM.from_pretrained(tmp_path)
    expected = model(ids, prefix_length=lengths).logits
    close(loaded(ids, prefix_length=lengths).logits, expected)
    close(copy.deepcopy(model)(ids, prefix_length=lengths).logits, expected)


def test_what_cannot_be_a_prefix_is_refused(ids: Tensor) -> None:
    model = made("gla")
    for wrong, message in (
        (torch.tensor([1.0, 2.0]), r"prefix_length has shape \[2\] and is torch.float32; a whole number for each of 2"),
        (torch.tensor([1]), r"prefix_length has shape \[1\] and is torch.int64; a whole number for each of 2 rows"),
        (torch.tensor([-1, 2]), "prefix_length is -1; 0 or more is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            model(ids, prefix_length=wrong)
    with pytest.raises(ValueError, match=r"prefix_length is given; the model's task is {'name': 'causal_lm'}, and"):
        made("gla", "plain")(ids, prefix_length=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="prefix_length is 9, and 4 tokens of that prefix are in the cache already"):
        model.generate(ids, prefix_length=torch.tensor([4, 9]), prefill_chunk_size=4, max_new_tokens=2)
    with pytest.raises(ValueError, match="prefix_length is 12, and 11 tokens of that prefix are in the cache already"):
        model.generate(ids, prefix_length=torch.tensor([4, 12]), max_new_tokens=2, min_new_tokens=2)


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        ({"name": "attention", "position": "relative_bias"}, "position is 'relative_bias', whose buckets mean other"),
        (
            {"name": "attention", "position": "toeplitz"},
            r"'position_bias.table' has shape \[4, 32\] when it reads forward and",
        ),
        ({"name": "aft", "preset": "local"}, "when it reads forward and"),
    ],
)
def test_mixers_whose_parameters_have_a_direction_are_refused(mixer: dict[str, Any], message: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 32}
    with pytest.raises(ValueError, match=rf"block 'main': mixer: .*{message}"):
        ParibusForCausalLM(ParibusConfig(**sizes, blocks={"main": {"mixer": mixer, "channel": None}}, task=PREFIX))


def test_parameters_of_other_names_are_refused(ids: Tensor) -> None:
    model = copy.deepcopy(made("gla"))
    model.model.blocks[0].mixer.query = nn.Sequential(model.model.blocks[0].mixer.query)
    with pytest.raises(
        ValueError,
        match=r"GatedLinearAttention: its parameters are called query\.0\.weight, .* \(merge adapters first\)",
    ):
        model(ids, prefix_length=torch.tensor([1, 2]))
