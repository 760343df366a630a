"""When one process of a run fails, the others stop, and say why."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from liveedit.distill.parallel import Processes, join, leave
from liveedit.errors import LiveEditError

PERIOD_S = 0.5  # between two signs of life
MISSED = 10  # signs of life that a process in a broken connection may owe
SILENCE_S = 120.0  # without a sign of life, a process is gone whatever the connections say
GRACE_S = 10.0  # for the main thread to notice by itself
_FAILED, _TOLD, _DONE = "liveedit/failed", "liveedit/told", "done"


class Watch:
    """A thread that shows this process's life to the others, and looks for theirs.

    A failure is written down where all can read it. Whoever then waits for the failed process is
    stopped: by the broken connection, or by this thread.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        # A connection of its own: the group's may be waiting for somebody.
        self.store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not list it
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
        )
        self.over = threading.Event()
        self.seen = {r: ("", time.monotonic()) for r in range(processes.world)}
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.store.set(self._life(processes.rank), "0")
        self.thread.start()

    def close(self, error: BaseException | None) -> None:
        """The main thread's end.

        Raises:
            LiveEditError: ``error`` is only the echo of another process's failure, told here.
        """
        if error is None:
            self._stop()
        elif _is_echo(error):
            # The one that failed is about to say so, or never will.
            patience = time.monotonic() + 2 * MISSED * PERIOD_S
            while (reason := self._ask(MISSED * PERIOD_S)) is None:
                time.sleep(PERIOD_S)
                if time.monotonic() > patience:
                    reason = "a connection broke, though every process shows signs of life"
                    break
            self.over.set()
            raise LiveEditError(_sentence(reason)) from error
        else:
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        """Write the failure down, and stay until it was read: the readers may depend on us."""
        kind = "" if isinstance(error, LiveEditError) else f"{type(error).__name__}: "
        self.over.set()
        try:
            self.store.set(_FAILED, f"process {self.processes.rank} failed: {kind}{error}")
            others = [f"{_TOLD}/{r}" for r in self.seen if r != self.processes.rank]
            patience = time.monotonic() + MISSED * PERIOD_S
            while not self.store.check(others) and time.monotonic() < patience:
                time.sleep(PERIOD_S / 5)
        except RuntimeError:
            return  # nobody is left to tell

    def _stop(self) -> None:
        self.over.set()
        self.thread.join()
        # All are done. The process that holds the store may have left already: nobody looks then.
        with suppress(RuntimeError):
            self.store.set(self._life(self.processes.rank), _DONE)

    def _look(self) -> None:
        count = 0
        while not self.over.wait(PERIOD_S):
            count += 1
            with suppress(RuntimeError):  # the next line asks what that means
                self.store.set(self._life(self.processes.rank), str(count))
            reason = self._ask(SILENCE_S)
            if reason is not None and not self.over.wait(GRACE_S):
                print(f"liveedit: {_sentence(reason)}", file=sys.stderr, flush=True)
                os._exit(1)

    def _ask(self, silence_s: float) -> str | None:
        """Why this process should stop, if it should."""
        try:
            return self._reason(silence_s)
        except RuntimeError:  # dist.DistNetworkError among them
            return "the process that all others connect to, usually 0, is gone"

    def _reason(self, silence_s: float) -> str | None:
        if self.store.check([_FAILED]):
            self.store.set(f"{_TOLD}/{self.processes.rank}", "")
            return str(self.store.get(_FAILED).decode())
        now = time.monotonic()
        for rank, (last, since) in self.seen.items():
            if not self.store.check([self._life(rank)]):
                continue
            value = self.store.get(self._life(rank)).decode()
            if value != last:
                self.seen[rank] = (value, now)
            elif value != _DONE and now - since > silence_s:
                return f"process {rank} was killed, or its machine is gone"
        return None

    def _life(self, rank: int) -> str:
        return f"liveedit/life/{rank}"


def _is_echo(error: BaseException) -> bool:
    """Whether an error is a broken connection to another process."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo", "nccl", "connection", "socket")
    )


def _sentence(reason: str) -> str:
    return f"{reason}. The last checkpoint is whole; the same command goes on from there"


@contextmanager
def together(*, alone: bool = False) -> Iterator[Processes]:
    """Train with the other processes that torchrun started, and stop when one of them fails.

    Args:
        alone: form a group of one where there is no torchrun; sharding needs a group.

    Raises:
        LiveEditError: another process failed, and how.
    """
    join(alone=alone)
    processes = Processes()
    watch = Watch(processes) if processes.world > 1 else None
    try:
        yield processes
        processes.gather(None)  # nobody leaves while another one needs him
    except BaseException as error:
        if watch is None:
            leave()
        else:
            watch.close(error)  # no leaving: that would wait for the one that failed
        raise
    if watch is not None:
        watch.close(None)
    leave()
