"""``python -m benchmarks NAME [options]``: run one benchmark; without a name, all of them with their defaults."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = ("training_speed", "kernels")


def main(arguments: list[str]) -> None:
    """Hand the options to the benchmark that the first argument names."""
    name, options = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name and name not in NAMES:
        sys.exit(f"unknown benchmark '{name}'; one of {', '.join(NAMES)}")
    for chosen in [name] if name else NAMES:
        import_module(f"benchmarks.{chosen}").main(options)


if __name__ == "__main__":
    main(sys.argv[1:])
