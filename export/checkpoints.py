"""Official checkpoints to verified state dicts: exactly the tensors that a configuration names.

Nothing here allocates a network: shapes come from the meta device, tensors stay mapped to their
file, and `load_into` hands them to the module as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from liveedit.config import DiTConfig, TAEHVConfig, TextEncoderConfig, WanVAEConfig
from liveedit.errors import CheckpointError
from liveedit.export.tensor_file import read_tensor_file
from liveedit.models.dit import CausalWanDiT
from liveedit.models.taehv import TAEHV, trim_growth
from liveedit.models.umt5 import UMT5Encoder
from liveedit.models.wan_vae import WanVAE

State = dict[str, Tensor]
Expected = dict[str, torch.Size]
M = TypeVar("M", bound=nn.Module)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Names that wrappers put between the segments of a parameter's name.
_WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
_ROOTS = ("module", "model")  # and in front of it
_PATCH = "patch_embedding.weight"
_SHOWN = 3


def expected_shapes(module_cls: type[nn.Module], config: Any) -> Expected:
    """Name and shape of every tensor in the state dict of ``module_cls(config)``."""
    return {name: tensor.shape for name, tensor in _meta(module_cls, config).state_dict().items()}


def load_into(module_cls: type[M], config: Any, state: Mapping[str, Tensor]) -> M:
    """``module_cls(config)`` in eval mode whose parameters are the tensors of ``state`` themselves.

    Raises:
        CheckpointError: ``state`` is not exactly what the module holds.
    """
    verify(state, expected_shapes(module_cls, config), "the given state dict")
    module = _meta(module_cls, config)
    module.load_state_dict(state, strict=True, assign=True)
    left = [n for n, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta]
    assert not left, f"{module_cls.__name__} keeps tensors outside its state dict: {left}"
    return module.eval()


def load_dit(path: Path, config: DiTConfig, *, ema: bool = False) -> State:
    """A LiveEdit DiT, e.g. ``ar-forcing_002000.pt``.

    Args:
        ema: take ``generator_ema`` where the file has several weight sets. A file with one set
            gives that one, unless ``ema`` is asked for and only ``generator`` is there.

    Raises:
        CheckpointError: unreadable, or not exactly the tensors of ``config``.
    """
    state = plain_names(_weight_set(read_tensor_file(path), ema, path), path)
    expected = expected_shapes(CausalWanDiT, config)
    patch = state.get(_PATCH)
    if patch is not None and patch.shape == _base_patch(expected):
        raise CheckpointError(
            f"{path} has {patch.shape[1]} input channels: it is a base Wan model that cannot see "
            f"the source video. LiveEdit needs {config.in_channels}; give its own checkpoint."
        )
    return verify(state, expected, path)


def load_wan_base(path: Path, config: DiTConfig) -> State:
    """The Wan 2.1 text-to-video DiT, its patch convolution widened for the source latent.

    The new input channels come last and start at zero: the source has no effect before training.

    Args:
        path: safetensors file, or folder with one such file or with shards and their index.

    Raises:
        CheckpointError: unreadable, or not exactly the tensors of ``config``.
    """
    state = plain_names(_tensors(read_tensor_file(path), path), path)
    expected = expected_shapes(CausalWanDiT, config)
    base = {**expected, _PATCH: _base_patch(expected)}
    state = verify(state, base, path)
    patch = state[_PATCH]
    state[_PATCH] = torch.cat((patch, torch.zeros_like(patch)), dim=1)
    return state


def load_wan_vae(path: Path, config: WanVAEConfig) -> State:
    """``Wan2.1_VAE.pth``. Raises CheckpointError like `load_dit`."""
    state = plain_names(_tensors(read_tensor_file(path), path), path)
    return verify(state, expected_shapes(WanVAE, config), path)


def load_text_encoder(path: Path, config: TextEncoderConfig) -> State:
    """``models_t5_umt5-xxl-enc-bf16.pth``. Raises CheckpointError like `load_dit`."""
    state = plain_names(_tensors(read_tensor_file(path), path), path)
    return verify(state, expected_shapes(UMT5Encoder, config), path)


def load_taehv(path: Path, config: TAEHVConfig) -> State:
    """``taew2_1.pth`` or its safetensors form. Raises CheckpointError like `load_dit`."""
    state = plain_names(_tensors(read_tensor_file(path), path), path)
    state = trim_growth(state, _meta(TAEHV, config))
    return verify(state, expected_shapes(TAEHV, config), path)


def verify(state: Mapping[str, Tensor], expected: Expected, source: Path | str) -> State:
    """``state`` in the order of ``expected``.

    Raises:
        CheckpointError: names the first missing, unknown, misshapen and non-float tensors.
    """
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    shared = [name for name in expected if name in state]
    misshapen = [
        f"{name} {list(state[name].shape)} instead of {list(expected[name])}"
        for name in shared
        if state[name].shape != expected[name]
    ]
    other = [f"{n} {state[n].dtype}" for n in shared if state[n].dtype not in _DTYPES]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if names[_SHOWN:] else ''})"
        for what, names in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", misshapen),
            ("neither float32, bfloat16 nor float16", other),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit the configuration, which names {len(expected)} tensors: "
            f"{'; '.join(problems)}. Give the checkpoint of this model, or its configuration."
        )
    return {name: state[name] for name in expected}


def plain_names(state: Mapping[str, Tensor], source: Path | str) -> State:
    """Names without what DDP, FSDP, checkpointing, compiling and the training wrapper add.

    Raises:
        CheckpointError: two tensors end up under one name.
    """
    origin: dict[str, str] = {}
    for name in state:
        segments = [segment for segment in name.split(".") if segment not in _WRAPPERS]
        while len(segments) > 1 and segments[0] in _ROOTS:
            segments.pop(0)
        plain = ".".join(segments)
        if plain in origin:
            raise CheckpointError(
                f"{source} has two tensors for {plain}: {origin[plain]} and {name}. "
                "Keep one weight set in the file."
            )
        origin[plain] = name
    return {plain: state[name] for plain, name in origin.items()}


def _weight_set(data: Mapping[str, Any], ema: bool, path: Path) -> State:
    """The generator of a training save, or the file itself where it is a bare state dict.

    Of `liveedit train`'s saves the averaged weights are taken, which are what it is judged by.
    """
    averaged = data.get("ema")
    if isinstance(averaged, Mapping) and isinstance(averaged.get("dit"), Mapping):
        return _tensors(averaged["dit"], path)
    sets = [name for name in ("generator", "generator_ema") if name in data]
    if not sets:
        if ema:
            raise CheckpointError(f"{path} has no generator_ema. Load it without --ema.")
        return _tensors(data, path)
    if ema and "generator_ema" not in sets:
        raise CheckpointError(f"{path} has generator but no generator_ema. Load it without --ema.")
    chosen = data["generator_ema" if ema or "generator" not in sets else "generator"]
    if not isinstance(chosen, Mapping):
        raise CheckpointError(
            f"{path}: its weight set is a {type(chosen).__name__}; expected a state dict."
        )
    return _tensors(chosen, path)


def _tensors(data: Mapping[str, Any], path: Path) -> State:
    foreign = [str(name) for name, value in data.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(
            f"{path} is not a state dict: {foreign[0]!r} is not a tensor; top-level names are "
            f"{', '.join(map(str, list(data)[:5]))}. Give a file of tensors by name."
        )
    return {str(name): tensor for name, tensor in data.items()}


def _base_patch(expected: Expected) -> torch.Size:
    """Shape of the patch convolution before the source latent was joined: half the inputs."""
    out_channels, in_channels, *kernel = expected[_PATCH]
    return torch.Size((out_channels, in_channels // 2, *kernel))


def _meta(module_cls: type[M], config: Any) -> M:
    with torch.device("meta"):
        return module_cls(config)
