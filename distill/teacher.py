"""A frozen editor that another one learns from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from liveedit.config import from_dict
from liveedit.distill.editor import Editor, load_mean_weights
from liveedit.distill.presets import TrainConfig
from liveedit.errors import CheckpointError


class Teacher:
    """The mean weights of an earlier run, known by their file.

    Attributes:
        editor: the networks, without gradients.
        taught: how they were trained.
        sha256: of the file.

    Args:
        editor: takes the weights.
        path: checkpoint of a foundation run, or of a causal one.

    Raises:
        CheckpointError: it is of another stage, or of other networks.
    """

    def __init__(self, editor: Editor, path: Path) -> None:
        self.editor = editor.requires_grad_(False)
        stages = ("foundation", "causal")
        state = load_mean_weights(editor, path, stages=stages, option="--teacher")
        self.taught = from_dict(TrainConfig, state["config"])
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        editor.eval()

    def state(self) -> dict[str, Any]:
        """What a run keeps of its teacher."""
        return {"teacher_sha256": self.sha256}

    def check(self, state: dict[str, Any], path: Path) -> None:
        """A run at ``path`` goes on with the teacher that it began with.

        Raises:
            CheckpointError: it began with another.
        """
        before = state.get("teacher_sha256", "")
        if before != self.sha256:
            raise CheckpointError(
                f"{path} was trained with another --teacher (its file begins with "
                f"{before[:12] or 'none'}, this one with {self.sha256[:12]}); "
                "give that one, or use another --out"
            )
