"""Settings are read strictly: what does not fit is named, and never ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from paribus.nn.settings import nearest, read_settings


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Settings:
    heads: int
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    inner: Inner = Inner()
    parts: dict[str, Inner] | None = None
    limit: float | None = None
    on: bool = False


def test_json_becomes_a_dataclass() -> None:
    got = read_settings(
        Settings,
        {"heads": 2, "rate": 1, "kind": "b", "sizes": [1, 2], "inner": {"depth": 3}, "parts": {"p": {}}, "limit": 2},
        "run",
    )
    assert got == Settings(2, 1.0, "b", (1, 2), Inner(3), {"p": Inner()}, 2.0)
    assert isinstance(got.rate, float)
    assert isinstance(got.limit, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": 1}, r"run: unknown key 'head'; did you mean 'heads'\?"),
        ({"zzz": 1}, "run: unknown key 'zzz'; known: heads, inner"),
        ({"heads": "2"}, "run: heads is '2'; int is needed"),
        ({"heads": True}, "run: heads is True; int is needed"),
        ({"heads": 2.0}, r"run: heads is 2.0; int is needed"),
        ({"rate": True}, "run: rate is True; float is needed"),
        ({"on": 1}, "run: on is 1; bool is needed"),
        ({"kind": "c"}, "run: kind is 'c'; allowed: 'a', 'b'"),
        ({"sizes": 3}, "run: sizes is 3; a list is needed"),
        ({"sizes": [1, "x"]}, "run: sizes is 'x'; int is needed"),
        ({"inner": {"dept": 1}}, r"run: inner: unknown key 'dept'; did you mean 'depth'\?"),
        ({"inner": 3}, "run: inner: expected an object with keys, got 3"),
        ({"parts": {"p": {"depth": "x"}}}, "run: parts: p: depth is 'x'; int is needed"),
        ({"limit": "x"}, "run: limit is 'x'; float is needed"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as problem:
        read_settings(Settings, {"heads": 1} | change, "run")
    assert "\n" not in str(problem.value)


def test_a_missing_key_and_a_wrong_whole_are_named() -> None:
    with pytest.raises(ValueError, match="run: missing key 'heads'"):
        read_settings(Settings, {}, "run")
    with pytest.raises(ValueError, match=r"run: expected an object with keys, got \[1\]"):
        read_settings(Settings, [1], "run")  # type: ignore[arg-type]


def test_the_nearest_name() -> None:
    assert nearest("atention", ["gla", "attention"]) == "did you mean 'attention'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", []) == "known: none"
