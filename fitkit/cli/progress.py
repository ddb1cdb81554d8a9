"""Progress on stderr: what is done, how much of it, and the time left. Nothing where stderr is no terminal,
or with --quiet."""

from __future__ import annotations

import sys
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
