"""Pairs of clips coded once by a frozen codec and kept on disk, by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liveedit.config import ModelConfig, StreamConfig
from liveedit.distill.encode import load_codec
from liveedit.distill.latents import LatentScene, latent_mask, save_scene, to_tensor
from liveedit.distill.pairs import Frames, PairFiles, mismatches, read_pair
from liveedit.distill.parallel import Processes
from liveedit.distill.text_cache import file_mark
from liveedit.errors import UsageError
from liveedit.export.checkpoints import load_into, load_wan_vae
from liveedit.models.wan_vae import WanVAE

EDITED = 0.1  # mean change of a pixel's channels, of 1, that counts as edited


class Codec(Protocol):
    """What both codecs have."""

    def encode(self, frames: Tensor) -> Tensor:
        """[1, 3, T, H, W] in [0, 1] -> [1, 16, F, H / 8, W / 8]."""


class PairCache:
    """Codes pairs into the scenes of a folder, each process its part of the list.

    Args:
        num_latent_frames: length of the coded clips.
        codec_path: the patch codec's state dict, or ``Wan2.1_VAE.pth``.
    """

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        stream: StreamConfig,
        num_latent_frames: int,
        codec_path: Path,
        device: torch.device,
    ) -> None:
        if model.taehv is not None:
            raise UsageError(f"{model.name!r} cannot be trained on pairs: its codec is TAEHV")
        self.folder, self.model, self.stream = folder, model, stream
        # The Wan VAE codes the first frame alone.
        first = 4 if model.wan_vae is None else 1
        self.num_video_frames = first + 4 * (num_latent_frames - 1)
        self.codec_path, self.device = codec_path, device
        if not codec_path.is_file():
            raise UsageError(f"the codec {codec_path} does not exist")
        size = f"{stream.height_px} {stream.width_px} {self.num_video_frames}"
        self.mark = f"{file_mark(codec_path)} {size}"
        self._codec: Codec | None = None

    @property
    def codec(self) -> Codec:
        """Loaded when the first clip is not there yet."""
        if self._codec is None:
            if self.model.wan_vae is not None:
                state = load_wan_vae(self.codec_path, self.model.wan_vae)
                self._codec = load_into(WanVAE, self.model.wan_vae, state).to(self.device)
            else:
                codec = load_codec(self.codec_path, self.model.name, encoder_only=True)
                self._codec = codec.to(self.device)
        return self._codec

    def fill(
        self,
        pairs: Sequence[PairFiles],
        processes: Processes,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """Code what is not there yet.

        Returns:
            File names of the scenes in the order of ``pairs``.

        Raises:
            UsageError: a pair's clips do not match, or are too short.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = range(processes.rank, len(pairs), processes.world)
        names = {i: self.name(pairs[i]) for i in mine}
        absent = [i for i in mine if not (self.folder / names[i]).exists()]
        problems = processes.gather(mismatches([pairs[i] for i in absent]))
        if any(problems):
            told = [text for part in problems for text in part]
            raise UsageError(
                f"{len(told)} pairs have clips that do not match; cut or scale them alike, or "
                "take them out of the list:\n  " + "\n  ".join(told)
            )
        for done, i in enumerate(absent):
            progress(done, len(absent))
            size = (self.stream.height_px, self.stream.width_px)
            clips = read_pair(pairs[i], self.num_video_frames, *size)
            save_scene(self.folder / names[i], self._code(pairs[i], *clips))
        everyone = {i: name for part in processes.gather(names) for i, name in part.items()}
        return list(dict.fromkeys(everyone[i] for i in range(len(pairs))))

    def name(self, pair: PairFiles) -> str:
        """File name of a pair's scene: by the content of its clips, its words, and the codec."""
        digest = hashlib.sha256(self.mark.encode())
        for file in (pair.source, pair.edited):
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        digest.update(pair.instruction.encode())
        return f"{digest.hexdigest()[:40]}.npz"

    @torch.inference_mode()
    def _code(self, pair: PairFiles, source: Frames, edited: Frames) -> LatentScene:
        y, x0 = (
            self.codec.encode(to_tensor(clip).to(self.device))[0].half().cpu().numpy()
            for clip in (source, edited)
        )
        return LatentScene(
            source=y,
            targets=x0[None],
            masks=self._mask(source, edited)[None],
            edits=[
                {
                    "instruction": pair.instruction,
                    "kind": "pair",
                    "source": str(pair.source),
                    "edited": str(pair.edited),
                }
            ],
        )

    def _mask(self, source: Frames, edited: Frames) -> NDArray[np.uint8]:
        """[F, h, w] uint8: 255 where the clips differ visibly."""
        change = np.abs(source.astype(np.int16) - edited).mean(axis=-1) > 255 * EDITED
        mask = (255 * change).astype(np.uint8)
        if self.model.wan_vae is not None:  # the first latent holds one frame
            mask = np.concatenate((np.repeat(mask[:1], 3, axis=0), mask))
        return latent_mask(mask)
