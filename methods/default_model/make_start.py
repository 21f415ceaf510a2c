"""The start of the default model: a small CLIP whose image tower already knows faces.

The image tower is a face recognition network (Apache-2.0, github foamliu/MobileFaceNet), whose 128-d embedding becomes
the shared space; the text tower is a small CLIP transformer with random weights, trained along by `train.py
--freeze none`. OpenAI's RN50 takes the place of this file wherever it can be had.

    python -m methods.default_model.make_start --trunk ../shared/data/fr/mobilefacenet_foamliu.safetensors \\
        --output runs/default/start.safetensors
"""

from __future__ import annotations

import argparse
import json
import math

import torch
from torch import Tensor

from model.checkpoint import read_checkpoint, save_checkpoint

VOCABULARY, CONTEXT = 49408, 77
IMAGENET = {"size": 112, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trunk", default="../shared/data/fr/mobilefacenet_foamliu.safetensors")
    parser.add_argument("--output", default="runs/default/start.safetensors")
    parser.add_argument("--width", type=int, default=128, help="width of the text transformer (128)")
    parser.add_argument("--layers", type=int, default=2, help="its depth (2)")
    parser.add_argument("--seed", type=int, default=323)
    options = parser.parse_args()
    trunk, _ = read_checkpoint(options.trunk)
    tensors = {f"visual.{key}": value for key, value in trunk.items()}
    embedding = len(trunk["bn.weight"])
    tensors |= text_tower(options.width, options.layers, embedding, torch.Generator().manual_seed(options.seed))
    save_checkpoint(options.output, tensors, {"preprocessing": json.dumps(IMAGENET)})
    print(f"{options.output}: image tower {sum(t.numel() for t in trunk.values()):,} numbers, shared space {embedding}")


def text_tower(width: int, layers: int, embedding: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A CLIP text tower with the initial spreads of the CLIP paper (Radford et al. 2021)."""

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    attention, residual = width**-0.5, width**-0.5 * (2 * layers) ** -0.5
    tensors = {
        "token_embedding.weight": normal(VOCABULARY, width, std=0.02),
        "positional_embedding": normal(CONTEXT, width, std=0.01),
        "text_projection": normal(width, embedding, std=attention),
        "logit_scale": torch.tensor(math.log(1 / 0.07)),
        "ln_final.weight": torch.ones(width),
        "ln_final.bias": torch.zeros(width),
    }
    for layer in range(layers):
        tensors |= {
            f"transformer.resblocks.{layer}.{key}": value
            for key, value in {
                "attn.in_proj_weight": normal(3 * width, width, std=attention),
                "attn.in_proj_bias": torch.zeros(3 * width),
                "attn.out_proj.weight": normal(width, width, std=residual),
                "attn.out_proj.bias": torch.zeros(width),
                "ln_1.weight": torch.ones(width),
                "ln_1.bias": torch.zeros(width),
                "mlp.c_fc.weight": normal(4 * width, width, std=(2 * width) ** -0.5),
                "mlp.c_fc.bias": torch.zeros(4 * width),
                "mlp.c_proj.weight": normal(width, 4 * width, std=residual),
                "mlp.c_proj.bias": torch.zeros(width),
                "ln_2.weight": torch.ones(width),
                "ln_2.bias": torch.zeros(width),
            }.items()
        }
    return tensors


if __name__ == "__main__":
    main()
