"""Make the patch codec: `liveedit train codec --data DIR --out DIR --minutes M`.

The encoder is a whitened principal-component basis of 4 x 8 x 8 pixel blocks, so latents have unit
variance, which is what diffusion's unit noise wants. It is fitted once and never trained: editors
can be trained on its latents at once. The decoder starts as its linear inverse and is trained on
latents with noise, like those an editor leaves.

Files in the output folder: `encoder.pt` (fitted if it is not there), `latest.pt` (averaged weights,
a plain state dict), `resume.pt` (everything), `log.jsonl`, and at the end `final.pt`,
`metrics.json`, `curve.png`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from liveedit.config import named_config
from liveedit.distill.codec_data import SIZES_PX, CropSampler
from liveedit.distill.sources import CLIPS, load_clip, names
from liveedit.errors import UsageError
from liveedit.models.patch_codec import FRAMES_PER_LATENT, PATCH_PX, PatchCodec

BATCH, FRAMES, CROP_PX = 2, 12, 96
FIT_CROPS = 400
FINAL_LR_FACTOR, WARMUP_STEPS = 0.02, 100
EMA_DECAY = 0.995
SAVE_EVERY_S, EVAL_EVERY_S = 60.0, 240.0
EVAL_NOISE = 0.1


@dataclass(frozen=True)
class Phase:
    """A stretch of the time budget, with a cosine of its own.

    Attributes:
        until: share of the budget at which it ends.
        latent_noise: largest deviation of the noise on latents.
        clean_share: share of crops without noise.
        squared: weight of the plain squared error beside the robust losses, which weigh `robust`.
    """

    until: float
    peak_lr: float
    latent_noise: float
    clean_share: float
    squared: float
    robust: float


# Robust losses first, which learn edges fastest; then what PSNR counts.
PHASES = (
    Phase(0.63, 1e-3, latent_noise=0.15, clean_share=0.3, squared=0.0, robust=1.0),
    Phase(1.0, 4e-4, latent_noise=0.12, clean_share=0.5, squared=20.0, robust=0.15),
)


def phase_at(progress: float) -> tuple[Phase, float]:
    """The phase at a share of the budget, and the share of that phase that is over."""
    start = 0.0
    for phase in PHASES[:-1]:
        if progress < phase.until:
            return phase, (progress - start) / (phase.until - start)
        start = phase.until
    return PHASES[-1], min((progress - start) / (PHASES[-1].until - start), 1.0)


@torch.no_grad()
def fit_encoder(model: PatchCodec, crops: Sequence[Tensor]) -> None:
    """Set the encoder to the leading components of crops [3, T, H, W], and `linear` to its inverse.

    Components are scaled to unit variance over the crops' blocks.
    """
    encoder, linear = model.encoder, model.linear
    assert encoder.bias is not None
    assert linear.bias is not None
    values = encoder.weight[0].numel()
    count, total, products = 0, torch.zeros(values).double(), torch.zeros(values, values).double()
    for crop in crops:
        blocks = crop.unfold(1, FRAMES_PER_LATENT, FRAMES_PER_LATENT)
        blocks = blocks.unfold(2, PATCH_PX, PATCH_PX).unfold(3, PATCH_PX, PATCH_PX)
        flat = blocks.permute(1, 2, 3, 0, 4, 5, 6).reshape(-1, values)  # rows are [C, 4, 8, 8]
        count += len(flat)
        total += flat.sum(0)
        products += (flat.T @ flat).double()
    mean = total / count
    variances, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    kept = encoder.out_channels
    std, basis = variances[-kept:].flip(0).clamp_min(1e-12).sqrt(), vectors[:, -kept:].flip(1)
    encoder.weight.copy_((basis / std).T.reshape(encoder.weight.shape))
    encoder.bias.copy_(-(mean @ basis) / std)
    linear.weight.copy_((basis * std)[:, :, None, None])
    linear.bias.copy_(mean)


@torch.no_grad()
def invert_encoder(model: PatchCodec) -> None:
    """Set `linear` to the least-norm inverse of an encoder that came without its own."""
    weight = model.encoder.weight.flatten(1).double()
    inverse = torch.linalg.pinv(weight)  # [768, 16]
    assert model.encoder.bias is not None
    assert model.linear.bias is not None
    model.linear.weight.copy_(inverse[:, :, None, None])
    model.linear.bias.copy_(-inverse @ model.encoder.bias.double())


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """A smooth L1 on pixels and on their horizontal, vertical and temporal differences."""

    def smooth(difference: Tensor) -> Tensor:
        return (difference.square() + 1e-3).sqrt().mean()

    error = output - target
    slopes = (smooth(error.diff(dim=4)) + smooth(error.diff(dim=3))) / 2
    return smooth(error) + 0.3 * slopes + 0.1 * smooth(error.diff(dim=2))


def learning_rate(step: int, progress: float) -> float:
    """Warm-up by steps, and a cosine over each phase."""
    phase, done = phase_at(progress)
    factor = FINAL_LR_FACTOR + (1 - FINAL_LR_FACTOR) * (1 + math.cos(math.pi * done)) / 2
    return phase.peak_lr * factor * min(1.0, (step + 1) / WARMUP_STEPS)


def save(data: Any, path: Path) -> None:
    """Write then rename, so that a reader or an interruption never sees half a file."""
    partial = path.with_name(path.name + ".part")
    torch.save(data, partial)
    partial.replace(path)


def plain_state(model: PatchCodec) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def new_model(sampler: CropSampler, out_dir: Path) -> PatchCodec:
    """The linear codec, from the folder's `encoder.pt`, which is fitted first if it is not there.

    Raises:
        UsageError: `encoder.pt` holds something else.
    """
    config = named_config("tiny")[0].patch
    assert config is not None
    model = PatchCodec(config)
    path = out_dir / "encoder.pt"
    if path.exists():
        keys = model.load_state_dict(torch.load(path, weights_only=True), strict=False)
        if keys.unexpected_keys or any(k.startswith("encoder.") for k in keys.missing_keys):
            raise UsageError(f"{path} is not an encoder of this codec; remove it to fit a new one")
        if "linear.weight" in keys.missing_keys:
            invert_encoder(model)
    else:
        fit_encoder(model, [sampler.crop(FRAMES, CROP_PX, CROP_PX) for _ in range(FIT_CROPS)])
        state = plain_state(model)
        save({k: v for k, v in state.items() if k.startswith(("encoder.", "linear."))}, path)
    model.encoder.requires_grad_(False)
    return model


def train(cache_dir: Path, out_dir: Path, minutes: float, seed: int = 0) -> PatchCodec:
    """Train the decoder until `minutes` are spent, over all resumed runs; the averaged model."""
    torch.manual_seed(seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    sampler = CropSampler(cache_dir, seed)
    model = new_model(sampler, out_dir)
    average = copy.deepcopy(model)
    weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    averages: list[Tensor] = [p for p in average.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=PHASES[0].peak_lr, betas=(0.9, 0.98), weight_decay=0.0
    )
    step, spent_s = 0, 0.0
    resume = out_dir / "resume.pt"
    if resume.exists():
        held = torch.load(resume, weights_only=True)
        model.load_state_dict(held["model"])
        average.load_state_dict(held["average"])
        optimizer.load_state_dict(held["optimizer"])
        step, spent_s = held["step"], held["spent_s"]
        sampler.rng = np.random.default_rng((seed, step))
    budget_s = minutes * 60
    began = time.monotonic() - spent_s
    saved = evaluated = spent_s
    losses: list[float] = []
    while (spent_s := time.monotonic() - began) < budget_s:
        frames = sampler.batch(BATCH, FRAMES, CROP_PX, CROP_PX)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, spent_s / budget_s)
        latent = model.encode(frames)
        phase, _ = phase_at(spent_s / budget_s)
        loudness = torch.rand(BATCH, 1, 1, 1, 1) * phase.latent_noise
        loudness *= torch.rand(BATCH, 1, 1, 1, 1) >= phase.clean_share
        output = model.decode_raw(latent + torch.randn_like(latent) * loudness)
        loss = phase.robust * reconstruction_loss(output, frames)
        if phase.squared:
            loss = loss + phase.squared * F.mse_loss(output, frames)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        losses.append(loss.item())
        step += 1
        line: dict[str, Any] = {}
        if spent_s - evaluated > EVAL_EVERY_S or step == 1:
            evaluated = spent_s
            line["psnr_db"] = quick_psnr(average, cache_dir)
        if step % 100 == 0 or line:
            loss_mean = float(np.mean(losses[-100:]))
            line |= {"step": step, "spent_s": round(spent_s, 1), "loss": round(loss_mean, 5)}
            with (out_dir / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
        if spent_s - saved > SAVE_EVERY_S:
            saved = spent_s
            save(plain_state(average), out_dir / "latest.pt")
            held = {"model": model.state_dict(), "average": average.state_dict(), "step": step}
            save(held | {"optimizer": optimizer.state_dict(), "spent_s": spent_s}, resume)
    save(plain_state(average), out_dir / "latest.pt")
    return average


def psnr(output: Tensor, target: Tensor) -> float:
    """Decibels over all frames and channels; both in [0, 1]."""
    return -10 * math.log10(max(F.mse_loss(output, target).item(), 1e-12))


def clip_tensor(name: str, cache_dir: Path, max_frames: int) -> Tensor:
    """[1, 3, T, 128, 224] in [0, 1], T a multiple of 4."""
    frames = load_clip(name, cache_dir, *SIZES_PX[0], 1000)[:max_frames]
    frames = frames[: len(frames) // FRAMES_PER_LATENT * FRAMES_PER_LATENT]
    return torch.from_numpy(np.array(frames)).permute(3, 0, 1, 2)[None].float() / 255


@torch.no_grad()
def quick_psnr(model: PatchCodec, cache_dir: Path) -> dict[str, float]:
    """Held-out clips, 24 frames."""
    result = {}
    for name in names(CLIPS.values(), "test"):
        frames = clip_tensor(name, cache_dir, 64)[:, :, -24:]
        result[name] = round(psnr(model.decode(model.encode(frames)), frames), 3)
    return result


@torch.no_grad()
def stream(model: PatchCodec, frames: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Code a clip [1, 3, 4n, H, W] 4 frames at a time: the frames and the clean latents."""
    H, W = frames.shape[3:]
    encode_caches = [torch.zeros(shape) for shape in model.encode_cache_shapes(H, W)]
    decode_caches = [torch.zeros(shape) for shape in model.decode_cache_shapes(H, W)]
    generator = torch.Generator().manual_seed(0)
    outputs, latents = [], []
    for group in torch.split(frames, FRAMES_PER_LATENT, dim=2):
        latent, encode_caches = model.encode_step(group, encode_caches)
        error = noise * torch.randn(latent.shape, generator=generator)
        output, decode_caches = model.decode_step(latent + error, decode_caches)
        latents.append(latent)
        outputs.append(output)
    return torch.cat(outputs, 2), torch.cat(latents, 2)


def evaluate(
    model: PatchCodec, linear: PatchCodec, cache_dir: Path, max_frames: int = 1000
) -> dict[str, Any]:
    """Streamed PSNR of every clip, with clean and with noisy latents, beside the linear codec's."""
    clips: dict[str, Any] = {}
    train_latents = []
    for clip in CLIPS.values():
        frames = clip_tensor(clip.name, cache_dir, max_frames)
        output, latent = stream(model, frames, 0.0)
        clips[clip.name] = {
            "split": clip.split,
            "video_frames": frames.shape[2],
            "psnr_db": round(psnr(output, frames), 3),
            "psnr_db_noise": round(psnr(stream(model, frames, EVAL_NOISE)[0], frames), 3),
            "psnr_db_linear": round(psnr(stream(linear, frames, 0.0)[0], frames), 3),
            "latent_abs_max": round(latent.abs().max().item(), 3),
        }
        if clip.split == "train":
            train_latents.append(latent)
    latents = torch.cat(train_latents, 2)
    return {
        "height_px": SIZES_PX[0][0],
        "width_px": SIZES_PX[0][1],
        "latent_noise": EVAL_NOISE,
        "clips": clips,
        "train_latent_mean": [round(m, 4) for m in latents.mean((0, 2, 3, 4)).tolist()],
        "train_latent_std": [round(s, 4) for s in latents.std((0, 2, 3, 4)).tolist()],
    }


def plot_curve(out_dir: Path) -> None:
    """Loss and held-out PSNR of `log.jsonl` over minutes, as `curve.png`."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot([e["spent_s"] / 60 for e in lines], [e["loss"] for e in lines], color="0.6")
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("loss, 100 steps")
    right = axes.twinx()
    tested = [e for e in lines if "psnr_db" in e]
    for name in names(CLIPS.values(), "test"):
        curve = [e["psnr_db"][name] for e in tested]
        right.plot([e["spent_s"] / 60 for e in tested], curve, marker="o", label=name)
    right.set_ylabel("held-out PSNR (dB), 24 frames")
    right.legend(loc="center right")
    figure.tight_layout()
    figure.savefig(out_dir / "curve.png", dpi=120)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="cache of clips and photos")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, log and metrics")
    parser.add_argument("--minutes", type=float, default=38.0, help="training time, in total")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    if args.minutes < 0:
        raise UsageError(f"--minutes must not be negative, got {args.minutes}")
    model = train(args.data, args.out, args.minutes, args.seed)
    save(plain_state(model), args.out / "final.pt")
    linear = new_model(CropSampler(args.data, args.seed), args.out)
    metrics = evaluate(model, linear, args.data)
    partial = args.out / "metrics.json.part"
    partial.write_text(json.dumps(metrics, indent=1) + "\n")
    partial.replace(args.out / "metrics.json")
    plot_curve(args.out)
    print(json.dumps(metrics))
    return 0
