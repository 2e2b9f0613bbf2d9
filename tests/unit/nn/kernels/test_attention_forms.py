"""Every normaliser, bias and slot of the attention kernel against its formula, written out for one query at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from paribus.nn.kernels import attention_blocks
from paribus.nn.kernels.attention import attention
from paribus.nn.kernels.cost import FlopCounter
from paribus.nn.segments import resolve
from tests.unit.nn.kernel_cases import Run, close, in_pieces, random_cuts, random_segments, real, with_gradients

HEADS, GROUPS, K, V, SCALE = 4, 2, 3, 2, 0.6
FARTHEST = 5
SLOPES = torch.tensor([0.5, 0.25, 0.0625, 1.0], dtype=torch.float64)


@dataclass(frozen=True)
class Form:
    """One kind of attention."""

    normaliser: str = "softmax"
    forget: bool = False
    slopes: bool = False
    distances: bool = False
    """A learned bias for each distance up to the farthest."""
    sink: bool = False
    slot: str = ""
    """"k", "v" or "kv": which of key and value are learned."""


FORMS = {
    "softmax": Form(),
    "softmax_one": Form("softmax_one"),
    "sink": Form(sink=True),
    "sigmoid": Form("sigmoid"),
    "relu": Form("relu"),
    "softpick": Form("softpick"),
    "stick_breaking": Form("stick_breaking"),
    "alibi": Form(slopes=True),
    "forget": Form(forget=True),
    "alibi_forget": Form(slopes=True, forget=True),
    "key_slot": Form(slot="k"),
    "value_slot": Form(slot="v"),
    "both_slot": Form(slot="kv"),
    "alibi_softmax_one": Form("softmax_one", slopes=True),
    "forget_sink_slot": Form(forget=True, sink=True, slot="kv"),
    "forget_sigmoid": Form("sigmoid", forget=True),
    "alibi_relu_slot": Form("relu", slopes=True, slot="kv"),
    "sigmoid_sink": Form("sigmoid", sink=True),
    "softpick_slot": Form("softpick", slot="v"),
    "distances": Form(distances=True),
    "distances_alibi_sink": Form(distances=True, slopes=True, sink=True),
    "distances_forget_one": Form("softmax_one", distances=True, forget=True),
    "distances_sigmoid_slot": Form("sigmoid", distances=True, slot="kv"),
    "distances_sticks": Form("stick_breaking", distances=True),
    "sticks_slot": Form("stick_breaking", slot="v", slopes=True),
}


@dataclass
class Case:
    """A form with numbers: what has tokens on dimension 1, and what has none."""

    form: Form
    tokens: list[Tensor]
    weights: dict[str, Tensor]

    def run(self, **options: Any) -> Run:
        """run(*tokens, rows=, state=)."""
        key, value = self.weights.get("key"), self.weights.get("value")

        def call(*tokens: Tensor, rows: Any, state: Any) -> tuple[Tensor, Any]:
            return attention(
                *tokens[:3],
                rows=rows,
                state=state,
                scale=SCALE,
                normaliser=self.form.normaliser,
                log_forget=tokens[3] if self.form.forget else None,
                slopes=SLOPES if self.form.slopes else None,
                distance_bias=self.distance_bias(options["causal"]),
                sink=self.weights.get("sink"),
                slot=(key, value) if self.form.slot else None,
                **options,
            )

        return call

    def distance_bias(self, causal: bool) -> Tensor | None:
        """[H, FARTHEST + 1], or [H, 2 FARTHEST + 1] with two directions."""
        return self.weights["distances"][:, FARTHEST if causal else 0 :] if self.form.distances else None


def make(name: str, length: int) -> Case:
    form, draw = FORMS[name], torch.Generator().manual_seed(length)
    normal = partial(torch.randn, generator=draw, dtype=torch.float64)
    tokens = [2 * normal(3, length, *shape) for shape in ((HEADS, K), (GROUPS, K), (GROUPS, V))]
    if form.forget:
        tokens.append(torch.nn.functional.logsigmoid(normal(3, length, HEADS)))
    shapes = {"sink": (HEADS,), "key": (GROUPS, K), "value": (GROUPS, V), "distances": (HEADS, 2 * FARTHEST + 1)}
    wanted = {"sink": form.sink, "key": "k" in form.slot, "value": "v" in form.slot, "distances": form.distances}
    weights = {part: normal(shape).requires_grad_() for part, shape in shapes.items() if wanted[part]}
    return Case(form, [t.requires_grad_() for t in tokens], weights)


def weighed(form: Form, x: Tensor, mine: int, slots: list[float], causal: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Weights of the seen tokens with scores `x`, the query being number `mine` of them, and of slots with scores."""
    n, everything = len(x), torch.cat([x, torch.stack(slots)]) if slots else x
    e = everything.exp()
    if form.normaliser == "stick_breaking":
        weights, rest = [torch.zeros((), dtype=torch.float64)] * n, 0.0
        for side in (range(mine - 1, -1, -1),) if causal else (range(mine - 1, -1, -1), range(mine + 1, n)):
            left = torch.ones((), dtype=torch.float64)
            for s in side:
                weights[s] = left * x[s].sigmoid()
                left = left * (1 - x[s].sigmoid())
            rest = rest + left
        return weights, [rest] * len(slots)
    weights = {
        "softmax": lambda: e / e.sum(),
        "softmax_one": lambda: e / (1 + e.sum()),
        "sigmoid": lambda: 1 / (1 + n * (-everything).exp()),
        "relu": lambda: everything.clamp(min=0) / n,
        "softpick": lambda: (e - 1).clamp(min=0) / (e - 1).abs().sum(),
    }[form.normaliser]()
    return list(weights[:n]), list(weights[n:])


def by_pairs(case: Case, ids: Tensor, causal: bool, window: int) -> Tensor:
    """The definition; padding answers zero."""
    (q, k, v, *gates), form, share = case.tokens, case.form, HEADS // GROUPS
    o = torch.zeros(*q.shape[:3], V, dtype=q.dtype)
    for b, t, h in [(b, t, h) for b in range(3) for t in range(q.shape[1]) for h in range(HEADS) if ids[b, t]]:
        mine = [s for s in range(q.shape[1]) if ids[b, s] == ids[b, t]]
        distance = {s: abs(mine.index(s) - mine.index(t)) for s in mine}
        seen = [s for s in mine if (s <= t or not causal) and (not window or distance[s] < window)]
        x = []
        for s in seen:
            score = SCALE * k[b, s, h // share] @ q[b, t, h]
            if form.slopes:
                score = score - SLOPES[h] * distance[s]
            if form.distances:
                ahead = max(-FARTHEST, min(mine.index(t) - mine.index(s), FARTHEST))
                score = score + case.weights["distances"][h, FARTHEST + ahead]
            if form.forget:
                between = [r for r in mine if min(s, t) < r <= max(s, t)]
                score = score + gates[0][b, between, h].sum()
            x.append(score)
        slots, values = [], []
        if form.sink:
            slots.append(case.weights["sink"][h])
            values.append(torch.zeros(V, dtype=q.dtype))
        if form.slot:
            key = case.weights.get("key", torch.zeros(GROUPS, K, dtype=q.dtype))
            slots.append(SCALE * key[h // share] @ q[b, t, h])
            values.append(case.weights.get("value", torch.zeros(GROUPS, V, dtype=q.dtype))[h // share])
        weights, of_slots = weighed(form, torch.stack(x), seen.index(t), slots, causal)
        o[b, t, h] = sum(w * v[b, s, h // share] for w, s in zip(weights, seen, strict=True))
        o[b, t, h] += sum(w * value for w, value in zip(of_slots, values, strict=True))
    return o


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("kind", "window"), [("plain", 0), ("segments", 0), ("segments", 3)])
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_equals_the_definition(name: str, kind: str, window: int, causal: bool) -> None:
    case = make(name, 11)
    segments = random_segments(3, 11, seed=11) if kind == "segments" else None
    ids = torch.ones(3, 11) if segments is None else segments
    expected = by_pairs(case, ids, causal, window)
    for algorithm in ("fast", "reference"):
        run = case.run(causal=causal, window=window, algorithm=algorithm)
        o, _ = run(*case.tokens, rows=resolve(case.tokens[0], segments, None), state=None)
        close(real(o, segments), expected, 1e-12)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "kind"), [(1, "plain"), (7, "segments"), (63, "segments"), (65, "plain")])
def test_gradients_equal_the_references(name: str, length: int, kind: str, causal: bool) -> None:
    case = make(name, length)
    segments = random_segments(3, length, seed=length) if kind == "segments" else None
    fast, exact = (
        with_gradients(case.run(causal=causal, algorithm=algorithm), case.tokens, list(case.weights.values()), segments)
        for algorithm in ("fast", "reference")
    )
    close(fast, exact, 1e-11)


IN_BLOCKS = [
    name
    for name, form in FORMS.items()
    if form.forget or form.distances or form.normaliser not in ("softmax", "softmax_one")
]


@pytest.mark.parametrize("name", IN_BLOCKS)
@pytest.mark.parametrize("causal", [True, False])
def test_small_blocks_give_the_same(name: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case, segments = make(name, 65), random_segments(3, 65)

    def found(algorithm: str) -> list[Tensor]:
        run = case.run(causal=causal, algorithm=algorithm)
        return with_gradients(run, case.tokens, list(case.weights.values()), segments)

    exact = found("reference")
    monkeypatch.setattr(attention_blocks, "_QUERIES", 16)
    monkeypatch.setattr(attention_blocks, "_SCORES", 1)
    close(found("fast"), exact, 1e-11)


@pytest.mark.parametrize("length", [1, 40, 300])
@pytest.mark.parametrize("causal", [True, False])
def test_every_normaliser_is_charged_alike(length: int, causal: bool) -> None:
    counts = {}
    for normaliser in ("softmax", "sigmoid", "relu", "softpick", "stick_breaking"):
        q, k, v = (torch.randn(2, length, HEADS, 8, requires_grad=True) for _ in range(3))
        with FlopCounter() as counter:
            rows = resolve(q, None, None)
            o, _ = attention(q, k, v, rows=rows, state=None, causal=causal, scale=SCALE, normaliser=normaliser)
            o.sum().backward()
        counts[normaliser] = counter.total
    assert len(set(counts.values())) == 1, counts


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("window", [0, 1, 4])
@torch.no_grad()
def test_any_cut_gives_the_same(name: str, window: int) -> None:
    case, length = make(name, 30), 30
    for segments in (None, random_segments(3, length, seed=length)):
        run = case.run(causal=True, window=window)
        whole, _ = run(*case.tokens, rows=resolve(case.tokens[0], segments, None), state=None)
        for cuts in (random_cuts(length), list(range(1, length + 1))):
            pieces, _ = in_pieces(run, case.tokens, segments, cuts)
            close(real(pieces, segments), real(whole, segments), 1e-12)


@pytest.mark.parametrize(
    ("name", "length"), [("forget_sink_slot", 1000), ("forget_sigmoid", 1000), ("softpick", 1000), ("sticks_slot", 130)]
)
@pytest.mark.parametrize("causal", [True, False])
def test_long_rows_in_float32(name: str, length: int, causal: bool) -> None:
    case = make(name, length)
    segments = random_segments(3, length)
    exact, _ = case.run(causal=causal, algorithm="reference")(
        *case.tokens, rows=resolve(case.tokens[0], segments, None), state=None
    )
    single = Case(case.form, [t.detach().float() for t in case.tokens], {k: w.float() for k, w in case.weights.items()})
    fast, _ = single.run(causal=causal)(*single.tokens, rows=resolve(single.tokens[0], segments, None), state=None)
    close(real(fast, segments), real(exact, segments), 1e-4)


def test_a_gate_is_kept_in_float32_whatever_the_heads_are() -> None:
    case = make("forget", 300)
    half = [t.detach().bfloat16() for t in case.tokens[:3]]
    gates = case.tokens[3].detach().float()
    rows = resolve(half[0], None, None)
    o, history = case.run(causal=True)(*half, gates, rows=rows, state=None)
    exact, _ = case.run(causal=True, algorithm="reference")(*half, gates, rows=rows, state=None)
    assert o.dtype == torch.bfloat16
    assert history.forgotten is not None and history.forgotten.dtype == torch.float32
    close(o, exact, 0.01)


def test_forgetting_nothing_is_softmax() -> None:
    case, plain = make("forget", 40), make("softmax", 40)
    zeros, segments = torch.zeros_like(case.tokens[3]).requires_grad_(), random_segments(3, 40)
    for causal in (True, False):
        fast, exact = (
            with_gradients(case.run(causal=causal, algorithm=algorithm), [*plain.tokens, zeros], [], segments)
            for algorithm in ("fast", "reference")
        )
        close(fast, exact, 1e-11)
        assert fast[-1].any(), "a gate that forgets nothing has a slope all the same"
        close(fast[0], with_gradients(plain.run(causal=causal), plain.tokens, [], segments)[0], 1e-12)


def test_a_constant_gate_is_alibi() -> None:
    case, alibi = make("forget", 40), make("alibi", 40)
    gates = -SLOPES.expand(3, 40, HEADS)
    for causal in (True, False):
        rows = resolve(gates, random_segments(3, 40), None)
        got, _ = case.run(causal=causal)(*alibi.tokens, gates, rows=rows, state=None)
        expected, _ = alibi.run(causal=causal)(*alibi.tokens, rows=rows, state=None)
        close(real(got, rows.ids), real(expected, rows.ids), 1e-12)


def test_a_sink_with_score_zero_is_softmax_one() -> None:
    sink, one = make("sink", 20), make("softmax_one", 20)
    sink.weights["sink"] = torch.zeros(HEADS, dtype=torch.float64)
    rows = resolve(one.tokens[0], None, None)
    got, _ = sink.run(causal=True)(*one.tokens, rows=rows, state=None)
    expected, _ = one.run(causal=True)(*one.tokens, rows=rows, state=None)
    close(got, expected, 1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_loud_scores_stay_finite(name: str) -> None:
    case = make(name, 60)
    loud = [(t.detach().float() * (1 if i == 3 else 1000)).requires_grad_() for i, t in enumerate(case.tokens)]
    single = Case(case.form, loud, {part: w.detach().float().requires_grad_() for part, w in case.weights.items()})
    for causal in (True, False):
        found = with_gradients(single.run(causal=causal), loud, list(single.weights.values()), None)
        assert all(tensor.isfinite().all() for tensor in found)


def test_an_unknown_normaliser_is_named() -> None:
    q = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match=r"unknown attention normaliser 'sigmod'; did you mean 'sigmoid'\?"):
        attention(q, q, q, rows=resolve(q, None, None), state=None, causal=True, scale=1.0, normaliser="sigmod")
