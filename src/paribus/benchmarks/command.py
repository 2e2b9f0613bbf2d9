"""`paribus bench`: the options of every benchmark; nothing heavy is imported before one of them runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
Add = Callable[[argparse.ArgumentParser], None]


def add_benchmarks(bench: argparse.ArgumentParser) -> None:
    """Give the verb `bench` one benchmark by name each; without a name, all run with their defaults."""
    which = bench.add_subparsers(metavar="BENCHMARK")
    for name, (summary, add_options) in BENCHMARKS.items():
        parser = which.add_parser(name, help=summary)
        _common(parser)
        add_options(parser)
        parser.set_defaults(benchmark=name)
    bench.set_defaults(benchmark=None)


def bench(options: argparse.Namespace) -> None:
    """Run the benchmark that `options` name, or all."""
    if options.benchmark is not None:
        _run(options)
        return
    for name, (_, add_options) in BENCHMARKS.items():
        parser = argparse.ArgumentParser()
        _common(parser)
        add_options(parser)
        print(f"\n{name}")
        _run(parser.parse_args([], argparse.Namespace(benchmark=name)))


def _run(options: argparse.Namespace) -> None:
    given: dict[str, Any] = vars(options)
    values = {name: value for name, value in given.items() if name not in ("benchmark", "verb")}
    import_module(f"paribus.benchmarks.{options.benchmark}").bench(**values)


def positive(text: str) -> int:
    """A whole number of at least one, as argparse reads it."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive whole number")
    return int(text)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=positive, default=7, help="each runs all once, in alternating order")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help=f"for CSV files ({RESULTS})")


def _lengths(parser: argparse.ArgumentParser, *default: int) -> None:
    parser.add_argument("--lengths", nargs="+", type=positive, default=list(default), help="tokens in a row")


def _mixers(parser: argparse.ArgumentParser, *default: str) -> None:
    text = "our mixers, NAME or NAME:PRESET, each a model of its own beside attention's"
    parser.add_argument("--mixers", nargs="*", default=list(default), metavar="MIXER", help=text)


def _shape(parser: argparse.ArgumentParser, width: int, layers: int) -> None:
    parser.add_argument("--width", type=positive, default=width)
    parser.add_argument("--layers", type=positive, default=layers)


def _tokens(parser: argparse.ArgumentParser, default: int = 4096) -> None:
    parser.add_argument("--tokens", type=positive, default=default, help="tokens in a batch; at least one row")


def _clock(parser: argparse.ArgumentParser) -> None:
    text = "the processor's stands still while others run, and tells nothing of several threads"
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help=text)


def _kernels(parser: argparse.ArgumentParser) -> None:
    _lengths(parser, 512, 2048, 8192)
    _tokens(parser)
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="such as 'recurrence scalar'; all when left out")
    text = "longest row for the step-by-step reference in float64"
    parser.add_argument("--reference-length", type=int, default=2048, help=text)


def _models(parser: argparse.ArgumentParser) -> None:
    _lengths(parser, 512, 2048, 8192)
    _tokens(parser)
    _shape(parser, 256, 4)
    _mixers(parser, "gla", "gated_delta_net", "rg_lru", "mamba2", "mamba")


def _decoding(parser: argparse.ArgumentParser) -> None:
    _lengths(parser, 1024, 4096, 16384, 32768)
    _shape(parser, 256, 4)
    _mixers(parser, "gla", "gated_delta_net", "rg_lru", "mamba2", "mamba")
    parser.add_argument("--steps", type=positive, default=16, help="tokens decoded by each model in a round")


def _precision(parser: argparse.ArgumentParser) -> None:
    _lengths(parser, 512)
    _tokens(parser)
    _shape(parser, 384, 6)
    _mixers(parser, "gla", "gated_delta_net", "rg_lru", "mamba2", "mamba")


def _training_speed(parser: argparse.ArgumentParser) -> None:
    _lengths(parser, 512, 2048)
    _tokens(parser)
    _mixers(parser, "attention")
    parser.add_argument("--shapes", nargs="+", choices=("demo", "odd", "wide"), default=["demo", "odd", "wide"])
    _clock(parser)


def _two_directional(parser: argparse.ArgumentParser) -> None:
    _lengths(parser, 256)
    _tokens(parser)
    _shape(parser, 256, 4)
    text = "tokens that BERT and ours know; 256 is bytes"
    parser.add_argument("--vocabularies", nargs="+", type=positive, default=[256, 8192], help=text)
    text = "rows of pixels, in patches of 4 x 4, that ViT and ours read"
    parser.add_argument("--image-sizes", nargs="+", type=positive, default=[32], help=text)
    _clock(parser)


def _memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depths", nargs="+", type=positive, default=[16, 64], help="layers")
    parser.add_argument("--width", type=positive, default=128)
    parser.add_argument("--length", type=positive, default=512, help="tokens in a row")
    _tokens(parser, 2048)
    parser.add_argument("--mixer", default="attention", metavar="NAME")


BENCHMARKS: dict[str, tuple[str, Add]] = {
    "kernels": ("each kernel beside softmax attention and its own step-by-step reference", _kernels),
    "models": ("training steps of whole models beside attention, Llama and published Mambas", _models),
    "decoding": ("milliseconds and state bytes of one more token after a long prompt", _decoding),
    "memory": ("peak memory of a training step: plain, gradient checkpointing, reversible", _memory),
    "precision": ("training steps in bfloat16 beside float32", _precision),
    "training_speed": ("our transformer beside transformers' Llama with the same weights", _training_speed),
    "two_directional": ("our masked language model beside BERT, our image classifier beside ViT", _two_directional),
}
