"""Progress on stderr: what is done, how much of it, and the time left. Nothing where stderr is no terminal,
or with --quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fitkit.io.progress import Progress, Step


@contextmanager
def share_bar(hidden: bool) -> Iterator[Progress]:
    """The bar of a fit."""
    from tqdm import tqdm

    layout, left = "{desc:22}|{bar:30}| {percentage:3.0f} % after {elapsed}", ", about {remaining} left"
    with tqdm(
        total=100,
        disable=hidden or not sys.stderr.isatty(),
        leave=False,
        bar_format=layout,
        file=sys.stderr,
        smoothing=0,
    ) as bar:

        def show(step: Step) -> None:
            # Before, mostly libraries were loaded.
            bar.bar_format = layout + (left if step.share > 0.15 else "")
            bar.set_description_str(step.text, refresh=False)
            bar.update(round(100 * step.share) - bar.n)
            bar.refresh()

        yield Progress(show)


@dataclass(frozen=True)
class TrainingBar:
    """The bar of a training, with the callbacks that a training takes."""

    bar: Any
    quiet: bool

    def begun(self, done: int, count: int, unit: str = "step") -> None:
        """done: of an earlier run, which says nothing about the time left; count: in all."""
        self.bar.unit = unit
        self.bar.reset(count)
        self.bar.initial = self.bar.last_print_n = self.bar.n = done
        self.bar.refresh()

    def step_done(self, step: int, values: dict[str, float]) -> None:
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in values.items()}, refresh=False)
        self.bar.update(step - self.bar.n)

    def line(self, text: str) -> None:
        if not self.quiet:
            self.bar.write(text, file=sys.stderr)


@contextmanager
def training_bar(quiet: bool) -> Iterator[TrainingBar]:
    from tqdm import tqdm

    with tqdm(unit="step", disable=quiet or None, file=sys.stderr) as bar:
        yield TrainingBar(bar, quiet)


LINE_EVERY = 60.0  # seconds between two lines where stderr is no terminal, as in the log of a cluster


@contextmanager
def batch_bar(quiet: bool) -> Iterator[Progress]:
    """The bar of a batch, told of each subject with its row: what is done, subjects per second, time left.
    Where stderr is no terminal a line now and then. Subjects that are not ok have a line each."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    began: list[tuple[float, int]] = []
    said = [time.monotonic()]
    with tqdm(unit="subject", disable=quiet or not terminal, file=sys.stderr) as bar:

        def show(step: Step) -> None:
            now, row = time.monotonic(), step.item
            if not began:
                began.append((now, step.done))
                bar.reset(step.count)
                bar.initial = bar.last_print_n = bar.n = (
                    step.done
                )  # of an earlier run: says nothing of the rate
                bar.refresh()
            bar.update(step.done - bar.n)
            if quiet:
                return
            if row is not None and row.status != "ok":
                error = "" if row.expected_mm is None else f", expected error {row.expected_mm:.1f} mm"
                bar.write(f"{row.subject}: {row.status}{error}: {row.message}", file=sys.stderr)
            if not terminal and now - said[0] >= LINE_EVERY:
                said[0] = now
                print(
                    rate_text(step.done, step.count, step.done - began[0][1], now - began[0][0]),
                    file=sys.stderr,
                )

        yield Progress(show)


@contextmanager
def photo_bar() -> Iterator[Progress]:
    """The bar of a detection in many photos; each that has an error is a line."""
    from tqdm import tqdm

    with tqdm(unit="photo", disable=None, file=sys.stderr) as bar:

        def show(step: Step) -> None:
            if step.item is None:
                bar.reset(step.count)
                bar.initial = bar.last_print_n = bar.n = step.done
                bar.refresh()
                return
            bar.update(step.done - bar.n)
            if step.item.status == "error":
                bar.write(f"Error: {step.item.message}", file=sys.stderr)

        yield Progress(show)


def rate_text(done: int, count: int, finished: int, seconds: float) -> str:
    """'120 of 1000 subjects, 3.10 per second, 5 min left'; finished: of those done, in these seconds."""
    if not finished or not seconds:
        return f"{done} of {count} subjects"
    rate = finished / seconds
    left = (count - done) / rate
    time_left = (
        f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min" if left < 6000 else f"{left / 3600:.1f} h"
    )
    return f"{done} of {count} subjects, {rate:.3g} per second, {time_left} left"
