"""Attention whose projections are layers: what `nn.MultiheadAttention` computes, open to be factored.

    y = out_proj( softmax( q k^T / sqrt(d) + mask ) v ),  q = q_proj(query), k = k_proj(key), v = v_proj(value)

by heads of d channels. `nn.MultiheadAttention` holds the same weights, q's, k's and v's in one tensor where the three
have equal inputs, and reads them without calling a layer. Where query, key and value are one tensor, one layer gives
all three: its first factor is shared then, which at equal cost moves the answers less (docs/RESULTS.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OpenAttention(nn.Module):
    """Multi-head attention with q_proj, k_proj, v_proj and out_proj as dense layers; else as `nn.MultiheadAttention`.

    Args:
        attention: whose function it computes.
        own: with weights of its own; False shares their memory.
    """

    # What torch's encoder layers ask before they call one fused operation: this module is not made for it.
    _qkv_same_embed_dim = False
    in_proj_weight = None
    in_proj_bias = None

    def __init__(self, attention: nn.MultiheadAttention, *, own: bool = True) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = attention.embed_dim, attention.kdim, attention.vdim
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.add_zero_attn = attention.add_zero_attn
        self._open(attention, own=own)
        self.out_proj = _dense(attention.out_proj.weight, attention.out_proj.bias, own=own)
        self.bias_k, self.bias_v = (
            None if value is None else _parameter(value, own=own) for value in (attention.bias_k, attention.bias_v)
        )
        self.train(attention.training)

    def _open(self, attention: nn.MultiheadAttention, *, own: bool) -> None:
        weights: tuple[Tensor, ...]
        if attention.in_proj_weight is None:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        else:
            weights = attention.in_proj_weight.chunk(3)
        bias = attention.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            _dense(weight, bias, own=own) for weight, bias in zip(weights, biases, strict=True)
        )

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`: (N, L, E) or (L, N, E), or one sample's (L, E) -> the same, and weights."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        one = query.dim() == 2
        batch = 0 if one or self.batch_first else 1

        def by_heads(made: Tensor, extra: Tensor | None, *, padded: bool = True) -> Tensor:
            made = made.unsqueeze(0) if one else made.transpose(0, batch)
            if extra is not None:
                made = torch.cat([made, extra.expand(len(made), 1, -1)], 1)
            heads = made.reshape(*made.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            if self.add_zero_attn and padded:
                heads = F.pad(heads, (0, 0, 0, 1))
            return heads

        made = self._projected(query, key, value)
        q = by_heads(made[0], None, padded=False)
        k, v = by_heads(made[1], self.bias_k), by_heads(made[2], self.bias_v)
        added = k.shape[-2] - key.shape[0 if one else 1 - batch]
        mask = _mask(attn_mask, key_padding_mask, q, added)
        answer, weights = _attended(q, k, v, mask, self.dropout if self.training else 0.0, weighed=need_weights)
        joined = answer.transpose(1, 2).flatten(2)
        joined = self.out_proj(joined.squeeze(0) if one else joined.transpose(0, batch))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights.squeeze(0) if one else weights
        return joined, weights


class PackedAttention(OpenAttention):
    """Self-attention with in_proj as one dense layer for q, k and v: query, key and value are one tensor."""

    def _open(self, attention: nn.MultiheadAttention, *, own: bool) -> None:
        assert attention.in_proj_weight is not None
        self.in_proj = _dense(attention.in_proj_weight, attention.in_proj_bias, own=own)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if query is key and key is value:
            return self.in_proj(query).chunk(3, -1)  # type: ignore[no-any-return]
        # Right, though wasteful: the survey opens attention so only where it was called on one tensor.
        return tuple(self.in_proj(given).chunk(3, -1)[place] for place, given in enumerate((query, key, value)))


def _attended(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, *, weighed: bool
) -> tuple[Tensor, Tensor | None]:
    """(N, heads, L, d), (N, heads, S, d), (N, heads, S, d) -> (N, heads, L, d), and the weights if asked for."""
    if not weighed:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return F.dropout(weights, dropout) @ v, weights


def _mask(attention: Tensor | None, padding: Tensor | None, q: Tensor, added: int) -> Tensor | None:
    """What is added to the scores, (N or 1, heads or 1, L or 1, S); None for nothing."""
    parts = []
    if attention is not None:
        whole = _additive(attention, q)
        parts.append(whole.reshape(len(q), -1, *whole.shape[1:]) if whole.dim() == 3 else whole[None, None])
    if padding is not None:
        parts.append(_additive(padding, q).reshape(-1, 1, 1, padding.shape[-1]))
    return F.pad(sum(parts[1:], parts[0]), (0, added)) if parts else None


def _additive(mask: Tensor, q: Tensor) -> Tensor:
    """Of a mask of booleans, true for what may not be looked at."""
    if mask.dtype != torch.bool:
        return mask.to(q.dtype)
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -math.inf)


def _dense(weight: Tensor, bias: Tensor | None, *, own: bool) -> nn.Linear:
    outputs, inputs = weight.shape
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs, bias is not None)
    layer.weight = _parameter(weight, own=own)
    layer.bias = None if bias is None else _parameter(bias, own=own)  # type: ignore[assignment]
    return layer


def _parameter(value: Tensor, *, own: bool) -> nn.Parameter:
    # A part of a larger parameter is no leaf, and wants a gradient where that does.
    return nn.Parameter(value.detach().clone() if own else value.detach(), value.requires_grad)
