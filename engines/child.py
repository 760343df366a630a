"""Run the builder in a child process, watch it, and say in one sentence how it ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from liveedit.config import to_dict
from liveedit.engines.build_worker import LESS_MEMORY, OUT_OF_MEMORY, BuildRequest
from liveedit.engines.flavour import FLAVOURS, child_environment
from liveedit.errors import BackendError

HEARTBEAT_S = 30.0


def worker_command(request_file: Path) -> list[str]:
    return [sys.executable, "-m", "liveedit.engines.build_worker", str(request_file)]


class Progress:
    """Phase and elapsed time of one graph on a stream: one line redrawn on a terminal."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self.label, self.stream = label, stream
        self.start = time.monotonic()
        self.phase = "starting"
        self.live = stream.isatty()
        self.last_shown = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.start

    def show(self, phase: str | None = None) -> None:
        """A new phase, or None to only refresh the time."""
        changed = phase is not None and phase.split(":")[0] != self.phase.split(":")[0]
        self.phase = phase or self.phase
        due = self.elapsed_s - self.last_shown >= HEARTBEAT_S
        if not (self.live or changed or due):
            return
        self.last_shown = self.elapsed_s
        line = f"[{self.elapsed_s:7.1f} s] {self.label}: {self.phase}"
        self._write(line)

    def _write(self, line: str) -> None:
        self.stream.write(f"\r\033[K{line}" if self.live else f"{line}\n")
        self.stream.flush()

    def finish(self, phase: str) -> None:
        self._write(f"[{self.elapsed_s:7.1f} s] {self.label}: {phase}")
        if self.live:
            self.stream.write("\n")


def run_worker(request: BuildRequest, stage: Path, progress: Progress) -> dict[str, Any]:
    """Build one plan into ``stage``. Returns the worker's last event.

    Raises:
        BackendError: the library refused the graph, died, or ran out of memory or disk.
    """
    request_file, log_file = stage / "request.json", stage / "log.txt"
    request_file.write_text(json.dumps(to_dict(request)))
    private = stage / "lib"
    private.mkdir(exist_ok=True)
    environment = child_environment(FLAVOURS[request.flavour], private)
    done: dict[str, Any] | None = None
    with log_file.open("wb") as log:
        child = subprocess.Popen(
            worker_command(request_file),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child
        )
        try:
            for event in _events(child, progress):
                if "phase" in event:
                    progress.show(event["phase"])
                elif "error" in event:
                    raise BackendError(f"{progress.label}: {event['error']}")
                elif event.get("done"):
                    done = event
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            assert child.stdout is not None
            child.stdout.close()
    if code or done is None:
        raise BackendError(_death(code, request, progress, log_file))
    return done


def _events(child: subprocess.Popen[bytes], progress: Progress) -> Any:
    """JSON objects as they come; the time is refreshed once a second between them."""
    assert child.stdout is not None
    descriptor, pending = child.stdout.fileno(), b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], 1.0)
        if not ready:
            progress.show()
            continue
        data = os.read(descriptor, 1 << 16)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _death(code: int, request: BuildRequest, progress: Progress, log_file: Path) -> str:
    tail = log_file.read_text(errors="replace").strip().splitlines()[-3:]
    said = f" Its last words: {' | '.join(tail)}" if tail else ""
    what = f"{progress.label}: the builder process"
    when = f"while {progress.phase}, after {progress.elapsed_s:.0f} s"
    if code == -signal.SIGKILL or OUT_OF_MEMORY.search(said):
        return (
            f"{what} was ended {when}; the system does this when memory runs out. "
            f"{LESS_MEMORY}{said}"
        )
    if code < 0:
        name = signal.Signals(-code).name
        return (
            f"{what} was aborted by {request.flavour} ({name}) {when}. Check the graph with: "
            f"liveedit build BUNDLE --check.{said}"
        )
    return f"{what} ended with exit code {code} {when}.{said}"
