"""Models whose feed-forward layers are mixtures of experts, and what they are not used for: they teach, and are read.

transformers holds the experts of a layer as two tensors of three dimensions, with a router beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlsi_cli.errors import CompatibilityError, ConfigError


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of the feed-forward part of every decoder layer, as in Qwen3-VL-30B-A3B.

    Attributes:
        count: experts of a layer.
        chosen: how many of them a token goes to.
        ffn: inner width of one.
        shared: inner width of what every token goes to beside them, behind a gate of its own; 0: there is none. Gemma 4
            has no gate there, and as many numbers that scale what its router reads.
    """

    count: int
    chosen: int
    ffn: int
    shared: int = 0

    @property
    def width(self) -> int:
        """Inner width that a token meets."""
        return self.chosen * self.ffn + self.shared

    def parameters(self, hidden: int) -> int:
        """Of a layer: experts, router, and the shared expert with its gate."""
        shared = 3 * hidden * self.shared + (hidden if self.shared else 0)
        return self.count * (3 * hidden * self.ffn + hidden) + shared

    def active(self, hidden: int) -> int:
        """Those of them that a token meets."""
        return self.parameters(hidden) - (self.count - self.chosen) * 3 * hidden * self.ffn


def experts_of(config: dict[str, Any]) -> Experts | None:
    """The experts that a ``config.json`` tells of (its text config, or both merged), or None.

    Raises:
        KeyError, TypeError, ValueError: it leaves a number unsaid, or not all layers have experts.
    """
    text = {**config, **(config.get("text_config") or {})}
    if text.get("model_type") == "gemma4_text":
        if not text.get("enable_moe_block"):
            return None
        said = ("num_experts", "top_k_experts", "moe_intermediate_size", "intermediate_size")
        return Experts(*(int(text[key]) for key in said))
    count = int(text.get("num_experts") or text.get("num_local_experts") or 0)
    if not count:
        return None
    if text.get("mlp_only_layers") or int(text.get("decoder_sparse_step") or 1) != 1:
        raise ValueError("layers with experts and layers without")
    shared = int(text.get("shared_expert_intermediate_size") or 0)
    return Experts(count, int(text["num_experts_per_tok"]), int(text["moe_intermediate_size"]), shared)


def require_dense_student(experts: Experts | None, shown: str) -> None:
    """Refuse a small model with experts.

    Raises:
        CompatibilityError: it has some.
    """
    if experts is not None:
        raise CompatibilityError(
            f"'{shown}' is made of experts ({experts.count} a layer) and can teach but not learn: no stage keeps "
            "its tokens spread over them, and adapters have no place in them",
            hint="take a dense model of the family as the student",
        )


def require_unrounded(experts: Experts | None, quantization: str, shown: str) -> None:
    """Refuse to round the weights of a model with experts.

    Raises:
        ConfigError: it has some, and ``quantization`` is not ``none``.
    """
    if experts is not None and quantization != "none":
        raise ConfigError(
            f"'{shown}' cannot be read in {quantization}: bitsandbytes rounds linear layers, and nearly all of this "
            "model is in experts, which are none",
            hint="set teacher.quantization to none; teacher.placement, sharding: both or a teacher cache save memory",
        )


def require_plain_verbalizers(experts: Experts | None, architecture: str, shown: str) -> None:
    """Refuse verbalizers that would be decoder layers with experts.

    Raises:
        ConfigError: the model has experts, and ``architecture`` is a decoder layer of its own class.
    """
    if experts is not None and architecture.startswith("decoder"):
        raise ConfigError(
            f"a '{architecture}' verbalizer of '{shown}' would be a decoder layer with {experts.count} experts",
            hint="set verbalizer.architecture to verb-ffn, or to ffn for the width that a token meets",
        )
