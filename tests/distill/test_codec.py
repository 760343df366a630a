"""The patch codec's fit and training: principal components, inverse, resuming, crops."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from liveedit.config import TINY, TINY_STREAM, PatchCodecConfig
from liveedit.distill import codec, codec_data
from liveedit.distill.codec_data import CropSampler
from liveedit.errors import UsageError
from liveedit.models.patch_codec import PatchCodec


def fake_clip(
    name: str, cache_dir: Path, height_px: int, width_px: int, max_frames: int
) -> np.ndarray:
    """A soft pattern that moves to the right, its speed and colour depending on the name."""
    t, y, x = np.meshgrid(np.arange(40), np.arange(height_px), np.arange(width_px), indexing="ij")
    seed = len(name)
    waves = [np.sin((x + t * seed) / (5 + c)) * np.cos(y / (7 + seed)) for c in range(3)]
    return (np.stack(waves, -1) * 100 + 128).astype(np.uint8)[:max_frames]


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for module in (codec, codec_data):
        monkeypatch.setattr(module, "load_clip", fake_clip)
        monkeypatch.setattr(module, "SIZES_PX", ((32, 48), (64, 96)))
    monkeypatch.setattr(codec_data, "load_photos", lambda cache, split: [("noise", photo)])
    small = dataclasses.replace(TINY, patch=PatchCodecConfig(width=8, num_blocks=1))
    monkeypatch.setattr(codec, "named_config", lambda name: (small, TINY_STREAM))
    monkeypatch.setattr(codec, "CROP_PX", 24)
    monkeypatch.setattr(codec, "FRAMES", 8)
    monkeypatch.setattr(codec, "FIT_CROPS", 60)


def blocks(count: int) -> list[Tensor]:
    sampler = CropSampler(Path(), 1)
    return [sampler.crop(8, 16, 16) for _ in range(count)]


def test_fitted_latents_are_white_and_the_inverse_is_the_best_linear_one() -> None:
    model, crops = PatchCodec(PatchCodecConfig(width=8, num_blocks=1)), blocks(80)
    codec.fit_encoder(model, crops)
    frames = torch.stack(crops)
    with torch.no_grad():
        latent = model.encode(frames).permute(1, 0, 2, 3, 4).flatten(1)
        error = (model.decode_raw(model.encode(frames)) - frames).square().mean().item()
    torch.testing.assert_close(latent.mean(1), torch.zeros(16), atol=1e-2, rtol=0)
    torch.testing.assert_close(torch.cov(latent), torch.eye(16), atol=2e-2, rtol=0)
    # What 16 components leave of the variance, from the singular values of the same blocks.
    patches = frames.reshape(80, 3, 2, 4, 2, 8, 2, 8).permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
    patches = patches.flatten(0, 3)
    left = torch.linalg.svdvals(patches - patches.mean(0))[16:].square().sum() / patches.numel()
    assert error == pytest.approx(left.item(), rel=1e-2)


@torch.no_grad()
def test_an_encoder_without_its_inverse_gets_one(tmp_path: Path) -> None:
    sampler = CropSampler(tmp_path, 0)
    fitted = codec.new_model(sampler, tmp_path)
    state = torch.load(tmp_path / "encoder.pt", weights_only=True)
    loaded = codec.new_model(sampler, tmp_path)
    assert torch.equal(loaded.linear.bias, fitted.linear.bias)
    torch.save({k: v for k, v in state.items() if "encoder" in k}, tmp_path / "encoder.pt")
    model = codec.new_model(sampler, tmp_path)
    torch.testing.assert_close(model.linear.weight, fitted.linear.weight, atol=1e-4, rtol=1e-3)
    latent = model.encode(torch.stack(blocks(4)))
    torch.testing.assert_close(model.encode(model.decode_raw(latent)), latent, atol=1e-3, rtol=1e-3)


def test_crops_are_pixels_and_repeat_with_their_seed() -> None:
    first, second = (CropSampler(Path(), 3).batch(12, 8, 24, 32) for _ in range(2))
    assert first.shape == (12, 3, 8, 24, 32)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, second)
    assert not torch.equal(first, CropSampler(Path(), 4).batch(12, 8, 24, 32))
    assert (first.diff(dim=2).abs().amax((1, 2, 3, 4)) > 0).sum() >= 8  # most crops move


def test_training_lowers_the_loss_resumes_and_leaves_the_encoder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0.0, 1e6))
    monkeypatch.setattr(codec.time, "monotonic", lambda: float(next(clock)))  # one second a step
    monkeypatch.setattr(codec, "SAVE_EVERY_S", 5.0)
    first = codec.train(tmp_path, tmp_path, minutes=0.5)
    held = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert 20 < held["step"] < 31
    encoder = torch.load(tmp_path / "encoder.pt", weights_only=True)
    again = codec.train(tmp_path, tmp_path, minutes=1.0)
    after = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert held["step"] < after["step"] < 61
    assert torch.equal(again.encoder.weight, encoder["encoder.weight"])
    assert not torch.equal(again.output.weight, first.output.weight)
    frames = torch.stack(blocks(6))
    linear = codec.new_model(CropSampler(tmp_path, 0), tmp_path)
    with torch.no_grad():
        before, trained = (
            codec.reconstruction_loss(m.decode_raw(m.encode(frames)), frames).item()
            for m in (linear, again)
        )
    assert trained < before
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert set(log[0]["psnr_db"]) == {"box", "vtest", "carphone"}
    codec.plot_curve(tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_metrics_compare_with_the_linear_codec(tmp_path: Path) -> None:
    model = codec.new_model(CropSampler(tmp_path, 0), tmp_path)
    metrics = codec.evaluate(model, model, tmp_path, max_frames=16)
    box = metrics["clips"]["box"]
    assert box["split"] == "test"
    assert box["video_frames"] == 16
    assert box["psnr_db"] == box["psnr_db_linear"]  # a new model is the linear codec
    assert box["psnr_db_noise"] < box["psnr_db"]
    assert len(metrics["train_latent_std"]) == 16


def test_a_foreign_encoder_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "encoder.pt")
    with pytest.raises(UsageError, match="is not an encoder of this codec"):
        codec.new_model(CropSampler(tmp_path, 0), tmp_path)


def test_negative_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--minutes must not be negative"):
        codec.main(argparse.Namespace(data=tmp_path, out=tmp_path, minutes=-1.0, seed=0))


def test_phases_follow_one_another_each_down_its_own_cosine() -> None:
    first, last = codec.PHASES
    assert [codec.phase_at(p)[0] for p in (0.0, 0.62, 0.64, 1.0, 1.2)] == [first] * 2 + [last] * 3
    assert codec.phase_at(first.until) == (last, 0.0)
    assert codec.phase_at(1.5)[1] == 1.0
    late = 10 * codec.WARMUP_STEPS
    for start, phase in ((0.0, first), (first.until, last)):
        rates = [
            codec.learning_rate(late, start + share * (phase.until - start))
            for share in (0.0, 0.5, 0.9999)
        ]
        assert rates[0] == pytest.approx(phase.peak_lr)
        assert rates[0] > rates[1] > rates[2]
        assert rates[2] == pytest.approx(phase.peak_lr * codec.FINAL_LR_FACTOR, rel=0.01)
