"""A network under training: its optimizer and the running mean of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from liveedit.distill.parallel import Processes, like, local, whole
from liveedit.errors import LiveEditError


class Ema:
    """Running mean of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        # A young mean forgets its random start sooner.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in module.state_dict().items():
            local(self.state[name]).lerp_(local(p), 1 - decay)


class Learner:
    """One module and what its updates depend on. A stage may have several.

    Args:
        ema: decay of the running mean; 0 keeps none.
    """

    def __init__(
        self,
        module: nn.Module,
        processes: Processes,
        *,
        lr: float,
        betas: tuple[float, ...],
        weight_decay: float,
        clip_norm: float,
        ema: float = 0.0,
    ) -> None:
        self.module, self.processes, self.clip_norm = module, processes, clip_norm
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=lr,
            betas=(betas[0], betas[1]),
            weight_decay=weight_decay,
            fused=True,
        )
        self.updates = 0
        self.ema = Ema(module, ema) if ema else None

    def update(self, rate: float, where: Callable[[], str] = str) -> float:
        """Apply the gradients that backward passes left, and clear them.

        Args:
            rate: learning rate.
            where: says which step and clips these are, if that is needed.

        Returns:
            The norm of the gradients before clipping.

        Raises:
            LiveEditError: the gradients are not finite; the weights stay as they were.
        """
        self.processes.average_gradients(self.parameters)
        total = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if not math.isfinite(norm):
            raise LiveEditError(f"the norm of the gradients became {norm} {where()}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        if self.ema is not None:
            self.ema.update(self.module, self.updates)
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the module has the running mean's weights; afterwards its own, bit for bit."""
        if self.ema is None:
            yield
            return
        now = self.module.state_dict()
        own = {name: local(p).clone() for name, p in now.items()}
        with torch.no_grad():
            for name, p in now.items():
                local(p).copy_(local(self.ema.state[name]))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in now.items():
                    local(p).copy_(own[name])

    def restart_mean(self) -> None:
        """Let the running mean begin at the module's present weights."""
        if self.ema is not None:
            self.ema = Ema(self.module, self.ema.decay)

    def state(self) -> dict[str, Any]:
        """Whole tensors on the CPU: `weights`, `optimizer`, `updates` and, if kept, `ema`.

        Only the first process gets the tensors; all must call.
        """
        keep = self.processes.first
        state = {
            "weights": whole(self.module.state_dict(), keep),
            "optimizer": whole(self.optimizer.state_dict(), keep),
            "updates": self.updates,
        }
        if self.ema is not None:
            state["ema"] = whole(self.ema.state, keep)
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a ``state``, whatever number of processes it was made by.

        Raises:
            KeyError, RuntimeError: it belongs to another module.
        """
        self.module.load_state_dict(state["weights"])
        moments = state["optimizer"]["state"]
        for i, parameter in enumerate(self.parameters):
            if i in moments:
                moments[i] = {
                    name: like(parameter, value) if value.shape == parameter.shape else value
                    for name, value in moments[i].items()
                }
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]
        if self.ema is not None:
            for name, value in self.ema.state.items():
                value.copy_(like(value, state["ema"][name]))
