"""The processes that train together, started by torchrun or alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from liveedit.distill.presets import Precision

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
        """Mean gradient over the processes, in place. Sharded ones have theirs already."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        gradients = [g for g in gradients if not isinstance(g, DTensor)]
        if not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for g, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            g.copy_(mean.view_as(g))


def join(*, alone: bool = False) -> None:
    """Meet the other processes that torchrun started.

    Args:
        alone: form a group of one where there is no torchrun; sharding needs a group.
    """
    cuda = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "WORLD_SIZE" in os.environ:
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend, timeout=TIMEOUT)
    elif alone:
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch does not list it
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def leave() -> None:
    """The end of `join`."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(module: nn.Module, units: Iterable[nn.Module], precision: Precision) -> None:
    """Spread every parameter over the processes; a unit's are whole only while it runs.

    Args:
        units: the parts that are gathered one at a time; the rest is a unit of its own.
    """
    # The networks' outputs are views, and nothing writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(
        "cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),)
    )
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None,
        reduce_dtype=torch.float32,
        # The networks cast what they are given; timesteps would not survive bf16.
        cast_forward_inputs=False,
    )
    for unit in (*units, module):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        for method in ("stream", "text_kv"):
            if hasattr(unit, method):
                register_fsdp_forward_method(unit, method)
    module.register_load_state_dict_pre_hook(_scatter)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(reference: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor as ``reference`` is held: as it is, or this process's shard of it."""
    if not isinstance(reference, DTensor) or isinstance(whole, DTensor):
        return whole
    # Every process read the whole tensor itself: nothing needs to be sent.
    return distribute_tensor(whole, reference.device_mesh, reference.placements, src_data_rank=None)


def _scatter(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = {name: p for name, p in (*module.named_parameters(), *module.named_buffers())}
    for name, reference in own.items():
        held = state.get(prefix + name)
        if held is not None and held.shape == reference.shape:
            state[prefix + name] = like(reference, held)


def whole(tree: Any, keep: bool = True) -> Any:
    """A tree of tensors as whole tensors on the CPU.

    Shards are gathered one tensor at a time: every process must call this alike.

    Args:
        keep: whether this process wants them; the others get None in their place.
    """
    if isinstance(tree, DTensor):
        tensor = tree.full_tensor()
        return tensor.detach().cpu() if keep else None
    if isinstance(tree, Tensor):
        return tree.detach().cpu() if keep else None
    if isinstance(tree, dict):
        return {name: whole(value, keep) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [whole(value, keep) for value in tree]
    return tree
