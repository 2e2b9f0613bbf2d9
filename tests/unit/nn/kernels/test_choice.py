"""What a block chooses computes the gated kernels inside it, and nothing outside."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from paribus.nn.kernels.choice import Implementation, in_use, using
from paribus.nn.kernels.delta import delta
from paribus.nn.kernels.recurrence import recurrence
from tests.unit.nn.gated_cases import make_case, rows_of

REFERENCE = Implementation(
    "reference", partial(recurrence, algorithm="reference"), partial(delta, algorithm="reference")
)


def outputs(kernel: str, **options: str) -> Tensor:
    case = make_case(kernel, "channel", 40).cast(torch.float32)
    return case.run(causal=True, **options)(*case.tokens, rows=rows_of(case.tokens[0]), state=case.state)[0]


@pytest.mark.parametrize("kernel", ["recurrence", "delta"])
def test_the_chunked_form_is_the_one_chosen(kernel: str) -> None:
    expected, own = outputs(kernel, algorithm="reference"), outputs(kernel)
    assert not torch.equal(expected, own), "the forms differ in their last bits"
    with using(REFERENCE):
        assert torch.equal(outputs(kernel), expected)
        with using(None):
            assert torch.equal(outputs(kernel), own)
        assert torch.equal(outputs(kernel), expected)
    assert torch.equal(outputs(kernel), own)


def test_it_ends_with_the_block_whatever_happens() -> None:
    with pytest.raises(KeyError), using(REFERENCE):
        raise KeyError
    assert in_use() is None


def test_the_reference_is_never_replaced() -> None:
    nothing = Implementation("nothing", lambda *x, **y: pytest.fail("called"), lambda *x, **y: pytest.fail("called"))
    with using(nothing):
        outputs("recurrence", algorithm="reference")
        outputs("delta", algorithm="reference")


def test_checkpointed_blocks_are_computed_again_by_the_same() -> None:
    seen = []

    def counted(*arguments: Tensor, **options: object) -> tuple[Tensor, Tensor | None]:
        seen.append(arguments[0].shape)
        return REFERENCE.recurrence(*arguments, **options)

    case = make_case("recurrence", "scalar", 10)
    call = partial(case.run(causal=True), rows=rows_of(case.tokens[0]), state=None)
    with using(Implementation("counted", counted, delta)):
        checkpoint(lambda *tokens: call(*tokens)[0], *case.tokens, use_reentrant=False).sum().backward()
    assert len(seen) == 2
