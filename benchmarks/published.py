"""The published procedure's text tower, for the benchmarks that measure against it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.clip import CLIP
from model.prompts import joint_prompts
from model.tokenizer import tokenize


class MaskedAttention(nn.MultiheadAttention):
    """Self-attention as CLIP calls it: positions first, and a mask of -inf where ours says `is_causal`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(L, N, width) -> (L, N, width)."""
        mask = torch.full((len(x), len(x)), -math.inf, device=x.device).triu_(1)
        return super().forward(x, x, x, need_weights=False, attn_mask=mask)[0]


def use_published_attention(clip: CLIP) -> None:
    """Exchange the attention of the text tower's blocks; the weights stay, and stay frozen where they are."""
    for block in clip.transformer.resblocks:
        ours = block.attn
        block.attn = MaskedAttention(ours.out_proj.in_features, ours.heads).to(ours.in_proj_weight.device)
        block.attn.train(ours.training)
        block.attn.load_state_dict(ours.state_dict())
        for weight, origin in zip(block.attn.parameters(), ours.parameters(), strict=True):
            weight.requires_grad_(origin.requires_grad)


def encode_prompts(clip: CLIP) -> Tensor:
    """The features (360, D), of unit length, of all sentences at 77 tokens, from tokenizing on."""
    tokens = tokenize(joint_prompts()).to(clip.text_projection.device)
    x = (clip.token_embedding(tokens) + clip.positional_embedding).transpose(0, 1)
    x = clip.ln_final(clip.transformer(x).transpose(0, 1))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ clip.text_projection, dim=1)
