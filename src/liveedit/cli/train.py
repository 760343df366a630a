"""`liveedit train`: one stage of the editor's training."""

from __future__ import annotations

from liveedit.errors import UsageError

try:
    from liveedit.distill import train
except ImportError as error:
    raise UsageError(
        f"training needs {error.name}, which is not installed: pip install 'liveedit-trt[train]'"
    ) from None

add_arguments = train.add_arguments
run = train.main
