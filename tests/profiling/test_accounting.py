"""The accounting against the published tables: numbers that were computed independently."""

import pytest

from liveedit.config import LIVEEDIT_1_3B, StreamConfig, TAEHVConfig, WanVAEConfig
from liveedit.profiling import accounting as acc
from liveedit.profiling import codec_accounting as codec

DIT = LIVEEDIT_1_3B.dit


@pytest.mark.parametrize(
    ("window", "attention", "one_pass", "chunk", "frame", "cache_gb"),
    [
        (3, 4.04, 16.2, 81, 6.7, 0.86),
        (6, 8.07, 20.2, 101, 8.4, 1.73),
        (12, 16.15, 28.3, 141, 11.8, 3.45),
        (21, 28.26, 40.4, 202, 16.8, 6.04),
    ],
)
def test_dit_table(
    window: int, attention: float, one_pass: float, chunk: float, frame: float, cache_gb: float
) -> None:
    stream = StreamConfig(local_attn_size=window)
    work = acc.dit_pass(DIT, tokens=stream.block_seq_length, keys=stream.kv_cache_length)
    tflops = {w.name: w.flops / 1e12 for w in work}
    assert tflops["qkvo"] == pytest.approx(2.65, abs=0.005)
    assert tflops["cross_projection"] + tflops["cross_attention"] == pytest.approx(1.77, abs=0.005)
    assert tflops["ffn"] == pytest.approx(7.73, abs=0.005)
    assert tflops["self_attention"] == pytest.approx(attention, abs=0.005)
    assert sum(tflops.values()) == pytest.approx(one_pass, abs=0.05)
    total = acc.total_flops(acc.chunk_work(DIT, stream)) / 1e12
    assert total == pytest.approx(chunk, abs=0.6)
    assert total / acc.video_frames_per_chunk(stream) == pytest.approx(frame, abs=0.06)
    assert acc.kv_cache_bytes(DIT, stream) / 1e9 == pytest.approx(cache_gb, abs=0.005)


@pytest.mark.parametrize(
    ("window", "pruning", "passes", "shares"),
    [
        (12, "self_attention", 2, (0.87, 0.81, 0.76)),
        (21, "self_attention", 2, (0.85, 0.79, 0.73)),
        (12, "self_attention", 4, (0.73, 0.63, 0.52)),
        (12, "block", 4, (0.60, 0.44, 0.28)),
    ],
)
def test_mask_cache_shares(
    window: int, pruning: acc.Pruning, passes: int, shares: tuple[float, ...]
) -> None:
    stream = StreamConfig(local_attn_size=window)
    full = acc.total_flops(acc.chunk_work(DIT, stream))
    for keep, share in zip((0.5, 0.3, 0.1), shares, strict=True):
        mask = acc.MaskCache(keep=keep, pruning=pruning)
        work = acc.chunk_work(DIT, stream, mask=mask, pruned_passes=passes, shortened_keys=False)
        assert acc.total_flops(work) / full == pytest.approx(share, abs=0.0055)


def test_pruned_pass_counts_only_kept_queries_and_visible_keys() -> None:
    full = {w.name: w for w in acc.dit_pass(DIT, tokens=100, keys=400)}
    half = {w.name: w for w in acc.dit_pass(DIT, tokens=100, keys=400, kept=50)}
    assert half["qkvo"].flops == full["qkvo"].flops / 2
    assert half["self_attention"].flops == full["self_attention"].flops / 2 * 350 / 400
    assert half["ffn"] == full["ffn"]
    assert half["gather_scatter"].bytes == 2 * 1536 * (4 * 50 + 2 * 50) * 30
    assert "gather_scatter" not in full


def test_parameters_and_text_encoder() -> None:
    assert acc.dit_parameters(DIT) == 1_419_095_104
    text = LIVEEDIT_1_3B.text
    assert acc.text_encoder(text, 512).flops / 1e12 == pytest.approx(4.8, abs=0.05)
    assert acc.text_encoder_bytes(text) / 1e9 == pytest.approx(11.4, abs=0.05)


@pytest.mark.parametrize(
    ("config", "encode", "decode"),
    [
        (WanVAEConfig(), 2.01, 3.39),
        (WanVAEConfig(base_dim=24), 0.13, 0.22),
        (TAEHVConfig(), 0.06, 0.14),
    ],
)
def test_codec_per_frame(config: WanVAEConfig | TAEHVConfig, encode: float, decode: float) -> None:
    if isinstance(config, WanVAEConfig):
        layers = codec.wan_encode(config, 480, 832), codec.wan_decode(config, 480, 832)
    else:
        layers = codec.taehv_encode(config, 480, 832), codec.taehv_decode(config, 480, 832)
    per_frame = [acc.total_flops(codec.codec_work(part)) / 4e12 for part in layers]
    assert per_frame == pytest.approx([encode, decode], abs=0.0055)


def test_wan_caches_and_levels() -> None:
    encode = codec.wan_encode(WanVAEConfig(), 480, 832)
    decode = codec.wan_decode(WanVAEConfig(), 480, 832)
    assert codec.cache_bytes(encode) / 1e9 == pytest.approx(1.1, abs=0.05)
    assert codec.cache_bytes(decode) / 1e9 == pytest.approx(1.9, abs=0.05)
    total = acc.total_flops(codec.codec_work(decode))
    # Stages by name: an upsample belongs to the level below it.
    stages = {"1": 0.21, "2": 0.39, "3": 0.35}
    for level, share in stages.items():
        names = (f"decoder/level{level}", f"decoder/up{level}")
        flops = sum(x.work().flops for x in decode if x.name.startswith(names))
        assert flops / total == pytest.approx(share, abs=0.01)
    assert sum(codec.flops_by_level(decode).values()) == pytest.approx(total)
