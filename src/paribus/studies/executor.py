"""The local executor: a pool of preloaded processes that train runs and tell how far they are."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from paribus.training.loop import Tick, train
from paribus.training.run import Run

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """One run to train in a folder."""

    run: Run
    folder: Path


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: Task | None = None


class LocalExecutor:
    """Trains tasks in `workers` processes, which import torch once and serve until closed.

    Args:
        cache: where prepared corpora lie.
        watch: called with (task, tick) whenever a worker has news, and with (None, None) when none had any.
    """

    def __init__(
        self,
        workers: int,
        cache: Path,
        watch: Callable[[Task | None, Tick | None], None],
        *,
        accept_stale: bool = False,
    ) -> None:
        self.workers, self.cache, self.watch, self.accept_stale = workers, cache, watch, accept_stale
        self._pool: list[_Worker] = []

    def results(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Train all `tasks`; yield each with its result as it finishes.

        Raises:
            ValueError: a run that was refused; the others are stopped and continue at the next call.
            OSError: the disk failed, or a worker process died.
        """
        waiting = list(reversed(tasks))
        while len(self._pool) < min(self.workers, len(tasks)):
            self._pool.append(self._start())
        while waiting or any(worker.task for worker in self._pool):
            for worker in self._pool:
                if worker.task is None and waiting:
                    worker.task = waiting.pop()
                    with suppress(ConnectionError):  # it died while idle; receiving from it says so
                        worker.pipe.send((worker.task.run, worker.task.folder))
            busy = {worker.pipe: worker for worker in self._pool if worker.task}
            ready = wait(list(busy), timeout=_POLL_SECONDS)
            if not ready:
                self.watch(None, None)
            for pipe in ready:
                worker = busy[pipe]  # type: ignore[index]
                task = worker.task
                assert task is not None, "only busy workers were waited for"
                news = self._receive(worker, task)
                if isinstance(news, Tick):
                    self.watch(task, news)
                else:
                    worker.task = None
                    yield task, news

    def close(self) -> None:
        """Stop all workers at once; whatever they were training resumes from its checkpoint."""
        for worker in self._pool:
            worker.process.terminate()
        for worker in self._pool:
            worker.process.join()
            worker.pipe.close()
        self._pool = []

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.cache, self.accept_stale), daemon=True)
        # Ctrl-C reaches the whole group; the parent decides for all. A worker inherits the blocked signal at its birth.
        resource_tracker.ensure_running()  # which unblocks it again, if only the first worker starts it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        return _Worker(process, ours)

    def _receive(self, worker: _Worker, task: Task) -> Tick | dict[str, Any]:
        try:
            news = worker.pipe.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            raise OSError(
                f"the process training '{task.folder}' {_ending(worker.process.exitcode)}; call again to continue"
            ) from None
        if isinstance(news, BaseException):
            raise news
        return news


def _ending(exit_code: int) -> str:
    """How a process ended that ought to have lived."""
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name} (out of memory, perhaps)"
    return f"failed with exit status {exit_code}, as told above"


def _serve(pipe: Connection, cache: Path, accept_stale: bool) -> None:
    """A worker's life: receive a run, train it, send ticks and the result or the exception."""
    parent = os.getppid()
    while True:
        try:
            run, folder = pipe.recv()
        except EOFError:
            return

        def watch(tick: Tick) -> None:
            if os.getppid() != parent:
                raise SystemExit  # nobody is left to want the result; the checkpoint keeps the work
            pipe.send(tick)

        news: dict[str, Any] | Exception
        try:
            news = train(run, folder, cache, watch=watch, accept_stale=accept_stale)
        except (ValueError, OSError, RuntimeError) as problem:
            news = problem
        try:
            pipe.send(news)
        except ConnectionError:
            return
