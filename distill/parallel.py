"""The processes that train together, started by torchrun or alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Coding data on one process may keep the others waiting for long.
TIMEOUT = timedelta(hours=2)


class Processes:
    """This process's place among those that train together; alone it is 0 of 1.

    Figures and messages travel over the CPU, gradients over the device.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def mean(self, figures: dict[str, float]) -> dict[str, float]:
        """Mean over the processes, so that all of them see a failure of one."""
        if self.world == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        dist.all_reduce(values)
        return dict(zip(figures, (values / self.world).tolist(), strict=True))

    def any(self, mine: bool) -> bool:
        """Whether any process says so: all act alike at the same step."""
        return self.mean({"any": float(mine)})["any"] > 0

    def from_first(self, value: Any) -> Any:
        """The first process's value, on every process."""
        held = [value]
        if self.world > 1:
            dist.broadcast_object_list(held, device=torch.device("cpu"))
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank."""
        held = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(held, value)
        return held

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Mean gradient over the processes, in place, for parameters that everyone holds whole."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for g, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            g.copy_(mean.view_as(g))


def join() -> None:
    """Meet the other processes that torchrun started; nothing to do without it."""
    if "WORLD_SIZE" not in os.environ:
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)


def leave() -> None:
    """The end of `join`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def plain(tree: Any) -> Any:
    """A tree of tensors as whole tensors on the CPU."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu()
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    return tree
