"""A profiler's trace of chosen steps: where the time of an update goes, as a file to look at.

``trace/steps_10-15.rank0.pt.trace.json.gz`` in the run's folder is read by Perfetto (ui.perfetto.dev), by Chrome
(chrome://tracing) and by TensorBoard's profiler. Tracing makes steps slower and changes none of their numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class TracedSteps:
    """Steps `first` to `last`, both included, numbered from 1 as in the journal."""

    first: int
    last: int

    @staticmethod
    def parse(text: str) -> TracedSteps:
        """``10-15`` or ``10``.

        Raises:
            ValueError: another form, or steps that cannot be.
        """
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
        if match is None:
            raise ValueError(f"trace is '{text}'; the form is FIRST-LAST, such as 10-15")
        steps = TracedSteps(int(match[1]), int(match[2] or match[1]))
        if not 1 <= steps.first <= steps.last:
            raise ValueError(f"trace is '{text}'; steps count from 1, and the first is not after the last")
        return steps

    def check(self, done: int, total: int) -> None:
        """Refuse steps that a run which has `done` some of `total` steps will not do.

        Raises:
            ValueError: one of them is done, or beyond the end.
        """
        if self.last > total:
            raise ValueError(f"trace is {self.first}-{self.last}; this run has {total} steps")
        if self.first <= done:
            raise ValueError(f"trace is {self.first}-{self.last}; {done} of this run's {total} steps are done")


class Trace:
    """Records `steps` of a run while its loop tells it before and after each step; does nothing without steps.

    Args:
        folder: of the run.
        accelerator: knows which of several processes this is; each has a file of its own.
    """

    def __init__(self, steps: TracedSteps | None, folder: Path, accelerator: Accelerator) -> None:
        self.steps = steps
        self._folder = folder / "trace"
        self._rank = accelerator.process_index
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Step number `step`, counted from 1, is about to begin."""
        if self.steps is not None and step == self.steps.first:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()

    def after(self, step: int) -> None:
        """Step number `step` is done; after the last one the file is written."""
        if self.steps is None or step != self.steps.last:
            return
        running = self.stop()
        if running is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"steps_{self.steps.first}-{self.steps.last}.rank{self._rank}.pt.trace.json.gz"
            running.export_chrome_trace(str(self._folder / name))

    def stop(self) -> profile | None:
        """End recording, if it goes on; what is not asked for afterwards is lost."""
        running, self._profile = self._profile, None
        if running is not None:
            running.stop()
        return running
