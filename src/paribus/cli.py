"""The command line: every verb is a thin call of a public function, and imports nothing heavy before it is called."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from paribus.benchmarks.command import add_benchmarks, bench, positive

KINDS = (
    "mixers",
    "channels",
    "residuals",
    "tasks",
    "hybrids",
    "decays",
    "features",
    "positions",
    "norms",
    "initializations",
    "optimizers",
    "schedules",
    "corpora",
    "images",
    "settings",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    verb: Callable[[argparse.Namespace], int | None] = options.verb
    try:
        return verb(options) or 0
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError) as problem:
        if type(problem).__name__ != "FailedElsewhere":  # of several processes that train one run, one says why
            print(f"paribus: {_one_line(problem)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nparibus: interrupted; call the same command again to continue", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _one_line(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        where = f": '{problem.filename}'" if problem.filename else ""
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "; what was written before is whole, call again to continue" if full else ""
        return f"{problem.strerror}{where}{hint}"
    return " ".join(str(problem).split()) or type(problem).__name__


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="paribus", description="Pretraining experiments that change one thing and hold all else equal."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_components(verbs)
    _add_training(verbs)
    _add_models(verbs)
    _add_runs(verbs)
    _add_bench(verbs)
    return parser


def _add_components(verbs: argparse._SubParsersAction[_Parser]) -> None:
    add = verbs.add_parser("list", help="what exists, one line each")
    add.add_argument("kind", nargs="?", choices=KINDS, help="all kinds when left out")
    add.set_defaults(verb=_list)

    add = verbs.add_parser("show", help="equation, defaults and measured cost of one component")
    add.add_argument("kind", choices=("mixer", "channel", "residual"))
    add.add_argument("name", help="a name, or the path of your own .py file")
    add.add_argument("--width", type=positive, default=256, metavar="D")
    add.add_argument("--length", type=positive, default=1024, metavar="T")
    add.set_defaults(verb=_show)

    add = verbs.add_parser("check", help="the contract tests of one component")
    add.add_argument("kind", choices=("mixer", "channel"))
    add.add_argument("name", help="a name, or the path of your own .py file")
    add.set_defaults(verb=_check)


def _add_training(verbs: argparse._SubParsersAction[_Parser]) -> None:
    add = verbs.add_parser("run", help="one training, resumable")
    add.add_argument("run", type=Path, metavar="RUN.json")
    add.add_argument("overrides", nargs="*", metavar="path=value", help="such as optimizer.lr=1e-3")
    add.add_argument("--trace", metavar="FIRST-LAST", help="profile these steps into the run's folder, such as 10-15")
    add.add_argument(
        "--track", action="append", default=[], metavar="NAME", help="log to a tracker, such as tensorboard"
    )
    _add_places(add)
    add.set_defaults(verb=_run)

    add = verbs.add_parser("study", help="a study, resumable; ends with the verdict and report.html")
    add.add_argument("study", type=Path, metavar="STUDY.py")
    add.add_argument("--smoke", action="store_true", help="the file's `smoke` study: the whole path in a minute")
    add.add_argument("--workers", type=positive, help="processes; all cores over the run's threads when left out")
    add.add_argument("--no-publish", action="store_true", help="do not publish the best arm")
    _add_places(add)
    add.set_defaults(verb=_study)

    add = verbs.add_parser("report", help="tables and report.html again, from what is on disk")
    add.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    add.set_defaults(verb=_report)


def _add_places(add: argparse.ArgumentParser) -> None:
    add.add_argument("--root", type=Path, default=Path("runs"), help="where run folders lie (default: runs)")
    add.add_argument("--accept-stale", action="store_true", help="use runs although the library's code changed since")


def _add_models(verbs: argparse._SubParsersAction[_Parser]) -> None:
    add = verbs.add_parser("publish", help="a run as a Hugging Face folder, proven to load without this library")
    add.add_argument("run", type=Path, metavar="RUN")
    add.add_argument("out", type=Path, metavar="OUT")
    add.set_defaults(verb=_publish)

    add = verbs.add_parser(
        "generate", help="text that continues a prompt or fills it in, or images of the classes named"
    )
    add.add_argument("folder", type=Path, metavar="RUN_OR_HF_FOLDER")
    add.add_argument("prompt", help="text, with <|mask|> for a masked model; for images, classes separated by commas")
    add.add_argument("--tokens", type=positive, default=200)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--out", type=Path, metavar="FILE.png", help="where images are drawn")
    add.set_defaults(verb=_generate)

    add = verbs.add_parser("evaluate", help="a model's metric on held-out documents or images")
    add.add_argument("folder", type=Path, metavar="RUN_OR_HF_FOLDER")
    add.add_argument("--corpus", action="append", metavar="NAME_OR_PATH", help="default: the run's own corpora")
    add.add_argument("--images", metavar="NAME_OR_PATH", help="default: the run's own images")
    add.add_argument("--split", choices=("validation", "test"), default="test")
    add.add_argument("--documents", type=positive, help="documents at most (default: 128), or images (default: 1000)")
    add.set_defaults(verb=_evaluate)


def _add_runs(verbs: argparse._SubParsersAction[_Parser]) -> None:
    runs = verbs.add_parser("runs", help="what is on disk").add_subparsers(required=True, metavar="VERB")
    add = runs.add_parser("list", help="all runs, one line each")
    add.add_argument("--root", type=Path, default=Path("runs"))
    add.set_defaults(verb=_runs_list)
    add = runs.add_parser("compare", help="settings that differ, and results side by side")
    add.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    add.set_defaults(verb=_runs_compare)
    add = runs.add_parser("remove", help="delete run folders")
    add.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    add.set_defaults(verb=_runs_remove)


def _add_bench(verbs: argparse._SubParsersAction[_Parser]) -> None:
    add = verbs.add_parser("bench", help="speeds of ours and of peers, side by side; rows are added to CSV files")
    add_benchmarks(add)
    add.set_defaults(verb=bench)


def _list(options: argparse.Namespace) -> None:
    from paribus.catalogue import list_components

    for kind in (options.kind,) if options.kind else KINDS:
        print(f"{kind}:")
        components = list(list_components(kind))
        width = max(24, *(len(name) for name, _ in components))
        for name, summary in components:
            print(f"  {name:<{width}} {summary}")


def _show(options: argparse.Namespace) -> None:
    from paribus.catalogue import describe_component

    print(describe_component(f"{options.kind}s", options.name, options.width, options.length))


def _check(options: argparse.Namespace) -> int:
    from paribus.evaluation.contract import run_channel_checks, run_checks

    results = (run_checks if options.kind == "mixer" else run_channel_checks)(options.name)
    for result in results:
        print(f"{'pass' if result.passed else 'FAIL'}  {result.check:<32} {result.seconds:6.2f} s  {result.message}")
    return 0 if all(result.passed for result in results) else 2


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    from paribus.data.cache import cache_folder
    from paribus.studies.progress import RunProgress
    from paribus.training.folder import find_run, outcome, refuse_other_settings
    from paribus.training.loop import train
    from paribus.training.ranks import alike, is_main, leave
    from paribus.training.run import parse_override, read_run, with_values

    with alike():
        run = with_values(read_run(options.run), dict(parse_override(text) for text in options.overrides))
        refuse_other_settings(options.root, run)
        folder = find_run(options.root, run)
    try:
        with RunProgress(Console(quiet=not is_main()), run.name) as progress:
            result = train(
                run,
                folder,
                cache_folder(),
                watch=progress.watch,
                accept_stale=options.accept_stale,
                trace=options.trace,
                trackers=options.track,
            )
    finally:
        leave()
    if is_main():
        print(f"{folder}: {result['status']} after {result['step']:,} steps, {outcome(result, 'test')}")


def _study(options: argparse.Namespace) -> None:
    # One thread for each process is what studies run with; libraries read this when they are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from paribus.studies.command import study_command

    _hide_progress_bars()
    study_command(
        options.study,
        variant="smoke" if options.smoke else "study",
        root=options.root,
        workers=options.workers,
        publish=not options.no_publish,
        accept_stale=options.accept_stale,
    )


def _hide_progress_bars() -> None:
    """Writing and reading small models is no event."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _report(options: argparse.Namespace) -> None:
    from paribus.studies.command import report_command

    report_command(options.folders)


def _publish(options: argparse.Namespace) -> None:
    from paribus.publish import publish_run

    _hide_progress_bars()
    print(publish_run(options.run, options.out))


def _generate(options: argparse.Namespace) -> None:
    from paribus.publish import generate

    _hide_progress_bars()
    made = generate(options.folder, options.prompt, num_tokens=options.tokens, seed=options.seed, out=options.out)
    print(made)


def _evaluate(options: argparse.Namespace) -> None:
    from paribus.evaluation.metrics import METRICS
    from paribus.publish import evaluate_folder

    _hide_progress_bars()
    found = evaluate_folder(options.folder, options.corpus, options.images, options.split, options.documents)
    for name, value in found.values.items():
        print(f"{name:<24} {value:.4f} {METRICS[found.metric].title}")


def _runs_list(options: argparse.Namespace) -> None:
    from paribus.training.shelf import list_runs

    for line in list_runs(options.root):
        print(line)


def _runs_compare(options: argparse.Namespace) -> None:
    from paribus.training.shelf import compare_runs

    for line in compare_runs(options.folders):
        print(line)


def _runs_remove(options: argparse.Namespace) -> None:
    from paribus.training.shelf import remove_run

    for folder in options.folders:
        remove_run(folder)
        print(f"removed {folder}")


if __name__ == "__main__":  # what launchers of several processes start: -m paribus.cli
    sys.exit(main())
