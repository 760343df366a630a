"""A trained editor as a function from frames and words to frames, sampled as its stage is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from liveedit.config import StreamConfig, named_config
from liveedit.distill.editor import Editor, load_mean_weights
from liveedit.distill.encode import load_codec
from liveedit.distill.guidance import full_attention, guided
from liveedit.distill.latents import to_tensor
from liveedit.distill.presets import STAGES
from liveedit.distill.rollout import Noise, stream_edit, whole_clip_edit
from liveedit.distill.scenes import Bytes
from liveedit.errors import UsageError
from liveedit.models.patch_codec import PatchCodec
from liveedit.schedule import sigma_table

Method = Literal["stream", "whole"]


def seeded(seeds: Sequence[int]) -> Noise:
    """Noise of each clip by its own seed, whatever it is batched with."""
    clips = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda _block, _draw, shape: torch.stack(
        [torch.randn(tuple(shape[1:]), generator=clip) for clip in clips]
    )


class Sampler:
    """Codec, editor and tokenizer.

    Args:
        method: ``stream``, chunk by chunk with the stream's passes and a KV cache; or ``whole``,
            the whole clip at once with full attention and ``steps`` Euler steps.
        shift: warps the steps of ``whole`` towards noise.
        guidance: g in c + g (c - u) at every step of ``whole``, u without words; 0 leaves u out.
    """

    def __init__(
        self,
        editor: Editor,
        codec: PatchCodec,
        tokenizer: Tokenizer,
        stream: StreamConfig,
        *,
        method: Method = "stream",
        steps: int = 50,
        shift: float = 5.0,
        guidance: float = 0.0,
    ) -> None:
        self.editor, self.codec = editor.eval().requires_grad_(False), codec
        self.tokenizer, self.stream, self.method = tokenizer, stream, method
        self.guidance = guidance
        table = sigma_table(shift)
        self.sigmas = [float(table[i * len(table) // steps]) for i in range(steps)]
        self.network_s = 0.0  # CPU time of `edit_latents` so far: other work leaves it alike

    @property
    def calls_per_frame(self) -> int:
        """How many times the network sees each frame, clean passes included."""
        if self.method == "whole":
            return len(self.sigmas) * (2 if self.guidance else 1)
        return len(self.stream.denoising_step_list) + 1

    def calls(self, num_latent_frames: int) -> int:
        """Network calls for a clip."""
        if self.method == "whole":
            return self.calls_per_frame
        return self.calls_per_frame * (num_latent_frames // self.stream.num_frame_per_block)

    @torch.inference_mode()
    def encode(self, clips: Sequence[Bytes]) -> Tensor:
        """Clips [T, H, W, 3] of one length -> [B, C, F, h, w]."""
        return torch.cat([self.codec.encode(to_tensor(clip)) for clip in clips])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[Bytes]:
        """[B, C, F, h, w] -> B clips [T, H, W, 3]."""
        return [_frames(self.codec.decode(latent[None])) for latent in latents]

    @torch.inference_mode()
    def edit_latents(self, source: Tensor, prompts: list[str], seeds: Sequence[int]) -> Tensor:
        """[B, C, F, h, w], F a multiple of the block, edited."""
        started = time.process_time()
        embeds = self.editor.embed(self.tokenizer, prompts)
        dit, noise = self.editor.dit, seeded(seeds)
        if self.method == "whole":
            velocity = full_attention(dit, embeds, source)
            if self.guidance:
                empty = self.editor.embed(self.tokenizer, [""] * len(prompts))
                without = full_attention(dit, empty, source)
                velocity = guided(velocity, without, self.guidance)
            edited = whole_clip_edit(velocity, source, self.sigmas, noise)
        else:
            edited = stream_edit(dit, embeds, source, self.stream, noise)
        self.network_s += time.process_time() - started
        return edited

    def edit(self, clips: Sequence[Bytes], prompts: list[str], seeds: Sequence[int]) -> list[Bytes]:
        """Clips [T, H, W, 3] of one length, T a multiple of four times the block, edited."""
        return self.decode(self.edit_latents(self.encode(clips), prompts, seeds))


def _frames(video: Tensor) -> Bytes:
    array: Bytes = (video[0].permute(1, 2, 3, 0) * 255 + 0.5).to(torch.uint8).numpy()
    return array


def load_sampler(
    checkpoint: Path,
    codec: Path,
    model_name: str = "tiny",
    *,
    method: Method | None = None,
    steps: int = 50,
    guidance: float = 0.0,
) -> tuple[Sampler, str, int]:
    """The mean weights of a run, its tokenizer (beside it) and a codec.

    Args:
        method: None samples a foundation model ``whole`` and others as a ``stream``.

    Returns:
        The sampler, the stage of the checkpoint and its step.

    Raises:
        UsageError: guidance of a stream.
    """
    model, stream = named_config(model_name)
    editor = Editor(model)
    state = load_mean_weights(editor, checkpoint, stages=STAGES, option="--checkpoint")
    tokenizer = Tokenizer.from_file(str(checkpoint.parent / "tokenizer.json"))
    method = method or ("whole" if state["stage"] == "foundation" else "stream")
    if guidance and method == "stream":
        raise UsageError("guidance is for method whole; a distilled stream has it in its weights")
    sampler = Sampler(
        editor,
        load_codec(codec, model_name),
        tokenizer,
        stream,
        method=method,
        steps=steps,
        guidance=guidance,
    )
    return sampler, state["stage"], state["step"]
