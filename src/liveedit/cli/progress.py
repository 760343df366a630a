"""Progress of a long command on stderr: one living line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_PLAIN_EVERY_S = 2.0


class Progress:
    """Says which phase runs, and how far the edit is.

    Args:
        total: frames the clip is expected to hold; None if nobody knows.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = time.monotonic()
        self._phase_start = self._start
        self._last_line = 0.0
        self._open_line = False
        self.total: int | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the current phase began."""
        return time.monotonic() - self._phase_start

    def phase(self, text: str) -> None:
        """Begin a phase."""
        self._end_line()
        now = time.monotonic()
        print(f"[{now - self._start:6.1f} s] {text}", file=self._stream, flush=True)
        self._phase_start = now

    def frames(self, num_read: int, num_written: int) -> None:
        """The edit has read and written so many frames."""
        now = time.monotonic()
        if not self._terminal and now - self._last_line < _PLAIN_EVERY_S:
            return
        self._last_line = now
        text = f"[{now - self._start:6.1f} s] {self._count(num_written)}"
        if self._terminal:
            print(f"\r{text:<78}", end="", file=self._stream, flush=True)
            self._open_line = True
        else:
            print(text, file=self._stream, flush=True)

    def _count(self, num_written: int) -> str:
        rate = num_written / max(self.elapsed_s, 1e-9)
        if not self.total or num_written > self.total:
            return f"{num_written} frames, {rate:.1f} FPS"
        left_s = (self.total - num_written) / rate if rate else 0.0
        minutes, seconds = divmod(round(left_s), 60)
        return (
            f"{num_written} of {self.total} frames, {rate:.1f} FPS, {minutes}:{seconds:02d} to go"
        )

    def _end_line(self) -> None:
        if self._open_line:
            print(file=self._stream)
            self._open_line = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_line()
