"""Decoder layers of a large model that is only read, in 8 or 4 bits a weight (bitsandbytes, through transformers).

Only the matrices of the decoder layers are quantized, which are nearly all of a large model, and they are quantized
while they are loaded; not those of them that give one number a head (:attr:`.families.Family.gates`). Vision tower,
embeddings, norms and head stay as they are, and verbalizers are fp32 as ever: every loss of every layer goes through
the head, so rounding it would shift them all.

``8bit``
    LLM.int8() (arXiv 2208.07339): a scale a row of weights and of inputs, products of integers, columns of inputs with
    an entry above 6 apart in fp16. Inputs are cast to fp16 whatever the run computes in.
``4bit``
    NF4 with doubly quantized scales (QLoRA, arXiv 2305.14314): 4.13 bits a weight; a matrix becomes the compute dtype
    again when it is used.
"""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from typing import Any, Literal

import torch

from vlsi_cli.config.experts import experts_of, require_unrounded
from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.engine.backbones.placement import rooms
from vlsi_cli.errors import ConfigError

Quantization = Literal["none", "8bit", "4bit"]
#: Where bitsandbytes is run from here; it names other devices too.
_DEVICES = ("cpu", "cuda")


def check_quantization(
    quantization: Quantization, device: torch.device, checkpoint: dict[str, Any], shown: str
) -> None:
    """Refuse what cannot be quantized, before any weights are read.

    Args:
        quantization: ``8bit`` or ``4bit``.
        device: where the model is to run.
        checkpoint: its parsed ``config.json``.
        shown: what to call it in a message.

    Raises:
        ConfigError: with the reason in one sentence.
    """
    require_unrounded(experts_of(checkpoint), quantization, shown)
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{quantization} weights need the package bitsandbytes, which is not installed",
            hint="pip install 'vlsi-cli[quant]'",
        )
    if device.type not in _DEVICES:
        raise ConfigError(
            f"{quantization} weights of '{shown}' need a CUDA device or a CPU, and this run is on {device.type}",
            hint="set teacher.quantization to none; teacher.placement: disk needs little memory too",
        )
    if "quantization_config" in checkpoint:
        method = (checkpoint["quantization_config"] or {}).get("quant_method", "quantized")
        raise ConfigError(
            f"the checkpoint '{shown}' is quantized already ({method})",
            hint="give the original checkpoint, or set teacher.quantization to none",
        )


def quantizer(config: Any, family: Family, quantization: Quantization, dtype: torch.dtype) -> Any:
    """What transformers is told: how, and every module that stays as it is.

    Args:
        config: the model's config; the model is built without memory to learn its modules' names.
        family: where it keeps its parts.
        quantization: ``8bit`` or ``4bit``.
        dtype: of products with 4-bit weights.
    """
    # It warns at every product that its inputs are cast to fp16, which is how the method works, and at its import that
    # an optional kernel is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers import BitsAndBytesConfig

    _, others = rooms(config, family)
    kept = [re.escape(name) for name in others]  # it reads them as regular expressions
    kept += family.gates
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )
