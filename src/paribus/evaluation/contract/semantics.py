"""What the answers of whatever looks at other tokens may depend on: direction, state, segments, rows; in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from paribus.nn.state import select_rows, state_tensors

from .subjects import LENGTH, Check, Kind, agree, build, distance, finite, in_pieces, refusal, tokens

EXACT = 1e-10
SEEN = 1e-7
"""The least relative change of an output that depends on a token."""


def check_causal(kind: Kind, name: str) -> None:
    """With causal=True, what comes later changes nothing."""
    module, x = build(kind, name, loud=True), tokens(2, LENGTH)
    y, _ = module(x)
    for t in (1, 2, 63, 64, 65, LENGTH - 1):
        other = torch.cat([x[:, :t], 3 * tokens(2, LENGTH - t, seed=t)], 1)
        agree(
            f"{name}: causal: outputs before token {t} when later tokens change",
            module(other)[0][:, :t],
            y[:, :t],
            1e-12,
        )


def check_dependence(kind: Kind, name: str) -> None:
    """Outputs depend on every token they may see: the past, and with causal=False the future."""
    for causal, reader, sources in ((True, 4, (0, 3, 4)), (False, 2, (0, 1, 2, 3, 4))):
        for source in sources:
            change = _change(kind, name, causal, reader, source)
            assert change > SEEN, (
                f"{name}: dependence: with causal={causal}, output {reader} changes by {change:.1e} "
                f"when token {source} does"
            )


def check_neighbours(kind: Kind, name: str) -> None:
    """Outputs depend on their own token and on some token before, with causal=False also on some token after."""
    for causal, sides in ((True, ((2,), (0, 1))), (False, ((2,), (0, 1), (3, 4)))):
        for sources in sides:
            change = max(_change(kind, name, causal, 2, source) for source in sources)
            assert change > SEEN, (
                f"{name}: neighbours: with causal={causal}, output 2 changes by {change:.1e} "
                f"when one of the tokens {sources} does"
            )


def _change(kind: Kind, name: str, causal: bool, reader: int, source: int) -> float:
    """How much output `reader` of five changes, relative to the largest output, when token `source` does."""
    module, x = build(kind, name, causal=causal), tokens(2, 5)
    y, _ = module(x)
    other = x.clone()
    other[:, source] = tokens(2, 1, seed=9)[:, 0]
    return float((module(other)[0] - y)[:, reader].detach().abs().max() / y.detach().abs().max())


def check_two_directions_keep_no_state(kind: Kind, name: str) -> None:
    """With causal=False a state is neither taken nor returned."""
    module, x = build(kind, name, causal=False), tokens(2, 4)
    _, state = build(kind, name)(x, keep_state=True)
    assert module(x)[1] is None, f"{name}: causal=False: a state was returned"
    refusal(f"{name}: causal=False: keep_state=True", lambda: module(x, keep_state=True))
    refusal(f"{name}: causal=False: state given", lambda: module(x, state=state))


def check_pure(kind: Kind, name: str) -> None:
    """The same input gives the same bits, training or not; nothing else is touched."""
    for causal in (True, False):
        module, x = build(kind, name, causal=causal, loud=True), tokens(2, 17)
        kept, before = x.clone(), torch.get_rng_state()
        training, evaluating = module.train()(x)[0], module.eval()(x)[0]
        assert torch.equal(training, evaluating), (
            f"{name}: pure: two calls differ by {distance(training, evaluating):.1e}"
        )
        assert torch.equal(x, kept), f"{name}: pure: the input was changed in place"
        assert torch.equal(before, torch.get_rng_state()), f"{name}: pure: a forward draws random numbers"


def check_rows_independent(kind: Kind, name: str) -> None:
    """Permuting the batch permutes the answer; a row alone answers the same."""
    x, order = tokens(4, 21), torch.tensor([2, 0, 3, 1])
    segments = _segments([[(21, 1)], [(5, 0), (16, 2)], [(9, 1), (8, 4), (4, 0)], [(10, 3), (11, 5)]])
    for causal in (True, False):
        module = build(kind, name, causal=causal, loud=True)
        y, _ = module(x, segments=segments)
        got, _ = module(x[order], segments=segments[order])
        agree(f"{name}: rows: batch permuted, causal={causal}", got, y[order], 1e-12)
        got, _ = module(x[1:2], segments=segments[1:2])
        agree(f"{name}: rows: a row alone, causal={causal}", got, y[1:2], 1e-12)
        agree(f"{name}: rows: a row alone, plain", module(x[1:2])[0], module(x)[0][1:2], 1e-12)


def check_one_function(kind: Kind, name: str) -> None:
    """A sequence cut anywhere, the state passed on: same answers, same gradients."""
    module, x = build(kind, name, loud=True), tokens(2, LENGTH).requires_grad_()
    whole, nothing = module(x)
    assert nothing is None, f"{name}: one function: a state was returned without keep_state"
    weights = tokens(2, LENGTH, seed=3)
    inputs = [x, *module.parameters()]
    gradients = torch.autograd.grad((whole * weights).sum(), inputs)
    cuts = _random_cuts(LENGTH, seed=4)
    pieces = in_pieces(module, x, None, cuts)
    agree(f"{name}: one function: cut at {cuts}", pieces, whole, EXACT)
    for got, expected in zip(torch.autograd.grad((pieces * weights).sum(), inputs), gradients, strict=True):
        agree(f"{name}: one function: gradients when cut at {cuts}", got, expected, EXACT)
    with torch.no_grad():
        ones = in_pieces(module, x, None, range(1, LENGTH))
    agree(f"{name}: one function: token by token", ones, whole, EXACT)


def check_one_function_in_float32(kind: Kind, name: str) -> None:
    """The same in float32, as decoding runs."""
    module, x = build(kind, name, dtype=torch.float32), tokens(2, 70, dtype=torch.float32)
    with torch.no_grad():
        agree(f"{name}: one function: float32", in_pieces(module, x, None, range(1, 70)), module(x)[0], 1e-4)


def check_one_function_with_segments(kind: Kind, name: str) -> None:
    """Packed and padded rows may be cut anywhere too, inside documents and inside padding."""
    segments = _segments(
        [
            [(7, 0), (30, 1), (20, 2), (3, 0), (10, 2), (20, 5)],
            [(40, 3), (1, 4), (1, 6), (30, 7), (18, 0)],
            [(1, 0), (70, 1), (19, 2)],
        ]
    )
    module, x = build(kind, name, loud=True), tokens(3, segments.shape[1])
    with torch.no_grad():
        whole, _ = module(x, segments=segments)
        for cuts in (_random_cuts(90, seed=5), range(1, 90)):
            agree(
                f"{name}: one function: segments, {len(cuts)} cuts",
                in_pieces(module, x, segments, cuts),
                whole,
                EXACT,
            )
        _, state = module(x[:, :60], segments=segments[:, :60], keep_state=True)
        same = segments[:, :60].amax(1, keepdim=True).expand(-1, 30)
        marked, _ = module(x[:, 60:], segments=same, state=state)
        unmarked, _ = module(x[:, 60:], state=state)
        agree(f"{name}: one function: segments=None continues each row's segment", unmarked, marked, EXACT)


def check_state(kind: Kind, name: str) -> None:
    """A state is batch first, never changed in place; its rows can be chosen and repeated."""
    module, x = build(kind, name, loud=True), tokens(3, 20)
    segments = _segments([[(20, 1)], [(6, 0), (14, 1)], [(8, 1), (12, 2)]])
    with torch.no_grad():
        _, state = module(x[:, :13], segments=segments[:, :13], keep_state=True)
        for tensor in state_tensors(state):
            assert tensor.dim() and tensor.shape[0] == 3, (
                f"{name}: state: a leaf of shape {tuple(tensor.shape)}, batch is 3"
            )
        before = [tensor.clone() for tensor in state_tensors(state)]
        rest, _ = module(x[:, 13:], segments=segments[:, 13:], state=state, keep_state=True)
        after = state_tensors(state)
        assert all(map(torch.equal, before, after)), f"{name}: state: changed in place by a later call"
        order = torch.tensor([2, 0, 0, 1, 2])
        chosen, _ = module(x[order, 13:], segments=segments[order, 13:], state=select_rows(state, order))
    agree(f"{name}: state: rows {order.tolist()} of it", chosen, rest[order], 1e-12)


def check_packing(kind: Kind, name: str) -> None:
    """Packed documents answer as each alone, in both directions."""
    lengths, ids = (1, 5, 70, 2, 64), (1, 2, 3, 7, 9)
    x = tokens(2, sum(lengths))
    segments = _segments([list(zip(lengths, ids, strict=True))]).expand(2, -1)
    for causal in (True, False):
        module = build(kind, name, causal=causal, loud=True)
        alone = torch.cat([module(document)[0] for document in x.split(lengths, 1)], 1)
        agree(f"{name}: packing: causal={causal}", module(x, segments=segments)[0], alone, EXACT)


def check_padding(kind: Kind, name: str) -> None:
    """Left, right and inside padding, whatever lies in it, changes no answer; outputs there are zero."""
    T, spans = (
        80,
        {"left": [(9, 0), (71, 1)], "right": [(71, 1), (9, 0)], "inside": [(30, 1), (8, 0), (41, 1), (1, 0)]},
    )
    scattered = [(1, int(t % 9 != 4)) for t in range(T)]
    segments = _segments([*spans.values(), scattered])
    real = segments != 0
    for causal in (True, False):
        module = build(kind, name, causal=causal, loud=True)
        x = torch.where(real[..., None], tokens(4, T), 100 * tokens(4, T, seed=7))
        y, _ = module(x, segments=segments)
        assert not y[~real].any(), f"{name}: padding: outputs there reach {float(y[~real].abs().max()):.1e}, not 0"
        for row, place in enumerate([*spans, "scattered"]):
            alone, _ = module(x[row : row + 1, real[row]])
            agree(f"{name}: padding: {place}, causal={causal}", y[row : row + 1, real[row]], alone, EXACT)


def check_row_of_padding(kind: Kind, name: str) -> None:
    """A row without any token gives zeros and disturbs neither its neighbour nor the gradients."""
    for causal in (True, False):
        module, x = build(kind, name, causal=causal), tokens(2, 11).requires_grad_()
        y, _ = module(x, segments=_segments([[(11, 0)], [(11, 1)]]))
        assert not y[0].any(), f"{name}: row of padding: outputs are not 0"
        agree(f"{name}: row of padding: the row beside it", y[1:], module(x[1:])[0], EXACT)
        y.square().sum().backward()
        for part, tensor in (("x", x), *module.named_parameters()):
            finite(f"{name}: row of padding: gradient of {part}", tensor.grad)


def _segments(rows: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    """[B, T] from each row's (length, id) pairs."""
    return torch.tensor([[segment for length, segment in row for _ in range(length)] for row in rows])


def _random_cuts(T: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, T), 6))


def _semantics(dependence: Check) -> dict[str, Check]:
    return {
        "causal": check_causal,
        dependence.__name__.removeprefix("check_"): dependence,
        "two_directions_keep_no_state": check_two_directions_keep_no_state,
        "pure": check_pure,
        "rows_independent": check_rows_independent,
        "one_function": check_one_function,
        "one_function_in_float32": check_one_function_in_float32,
        "one_function_with_segments": check_one_function_with_segments,
        "state": check_state,
        "packing": check_packing,
        "padding": check_padding,
        "row_of_padding": check_row_of_padding,
    }


SEMANTICS = _semantics(check_dependence)
"""Of token mixers."""
NEIGHBOUR_SEMANTICS = _semantics(check_neighbours)
"""Of channel mixers that look at neighbouring tokens."""
