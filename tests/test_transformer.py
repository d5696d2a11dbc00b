"""Blocks against torch's own attention, and the sizes of the paper."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.transformer import Block, CrossAttention, Encoder


def test_encoder_b_has_the_golden_parameter_count():
    with torch.device("meta"):
        encoder = Encoder(768, 12, 12, 3072)
    assert sum(p.numel() for p in encoder.parameters()) == 85_056_000


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_block_equals_multihead_attention(activation, layer_scale):
    torch.manual_seed(0)
    block = Block(24, 3, 48, activation=activation, layer_scale=layer_scale)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": block.attention.qkv.weight,
            "in_proj_bias": block.attention.qkv.bias,
            "out_proj.weight": block.attention.out.weight,
            "out_proj.bias": block.attention.out.bias,
        }
    )
    x = torch.randn(2, 7, 24)
    gain = 1 if layer_scale is None else layer_scale
    normed = block.norm1(x)
    y = x + gain * theirs(normed, normed, normed, need_weights=False)[0]
    hidden = block.mlp.up(block.norm2(y))
    active = {
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    }[activation](hidden)
    torch.testing.assert_close(block(x), y + gain * block.mlp.down(active), atol=1e-5, rtol=1e-5)


def test_cross_attention_takes_sources_of_another_width_in_any_order():
    torch.manual_seed(0)
    attention = CrossAttention(24, 18, 3)
    x, source = torch.randn(2, 5, 24), torch.randn(2, 9, 18)
    out = attention(x, source)
    assert out.shape == x.shape
    torch.testing.assert_close(attention(x, source.flip(1)), out)
