"""Progress of long jobs: a bar on a terminal, a line now and then anywhere else.

Both go to standard error, so that standard output holds results only. Of several ranks, rank 0 alone talks.
"""

import sys
import time

from tqdm import tqdm

from train import parallel

EVERY = 30.0  # seconds between two lines when the output is not a terminal


class Bar:
    """A tqdm bar on a terminal; without one, a plain line at most every EVERY seconds.

    total, initial: counts of `unit`; label: what is being done.
    """

    def __init__(self, total, label, unit="it", initial=0):
        self.terminal = sys.stderr.isatty() and parallel.rank() == 0
        self.bar = tqdm(total=total, desc=label, unit=unit, initial=initial, leave=False, dynamic_ncols=True,
                        disable=not self.terminal, smoothing=0.1)
        self.total, self.count, self.initial, self.label, self.unit = total, initial, initial, label, unit
        self.started = self.told = time.monotonic()
        self.note = ""

    def update(self, count, note=""):
        """`count` more units are done; `note` stands behind the bar or in the next line."""
        self.count += count
        self.note = note or self.note
        if self.terminal:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.told > EVERY and parallel.rank() == 0:
            self.told = time.monotonic()
            pace = (self.told - self.started) / max(1, self.count - self.initial)
            left = duration((self.total - self.count) * pace)
            note = f"{self.note}, " if self.note else ""
            print(f"{self.label}: {self.count:,}/{self.total:,} {self.unit}, {note}{left} left",
                  file=sys.stderr, flush=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()


def progress(items, label, total=None, unit="it"):
    """Iterate over `items` with a bar."""
    with Bar(total if total is not None else len(items), label, unit) as bar:
        for item in items:
            yield item
            bar.update(1)


def say(*words):
    """Print a line without tearing a bar that is on the terminal."""
    if parallel.rank() == 0:
        tqdm.write(" ".join(map(str, words)), file=sys.stdout)
        sys.stdout.flush()


def duration(seconds):
    """Seconds in words that a person plans with: 42 s, 13 min, 2 h 05 min, 3 d 04 h."""
    minutes = round(seconds / 60)
    if seconds < 99:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"
