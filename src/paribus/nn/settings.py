"""Strict reading of JSON settings into frozen dataclasses: an unknown key is an error, never ignored."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that helps whoever mistyped `name`: the nearest known name, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"


def read_settings(cls: type[T], settings: Mapping[str, Any], where: str) -> T:
    """Make the dataclass `cls` from JSON `settings`; nested dataclasses are read likewise.

    Args:
        where: names the place in error messages, such as ``block 'local': mixer 'gla'``.

    Raises:
        ValueError: an unknown key, a missing key without default, or a value of the wrong type.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where}: expected an object with keys, got {settings!r}")
    hints = _type_hints(cls)  # type: ignore[arg-type]  # classes are hashable, whatever mypy says of type[T]
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in settings:
        if key not in fields:
            raise ValueError(f"{where}: unknown key '{key}'; {nearest(key, fields)}")
    for name in _required(cls):
        if name not in settings:
            raise ValueError(f"{where}: missing key '{name}'")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in settings.items()}
    return cls(**values)


@functools.cache
def _type_hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, widening only int to float and list to tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}; allowed: {', '.join(map(repr, arguments))}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else read_settings(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}; a list is needed")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; an object with keys is needed")
        return {key: _convert(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if expected is Any:
        return value
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{where} is {value!r}; {getattr(expected, '__name__', expected)} is needed")
    return value


def _convert_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    arguments = _fitting(arguments, value)
    problems = []
    for argument in arguments:
        if argument is type(None):
            continue
        try:
            return _convert(argument, value, where)
        except ValueError as problem:
            problems.append(str(problem))
    raise ValueError(problems[0])


def _fitting(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    """Of several dataclasses, the first whose required keys are all in `value`; it alone says what is wrong."""
    for argument in arguments if isinstance(value, Mapping) else ():
        if dataclasses.is_dataclass(argument) and set(_required(argument)) <= value.keys():
            return (argument,)
    return arguments


def _required(cls: Any) -> list[str]:
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.init and f.default is missing and f.default_factory is missing]
