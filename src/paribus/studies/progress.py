"""What a run or a study is doing right now: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from paribus.training.loop import Tick

from .executor import Task

_LINES = 10


class RunProgress:
    """Shows one run in training; used as a context manager around it."""

    def __init__(self, console: Console, name: str) -> None:
        self.console = console
        self._lines = 0
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
        self._bar = Progress(TextColumn("[bold]{task.description}"), *columns, console=console, transient=True)
        self._task = self._bar.add_task(escape(name), total=None, state="")

    def __enter__(self) -> RunProgress:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def watch(self, tick: Tick) -> None:
        """What `train` calls; elsewhere than on a terminal, some ten lines are printed."""
        state = f"loss {tick.loss:.3f}, {tick.tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, completed=tick.step, total=tick.total_steps, state=state)
        lines = tick.step * _LINES // tick.total_steps
        if not self.console.is_terminal and lines > self._lines:
            self._lines = lines
            self.console.print(f"step {tick.step:,}/{tick.total_steps:,}  {state}", highlight=False)


class StudyProgress:
    """Shows the runs in training; used as a context manager around a study."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._ticks: dict[Path, tuple[Task, Tick, float]] = {}
        self._finished = 0
        self._bar = Progress(
            TextColumn("[bold]runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._total = self._bar.add_task("runs", total=0)
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> StudyProgress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def expect(self, num_runs: int) -> None:
        """So many more runs will be asked for."""
        total = (self._bar.tasks[0].total or 0) + num_runs
        self._bar.update(self._total, total=total)

    def watch(self, task: Task | None, tick: Tick | None) -> None:
        """The executor's news."""
        if task is not None and tick is not None:
            self._ticks[task.folder] = (task, tick, time.monotonic())

    def finished(self, task: Task, summary: str) -> None:
        """A run ended; `summary` says how."""
        self._ticks.pop(task.folder, None)
        self._bar.update(self._total, advance=1)
        self.console.print(f"  {task.run.name}: {summary}", highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("run", "step", "loss", "tokens/s", "left"):
            table.add_column(column, justify="left" if column == "run" else "right")
        for task, tick, _ in self._ticks.values():
            table.add_row(
                task.run.name,
                f"{tick.step:,}/{tick.total_steps:,}",
                f"{tick.loss:.3f}",
                f"{tick.tokens_per_second:,.0f}",
                f"{tick.seconds_left:.0f} s",
            )
        return Group(table, self._bar)
