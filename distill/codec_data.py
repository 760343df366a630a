"""Training crops for the codec: real clips, pans and zooms over photographs, flat moving shapes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from liveedit.distill.sources import CLIPS, Frames, load_clip, load_photos, names

SIZES_PX = ((128, 224), (256, 448))  # a crop sees a clip at the stream's scale and at twice that
MAX_FRAMES = (1000, 150)
PHOTO_SHARE = 0.35  # of the crops; the others are real motion
SHAPES_ON_PHOTO, SHAPES_ON_CLIP = 0.5, 0.15


class CropSampler:
    """Draws random crops of the training split. One seed, one sequence of crops."""

    def __init__(self, cache_dir: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.clips: list[Frames] = []
        weights = []
        for (height, width), limit in zip(SIZES_PX, MAX_FRAMES, strict=True):
            for name in names(CLIPS.values(), "train"):
                clip = load_clip(name, cache_dir, height, width, limit)
                self.clips.append(clip)
                weights.append(math.sqrt(len(clip)) * (2.0 if height == SIZES_PX[0][0] else 1.0))
        self.weights = np.array(weights) / sum(weights)
        self.photos: list[list[Tensor]] = []  # per photo: levels, each half the size of the last
        for _, photo in load_photos(cache_dir, "train"):
            level = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
            levels = [level]
            while min(level.shape[2:]) >= 200:
                level = F.interpolate(level, scale_factor=0.5, mode="area")
                levels.append(level)
            self.photos.append(levels)

    def batch(self, size: int, num_frames: int, height_px: int, width_px: int) -> Tensor:
        """[size, 3, num_frames, height_px, width_px] float32 in [0, 1]."""
        return torch.stack([self.crop(num_frames, height_px, width_px) for _ in range(size)])

    def crop(self, num_frames: int, height_px: int, width_px: int) -> Tensor:
        """[3, T, H, W] in [0, 1]."""
        rng = self.rng
        photo = rng.random() < PHOTO_SHARE
        if photo:
            frames = self._pan(num_frames, height_px, width_px)
        else:
            frames = self._excerpt(num_frames, height_px, width_px)
        if rng.random() < (SHAPES_ON_PHOTO if photo else SHAPES_ON_CLIP):
            for _ in range(rng.integers(1, 3)):
                frames = self._add_shape(frames)
        if rng.random() < 0.5:
            frames = frames.flip(3)
        if rng.random() < 0.3:
            frames = frames.flip(1)
        if rng.random() < 0.3:  # brightness and contrast
            frames = (
                (frames - 0.5) * rng.uniform(0.7, 1.2) + 0.5 + rng.uniform(-0.15, 0.15)
            ).clamp(0, 1)
        if rng.random() < 0.3:  # edits are often more saturated than footage
            grey = frames.mean(0, keepdim=True)
            frames = (grey + (frames - grey) * rng.uniform(0.6, 2.5)).clamp(0, 1)
        if rng.random() < 0.2:
            frames = frames[torch.from_numpy(rng.permutation(3))]
        return frames

    def _excerpt(self, T: int, H: int, W: int) -> Tensor:
        rng = self.rng
        clip = self.clips[rng.choice(len(self.clips), p=self.weights)]
        step = int(min(rng.choice([1, 1, 2, 3]), (len(clip) - 1) // (T - 1)))
        start = rng.integers(0, len(clip) - (T - 1) * step)
        top, left = (rng.integers(0, clip.shape[i] - n + 1) for i, n in ((1, H), (2, W)))
        part = clip[start : start + (T - 1) * step + 1 : step, top : top + H, left : left + W]
        return torch.from_numpy(np.array(part)).permute(3, 0, 1, 2).float() / 255

    def _pan(self, T: int, H: int, W: int) -> Tensor:
        """A camera path over a photo: shift, zoom and turn, linear in time, sometimes still."""
        rng = self.rng
        levels = self.photos[rng.integers(len(self.photos))]
        fitting = [
            level for level in levels if level.shape[2] > H * 1.1 and level.shape[3] > W * 1.1
        ]
        image = fitting[rng.integers(len(fitting))] if fitting else levels[0]
        h, w = image.shape[2:]
        time = torch.linspace(-0.5, 0.5, T)
        largest = min(1.5, h / H, w / W)
        speed = 0.0 if rng.random() < 0.15 else 1.0
        scale = rng.uniform(0.7, largest) * torch.exp(time * rng.normal(0, 0.15) * speed)
        turn = time * rng.normal(0, 0.15) * speed
        shift_x, shift_y = (time * T * rng.normal(0, 2.0) * speed for _ in range(2))  # pixels
        room_x, room_y = max(w - W * 1.1, 0) / 2, max(h - H * 1.1, 0) / 2
        x0, y0 = rng.uniform(-room_x, room_x), rng.uniform(-room_y, room_y)
        cos, sin = torch.cos(turn) * scale, torch.sin(turn) * scale
        theta = torch.stack(
            [
                torch.stack([cos * W / w, -sin * H / w, 2 * (x0 + shift_x) / w], 1),
                torch.stack([sin * W / h, cos * H / h, 2 * (y0 + shift_y) / h], 1),
            ],
            1,
        ).float()
        grid = F.affine_grid(theta, [T, 3, H, W], align_corners=False)
        crop = F.grid_sample(
            image.expand(T, -1, -1, -1), grid, padding_mode="reflection", align_corners=False
        )
        return crop.transpose(0, 1).clamp(0, 1)

    def _add_shape(self, frames: Tensor) -> Tensor:
        """Draw one flat, moving disc, box or triangle with an edge one pixel wide."""
        rng = self.rng
        _, T, H, W = frames.shape
        y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
        time = torch.linspace(-0.5, 0.5, T)[:, None, None]
        dx = x - rng.uniform(0, W) - time * T * rng.normal(0, 1.5)  # [T, H, W]
        dy = y - rng.uniform(0, H) - time * T * rng.normal(0, 1.5)
        turn = torch.tensor(rng.uniform(0, 6.3)) + time * rng.normal(0, 1.0)
        u = torch.cos(turn) * dx - torch.sin(turn) * dy
        v = torch.sin(turn) * dx + torch.cos(turn) * dy
        radius = rng.uniform(4, min(H, W) * 0.35)
        kind = rng.integers(3)
        if kind == 0:
            distance = torch.hypot(u, v) - radius
        elif kind == 1:
            distance = torch.maximum(u.abs() - radius, v.abs() - radius * rng.uniform(0.4, 1.0))
        else:
            distance = torch.maximum(u.abs() * 0.866 + v * 0.5, -v) - radius / 2
        cover = (0.5 - distance).clamp(0, 1)
        color = torch.from_numpy(rng.uniform(0, 1, 3)).float()
        if rng.random() < 0.5:  # the saturated colours that instructions name
            color = (color > 0.5).float() * 0.8 + 0.1
        return frames + (color[:, None, None, None] - frames) * cover
