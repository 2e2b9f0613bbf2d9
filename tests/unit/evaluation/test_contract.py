"""The contract's checks can fail: each mutant of a good mixer breaks a promise, and its check says so."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from paribus.evaluation.contract import (
    CHANNEL_CHECKS,
    CHECKS,
    NEIGHBOUR_CHECKS,
    channel_checks,
    run_channel_checks,
    run_checks,
)
from paribus.nn.component import CHANNELS, MIXERS

OUTPUT = "self.output(o.flatten(2))"
BEGIN, MIX = "        width, heads = placement.width, config.num_heads\n", "    def mix("
RESET = "        if self.sink is not None:\n            nn.init"
ROTATED = "self.rotation(q, k, rows, context)"
PASSED = "rows=rows,"
REPLACE = "rows=__import__('dataclasses').replace"


def moved(positions: str) -> str:
    """The rotation of queries and keys as if they stood elsewhere."""
    return f"self.rotation(q, k, {REPLACE.removeprefix('rows=')}(rows, positions={positions}), context)"


MUTANTS = {
    "causal": ("causal=self.placement.causal,", "causal=False,"),
    "dependence": ("window=config.window,", "window=2,"),
    "two_directions_keep_no_state": (
        MIX,
        "    def forward(self, x, **rest):\n"
        "        return super().forward(x, **rest) if self.placement.causal else (x, None)\n\n" + MIX,
    ),
    "pure": (OUTPUT, f"{OUTPUT} * 1.1**self.training"),
    "rows_independent": ("self.query(x)", "self.query(x + x.mean(0))"),
    "one_function": (ROTATED, moved("rows.positions % x.shape[1]")),
    "one_function_in_float32": ("            state=state,", "            state=None,"),
    "one_function_with_segments": (ROTATED, moved("rows.positions * (rows.ids > 0).all()")),
    "state": (f"q, k = {ROTATED}", f"_ = state and state.keys.mul_(1.001)\n            q, k = {ROTATED}"),
    "packing": (PASSED, f"{REPLACE}(rows, ids=(rows.ids > 0).long()),"),
    "padding": (PASSED, f"{REPLACE}(rows, ids=rows.ids.clamp(min=1), valid=None, starts=None),"),
    "row_of_padding": (OUTPUT, f"{OUTPUT} / (rows.ids.amax(1) > 0)[:, None, None]"),
    "shape": (OUTPUT, f"{OUTPUT}.float()"),
    "half_precision": (OUTPUT, f"({OUTPUT} + 1000.0 - 1000.0)"),
    "gradients": (OUTPUT, "self.output(o.flatten(2).detach())"),
    "gradient_values": (OUTPUT, "self.output(o.flatten(2) + o.flatten(2).detach())"),
    "long": (OUTPUT, f"{OUTPUT} * 1.1 ** rows.positions[..., None]"),
    "loud": (OUTPUT, f"{OUTPUT} * x.exp()"),
    "beyond_the_longest": (
        "        q = split",
        "        if x.shape[1] > self.placement.max_length:\n"
        "            raise ValueError('too long')\n"
        "        q = split",
    ),
    "documented": ("Paper:    ", "Paper "),
    "config": ("@dataclass(frozen=True)", "@dataclass"),
    "presets": ('{"position": "none"}', '{"num_heads": 7}'),
    "initialization": (BEGIN, f"{BEGIN}        self.scale = nn.Parameter(torch.ones(1))\n"),
    "output_scale": (OUTPUT, f"0.01 * {OUTPUT}"),
    "guarded": (RESET, f"        self.query.weight.data.zero_()\n{RESET}"),
    "round_trip": (
        BEGIN,
        f"{BEGIN}        self.register_buffer('one', torch.ones(1), persistent=False)\n",
        OUTPUT,
        f"{OUTPUT} * self.one",
    ),
    "meta": (BEGIN, f"{BEGIN}        self.table = nn.Parameter(torch.zeros(1, device='cpu'))\n"),
    "names_and_buffers": (BEGIN, f"{BEGIN}        self.beta = nn.Parameter(torch.zeros(1))\n"),
    "tasks": ("causal=self.placement.causal,", "causal=True,"),
}
"""For each check: a piece of the attention mixer's text, what replaces it, and so on."""


def mutant(folder: Path, *texts: str, original: ModuleType | None = None) -> str:
    """The path of a copy of the attention mixer, or of the original given, with pieces of its text replaced."""
    source = Path(str((original or MIXERS.module("attention")).__file__)).read_text()
    for before, after in zip(texts[::2], texts[1::2], strict=True):
        assert before in source, f"the original no longer has {before!r}"
        source = source.replace(before, after)
    path = folder / "mutant.py"
    source = source.replace("from ..", "from paribus.nn.")
    path.write_text(source.replace("from torch import", "import torch\nfrom torch import", 1))
    return str(path)


def test_every_check_has_a_mutant() -> None:
    assert set(MUTANTS) == set(CHECKS)


@pytest.mark.parametrize("check", MUTANTS)
def test_the_check_can_fail(check: str, tmp_path: Path) -> None:
    name = mutant(tmp_path, *MUTANTS[check])
    with pytest.raises(AssertionError, match=re.escape(name)):
        CHECKS[check](name)


def test_a_users_file_passes_and_results_are_told(tmp_path: Path) -> None:
    results = run_checks(mutant(tmp_path))
    assert [result.check for result in results] == list(CHECKS)
    assert all(result.passed and result.seconds > 0 for result in results), results


def test_a_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    name = mutant(tmp_path, "q = split_heads(", "raise IndexError('broken')\n        q = split_heads(")
    results = {result.check: result for result in run_checks(name)}
    assert not results["causal"].passed and results["causal"].message == "IndexError: broken"
    assert results["meta"].passed


ALONE_MUTANTS = {
    "tokens_alone": ("self.up(x)", "self.up(x + x.mean(1, keepdim=True))"),
    "pure": ("self.up(x)", "self.up(x) * 1.1**self.training"),
    "expansion": ("config.expansion", "max(2, config.expansion)"),
    "gradient_values": ("self.up(x)", "self.up(x.detach())"),
    "tasks": ("self.up(x)", "self.up(x).detach()"),
}
"""For a check of channel mixers that look at each token alone: a piece of the gated unit's text, what replaces it."""

SHIFT = "shift_tokens(x, rows=rows, state=state, causal=self.placement.causal)"
CONTEXT = "        difference = neighbours - x\n"
NEIGHBOUR_MUTANTS = {
    "causal": (SHIFT, f"({SHIFT}[0] + x.roll(-1, 1), None)"),
    "neighbours": (SHIFT, f"(0 * {SHIFT}[0], {SHIFT}[1])"),
    "two_directions_keep_no_state": MUTANTS["two_directions_keep_no_state"],
    "pure": ("self.output(", "1.1**self.training * self.output("),
    "rows_independent": (SHIFT, f"({SHIFT}[0].roll(1, 0), {SHIFT}[1])"),
    "one_function": ("state=state,", "state=None,"),
    "one_function_in_float32": ("state=state,", "state=None,"),
    "one_function_with_segments": ("state=state,", "state=None if rows.valid is None else state,"),
    "state": ("        neighbours,", "        _ = state is not None and state.mul_(1.001)\n        neighbours,"),
    "packing": ("rows=rows,", f"{REPLACE}(rows, valid=None, starts=None),"),
    "padding": ("rows=rows,", f"{REPLACE}(rows, valid=None, starts=None),"),
    "expansion": ("config.expansion", "max(2, config.expansion)"),
    "losses": (CONTEXT, f"{CONTEXT}        context and context.add_loss('size', x.square().mean())\n"),
    "gradient_values": ("difference = neighbours - x", "difference = neighbours - x.detach()"),
    "output_scale": ("self.output(", "0.001 * self.output("),
}
"""The same for those that look at neighbours, with RWKV's."""


@pytest.mark.parametrize("check", ALONE_MUTANTS)
def test_the_check_of_channels_can_fail(check: str, tmp_path: Path) -> None:
    name = mutant(tmp_path, *ALONE_MUTANTS[check], original=CHANNELS.module("glu"))
    with pytest.raises(AssertionError, match=re.escape(name)):
        CHANNEL_CHECKS[check](name)


@pytest.mark.parametrize("check", NEIGHBOUR_MUTANTS)
def test_the_check_of_neighbours_can_fail(check: str, tmp_path: Path) -> None:
    name = mutant(tmp_path, *NEIGHBOUR_MUTANTS[check], original=CHANNELS.module("rwkv"))
    with pytest.raises(AssertionError, match=re.escape(name)):
        NEIGHBOUR_CHECKS[check](name)


def test_which_promises_a_channel_mixer_keeps() -> None:
    assert set(channel_checks("rwkv")) == set(CHECKS) - {"dependence"} | {"neighbours", "expansion", "losses"}
    assert channel_checks("glu") == CHANNEL_CHECKS and "tokens_alone" in CHANNEL_CHECKS
    assert [result.check for result in run_channel_checks("glu") if result.passed] == list(CHANNEL_CHECKS)


def test_an_unknown_name_is_the_users_mistake() -> None:
    with pytest.raises(ValueError, match="did you mean 'attention'"):
        run_checks("atention")
