"""The UMT5 encoder that turns prompt tokens into text embeddings.

Parameter names are those of the official Wan 2.1 file ``models_t5_umt5-xxl-enc-bf16.pth``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liveedit.config import TextEncoderConfig


class UMT5Encoder(nn.Module):
    """Bidirectional T5 encoder with its own relative-position table in every layer."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = _RMSNorm(config.dim, config.eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode a padded batch of prompts.

        Args:
            input_ids: [B, T] int64 in [0, vocab_size).
            attention_mask: [B, T] int64 or bool, 1 for a real token, 0 for padding.

        Returns:
            [B, T, dim] in the dtype of the weights; rows of padding are zero, as the DiT expects.
        """
        mask = attention_mask.bool()
        offsets = self._offsets(input_ids)
        # Float32 between the layers whatever the weights are: sums outgrow float16.
        x = self.token_embedding(input_ids).float()  # [B, T, dim]
        for block in self.blocks:
            x = block(x, mask, offsets)
        return torch.where(mask.unsqueeze(-1), self.norm(x), 0.0)

    @torch.no_grad()
    def look_at_neighbours(self) -> None:
        """Let two heads of the first layer begin with the word before, and the word after.

        To be called before training from nothing. Relative biases begin near zero, and in a small
        encoder contents decide every attention before they have grown: it stays a bag of words, to
        which "the red ring white" and "the white ring red" are the same, whatever the loss asks.
        """
        config, first = self.config, self.blocks[0]
        assert isinstance(first, _Block)
        buckets = relative_buckets(config.num_buckets, config.max_distance)
        bias, rows = first.pos_embedding.embedding.weight, first.attn.head_dim
        for head, distance in enumerate((-1, 1)[: config.num_heads]):
            first.attn.q.weight[head * rows : (head + 1) * rows] *= 0.1
            bias[:, head] = 0.0
            bias[buckets[config.max_distance + distance], head] = 5.0

    def _offsets(self, input_ids: Tensor) -> Tensor:
        """[T, T] int64: row of the layer's bias table for each (query, key) pair.

        Distances past max_distance share the last bucket, so clamping them loses nothing.
        Integers only: a logarithm in the graph could round to another bucket on another backend.
        """
        reach = self.config.max_distance
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        distance = (position.unsqueeze(0) - position.unsqueeze(1)).clamp(-reach, reach)
        # Not a buffer: a module built on the meta device would be left without its values.
        buckets = relative_buckets(self.config.num_buckets, reach)
        return torch.tensor(buckets, device=input_ids.device)[distance + reach]


def relative_buckets(num_buckets: int, max_distance: int) -> list[int]:
    """Bucket of every distance (key - query) in [-max_distance, max_distance].

    Keys after the query use the upper half. Half of each side is one bucket per distance, the
    rest grows logarithmically up to ``max_distance``. The comparison is of exact integers:
    b is the largest step with (d / exact) ** steps >= (max_distance / exact) ** b.
    """
    side = num_buckets // 2
    exact = side // 2
    steps = side - exact

    def bucket(distance: int) -> int:
        if distance < exact:
            return distance
        step = 0
        while (
            step < steps - 1
            and distance**steps * exact ** (step + 1) >= max_distance ** (step + 1) * exact**steps
        ):
            step += 1
        return exact + step

    return [
        bucket(-d) if d <= 0 else side + bucket(d) for d in range(-max_distance, max_distance + 1)
    ]


class _Block(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.norm1 = _RMSNorm(config.dim, config.eps)
        self.attn = _Attention(config)
        self.norm2 = _RMSNorm(config.dim, config.eps)
        self.ffn = _GatedFFN(config)
        self.pos_embedding = _RelativeBias(config)

    def forward(self, x: Tensor, mask: Tensor, buckets: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), self.pos_embedding(buckets), mask)
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class _RelativeBias(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_buckets, config.num_heads)
        nn.init.normal_(
            self.embedding.weight, std=(2 * config.num_buckets * config.num_heads) ** -0.5
        )

    def forward(self, buckets: Tensor) -> Tensor:
        bias: Tensor = self.embedding(buckets)  # [T, T, heads]
        return bias.permute(2, 0, 1)


class _Attention(nn.Module):
    """No 1 / sqrt(head_dim): T5 keeps that factor in the query weights."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.dim_attn // config.num_heads
        self.q = _linear(config.dim, config.dim_attn, std=(config.dim * self.head_dim) ** -0.5)
        self.k = _linear(config.dim, config.dim_attn)
        self.v = _linear(config.dim, config.dim_attn)
        self.o = _linear(config.dim_attn, config.dim)

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (
            project(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )  # [B, heads, T, head_dim]
        scores = q @ k.transpose(-1, -2) + bias  # [B, heads, T, T]
        lowest = torch.finfo(torch.float32).min
        scores = scores.float().masked_fill(~mask[:, None, None, :], lowest)
        out = scores.softmax(dim=-1).to(v.dtype) @ v
        projected: Tensor = self.o(out.transpose(1, 2).reshape(B, T, -1))
        return projected


class _GatedFFN(nn.Module):
    """Float32 out. In float16 it computes a 64th, exactly: its sums may pass 65504."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate = nn.Sequential(_linear(config.dim, config.ffn_dim), nn.GELU("tanh"))
        self.fc1 = _linear(config.dim, config.ffn_dim)
        self.fc2 = _linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            small: Tensor = self.fc2(self.fc1(x) / 64 * self.gate(x))
            return small.float() * 64
        out: Tensor = self.fc2(self.fc1(x) * self.gate(x))
        return out.float()


class _RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.to(self.weight.dtype)


def _linear(in_features: int, out_features: int, std: float | None = None) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=False)
    nn.init.normal_(layer.weight, std=std or in_features**-0.5)
    return layer
