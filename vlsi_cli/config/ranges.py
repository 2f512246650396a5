"""Which models a precision cannot hold, by what is known of their families, and which are stored in one not read."""

from __future__ import annotations

from vlsi_cli.config.catalog import find
from vlsi_cli.errors import ConfigError

#: ``model_type`` -> title of families whose states pass 65,504, the largest number of fp16. In Gemma 3 embeddings are
#: multiplied by the root of the width and the norms behind each block have large weights, so that released checkpoints
#: answer nothing in fp16 (https://github.com/huggingface/transformers/issues/36822); in Gemma 4's E2B the feed-forward
#: part of the first layer passes it (https://github.com/unslothai/unsloth/pull/5092).
BEYOND_FP16 = {"gemma3": "Gemma 3", "gemma4": "Gemma 4"}


def require_range(model_type: str, shown: str, *precisions: str) -> None:
    """Refuse a model in a precision that cannot hold its states.

    Args:
        model_type: of its ``config.json``.
        shown: what to call it in a message.
        precisions: what it is stored in and computed in: "fp16" is looked for.

    Raises:
        ConfigError: it is of such a family.
    """
    if "fp16" in precisions and model_type in BEYOND_FP16:
        raise ConfigError(
            f"'{shown}' cannot be used in fp16: the states of {BEYOND_FP16[model_type]} pass its largest number, "
            "65,504, and become infinite",
            hint="use bf16 (GPUs from Ampere on) or fp32",
        )


def require_whole(rounded: str, shown: str) -> None:
    """Refuse a checkpoint in FP8.

    Its weights have scales beside them, which a saved student would have to have too, and on GPUs with kernels for it
    the inputs of its layers are rounded as well.

    Args:
        rounded: how its weights are rounded, see :class:`.facts.ModelFacts`.
        shown: what to call it in a message.

    Raises:
        ConfigError: they are in FP8.
    """
    if rounded != "fp8":
        return
    entry = find(shown)
    raise ConfigError(
        f"the weights of '{shown}' are stored in FP8, which is not read here",
        hint=f"take {entry.ids[0] if entry else 'the edition of the same model in bf16'}; to hold a large model in "
        "fewer bits: teacher.quantization",
    )
