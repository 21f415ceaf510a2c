"""The start weights of the default model: a small CLIP whose image tower reads a trained face recognition network.

The image tower reads all levels of that network (Apache-2.0, github foamliu/MobileFaceNet). The layers that read them
and the text tower, a small CLIP transformer, have random weights, which `train.py --freeze trunk` trains. With
`--factor-trunk` the tower reads the trunk of a factor network (MFN) too. OpenAI's RN50 can take the place of this file.

    python -m recipes.default_model.make_start --trunk ../shared/data/fr/mobilefacenet_foamliu.safetensors \\
        --output runs/default/tiny.safetensors
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from command_line import exit_code, natural, positive
from model import load
from model.checkpoint import save_checkpoint
from model.face_trunk import FaceTrunk
from model.mobilefacenet import FactorNetwork
from model.multi_level import MultiLevelTower

VOCABULARY, CONTEXT = 49408, 77


def run(options: argparse.Namespace) -> int:
    torch.manual_seed(options.seed)
    trunk = load(options.trunk)
    if not isinstance(trunk, FaceTrunk):
        raise ValueError(f"--trunk {options.trunk} holds a {type(trunk).__name__}; a FaceTrunk was expected")
    factors = load(options.factor_trunk) if options.factor_trunk else None
    if factors is not None and not isinstance(factors, FactorNetwork):
        raise ValueError(f"--factor-trunk {options.factor_trunk} holds a {type(factors).__name__}; an MFN was expected")
    factor_trunk = factors.base_backbone if factors else None
    tower = MultiLevelTower(trunk, options.hidden, options.shared, factor_trunk=factor_trunk)
    tensors = {f"visual.{key}": value for key, value in tower.state_dict().items()}
    tensors |= text_tower(options.width, options.layers, options.shared, torch.Generator().manual_seed(options.seed))
    save_checkpoint(options.output, tensors, {"preprocessing": tower.preprocessing.to_json()})
    count = sum(t.numel() for t in tower.state_dict().values())
    print(f"{options.output}: image tower {count:,} numbers, shared space {options.shared}")
    return 0


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trunk", default="../shared/data/fr/mobilefacenet_foamliu.safetensors")
    parser.add_argument("--output", default="runs/default/tiny.safetensors")
    parser.add_argument("--factor-trunk", default="", help="MFN whose trunk is read too (none)")
    parser.add_argument("--hidden", type=positive, default=1024, help="width of the layer that reads the trunks (1024)")
    parser.add_argument("--shared", type=positive, default=128, help="dimensions of the shared space (128)")
    parser.add_argument("--width", type=positive, default=64, help="width of the text transformer (64)")
    parser.add_argument("--layers", type=positive, default=1, help="its depth (1)")
    parser.add_argument("--seed", type=natural, default=323)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
