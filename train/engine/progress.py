"""Progress of long jobs: a bar on a terminal, elsewhere a line every half minute.

Both go to standard error, so that standard output has what is worth keeping: the description of a run, where it was
resumed, and its score. Of several ranks, only rank 0 prints. A closed output, as with `| head`, does not stop the work.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from train.engine import distributed

EVERY = 30.0  # seconds between two lines when the output is not a terminal


class Every:
    """Every(seconds)() is True once per `seconds`, and False in between."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, time.monotonic()

    def __call__(self) -> bool:
        due = time.monotonic() - self.last >= self.seconds
        self.last = time.monotonic() if due else self.last
        return due


class Progress:
    """Shows how much of a job of `total` units is done, with an estimate of the time left.

    label: the name of the job; done: units that an earlier process did; work: a function of the units done, if their
    costs differ; announce: a line to print on standard output, with the expected time, as soon as that is known.
    """

    def __init__(self, total: int, label: str, unit: str = "it", done: int = 0,
                 work: Callable[[int], float] = lambda done: done, announce: str | None = None):
        # Several jobs of `make -j` would overwrite each other's bars.
        jobs = "--jobserver" in os.getenv("MAKEFLAGS", "")
        self.terminal = sys.stderr.isatty() and distributed.rank() == 0 and not jobs
        self.bar = tqdm(total=total, desc=label, unit=unit, initial=done, leave=False, dynamic_ncols=True,
                        disable=not self.terminal, bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
                        "{unit}, {elapsed}{postfix}")
        self.total, self.label, self.unit, self.work, self.announcement = total, label, unit, work, announce
        self.begun, self.next_line = None, Every(EVERY)

    def reach(self, done: int, note: str = "") -> None:
        """`done` units are done in total; `note` is shown after the bar or in the next line."""
        if self.begun is None:  # the first unit includes compilation and warm-up, so it is not timed
            self.begun = done, time.monotonic()
        first, since = self.begun
        begun, now, end = map(self.work, (first, done, self.total))
        pace = (time.monotonic() - since) / (now - begun) if now > begun else 0.0  # seconds per unit of work
        known = now > begun or now >= end  # a unit was timed, or none is left
        note = ", ".join(filter(None, [note, f"{duration(pace * (end - now))} left" * known]))
        if self.announcement and (done >= first + 2 or done == self.total):
            say(f"{self.announcement}, about {duration(pace * (end - begun))}")
            self.announcement = None
        if self.terminal:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
        elif distributed.rank() == 0 and known and self.next_line():
            with unheard("stderr"):
                print(f"{self.label}: {done:,}/{self.total:,} {self.unit}, {note}", file=sys.stderr, flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()


def progress(items: Sequence, label: str, unit: str = "it") -> Iterator:
    """Iterate over a list with a bar."""
    with Progress(len(items), label, unit) as bar:
        bar.reach(0)
        for done, item in enumerate(items, 1):
            yield item
            bar.reach(done)


def say(line: str) -> None:
    """Print a line without breaking a bar on the terminal."""
    if distributed.rank() == 0:
        with unheard("stdout"):
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


@contextmanager
def unheard(name: str) -> Iterator[None]:
    """For writing to sys.NAME: discard all further output once its reader has gone, or its disk is full.

    Otherwise a run would end with an error after writing its weights.
    """
    try:
        yield
    except OSError:
        setattr(sys, name, open(os.devnull, "w"))


def duration(seconds: float) -> str:
    """Seconds in readable units: 42 s, 13 min, 2 h 05 min, 3 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 99:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"
