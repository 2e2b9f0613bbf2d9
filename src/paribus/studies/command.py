"""`paribus study` and `paribus report`: conduct a study, print its verdict, publish the best arm of each level."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from paribus.data.cache import cache_folder
from paribus.publish import publish_run
from paribus.training.task import make_task

from .conduct import Workbench, conduct
from .executor import LocalExecutor
from .panels import levels, ordered_arms
from .progress import StudyProgress
from .report import tables, write_report
from .result import PICTURE, ArmResult, StudyResult, from_json
from .sensitivity import sentence
from .study import read_study, study_name


def study_command(
    path: Path, *, variant: str, root: Path, workers: int | None, publish: bool, accept_stale: bool
) -> StudyResult:
    """Conduct the study in the file `path` and print where everything is.

    Args:
        variant: the name of the `Study` in the file: "study" or "smoke".
        workers: processes; None is as many as the cores allow.

    Raises:
        ValueError: anything in the study, its runs or its corpora that does not fit.
    """
    console = Console()
    study = read_study(path, variant)
    name = study_name(path) if variant == "study" else f"{study_name(path)}-{variant}"
    cache = cache_folder()
    console.print(study.question, style="bold", markup=False, soft_wrap=True)
    with console.status("preparing the data"):
        for arm in study.arms():
            make_task(study.arm_run(arm)).batches(cache)
    workers = workers or max(1, (os.cpu_count() or 1) // study.base.threads)
    with StudyProgress(console) as progress:
        executor = LocalExecutor(workers, cache, progress.watch, accept_stale=accept_stale)
        with executor:
            result = conduct(Workbench(name, study, root, cache, executor, progress))
    folder = root / name
    _print_tables(console, result)
    for verdict in result.verdicts:
        _print_plainly(console, f"{verdict.arm}: {verdict.outcome}. {verdict.reason}")
    _print_sensitivity(console, result)
    _print_plainly(console, f"\nreport    {folder / 'report.html'}\nresult    {folder / 'result.json'}")
    if publish:
        for reference, arms in levels(result).items():
            finished = [(arm.mean, index) for index, arm in enumerate(arms) if arm.mean is not None]
            if finished:
                _publish(console, arms[min(finished)[1]], folder)
            else:
                _print_plainly(console, f"neither {reference} nor an arm beside it finished, so none is published")
    return result


def _publish(console: Console, best: ArmResult, folder: Path) -> None:
    """Publish the best arm of a level, by the run of its first finished seed."""
    run = next(seed for seed in best.seeds if seed.status == "finished")
    out = folder / f"{folder.name}-{best.name.replace('+', '-')}"  # transformers makes a module's name of it
    try:
        with console.status(f"publishing {best.name} and proving that it loads"):
            publish_run(Path(run.run_folder), out)
    except ValueError as problem:  # the study has its answer, and the other levels their best arms
        _print_plainly(console, f"{best.name} is not published: {problem}")
        return
    _print_plainly(console, f"published {out}")
    if best.sample and not best.sample.startswith(PICTURE):
        console.print("\n[bold]a sample of its text[/bold]")
        _print_plainly(console, best.sample)


def _print_tables(console: Console, result: StudyResult) -> None:
    for table in tables(result):
        console.print(table)


def _print_sensitivity(console: Console, result: StudyResult) -> None:
    """One line an arm: what its tuning says of the learning rate."""
    for arm in ordered_arms(result):
        if arm.sensitivity is not None:
            _print_plainly(console, f"{arm.name}: {sentence(arm.sensitivity, arm.tuning_metric)}")


def _print_plainly(console: Console, text: str) -> None:
    """As it is: paths stay whole, and brackets are no markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def report_command(folders: list[Path]) -> None:
    """Print the verdict table of each study folder and write its report.html anew.

    Raises:
        ValueError: a folder without a whole result.json of a study.
    """
    console = Console()
    for folder in folders:
        try:
            text = (folder / "result.json").read_text(encoding="utf-8")
        except OSError as problem:
            raise ValueError(f"'{folder}' has no readable result.json: {problem.strerror}") from None
        result = from_json(text)
        write_report(result, folder / "report.html")
        _print_tables(console, result)
        _print_sensitivity(console, result)
        _print_plainly(console, f"report    {folder / 'report.html'}")
