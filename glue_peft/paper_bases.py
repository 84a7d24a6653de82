"""RandLoRA's random bases as its authors' code draws them: the same numbers to the bit, where PEFT has others.

Both draw A [r, 1, d] and then the n parts [d, 1, r] of B from one generator, uniformly as Kaiming's initialisation
does, and divide each by its standard deviation. The authors do so in float32 (PaulAlbert31/RandLoRA,
peft/src/peft/tuners/randlora/model.py), PEFT in bfloat16 or float16, which takes other numbers from the generator.
"""

import math

import torch
from peft import PeftModel
from torch import nn

from glue_peft.errors import UsageError


def draw_paper_bases(model: PeftModel) -> None:
    """Put the authors' bases of the config's key in the place of PEFT's, for all layers at once.

    Raises UsageError where the widest input and the widest output of the adapted layers differ: there the authors'
    bases have other shapes than PEFT's.
    """
    adapter, tuner = model.active_adapter, model.base_model
    small, large = tuner.randlora_A[adapter], tuner.randlora_B[adapter]  # [r, 1, d], [d, n, r]
    if small.shape[-1] != large.shape[0]:
        raise UsageError(
            f"--paper_bases: the adapted layers' widest input and output differ, {small.shape[-1]} and "
            f"{large.shape[0]}; the authors' bases have other shapes there, which --target_modules can avoid"
        )
    generator = torch.Generator(device="cpu").manual_seed(model.active_peft_config.projection_prng_key)
    width, bases, rank = large.shape
    drawn = [drawn_uniformly((rank, 1, width), generator)]
    drawn.append(torch.cat([drawn_uniformly((width, 1, rank), generator) for _ in range(bases)], dim=1))
    model.paper_bases = True  # for random_bases.json
    for name, basis, old in zip(("randlora_A", "randlora_B"), drawn, (small, large), strict=True):
        getattr(tuner, name)[adapter] = (basis / basis.std()).to(old.device)


def drawn_uniformly(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return a float32 tensor of this shape, drawn as Kaiming's uniform initialisation with a = sqrt(5)."""
    return nn.init.kaiming_uniform_(torch.empty(shape, dtype=torch.float32), a=math.sqrt(5), generator=generator)
