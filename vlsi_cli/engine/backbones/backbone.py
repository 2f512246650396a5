"""One vision language model behind one small interface: its layers, norm and head, frozen, tapped or trained.

Everything above this floor speaks to a :class:`Backbone` and never to a transformers class.

Shapes: B rows, S positions, H hidden width, L decoder layers, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlsi_cli.config.experts import Experts, experts_of
from vlsi_cli.engine.backbones.ahead import answered, host_known, picture_features, sizes_are_here
from vlsi_cli.engine.backbones.arguments import cache_argument, parameters
from vlsi_cli.engine.backbones.family import Family
from vlsi_cli.engine.backbones.tap import Tapped, tap
from vlsi_cli.engine.backbones.vision import VisionMemory, require_features
from vlsi_cli.engine.batch import Batch
from vlsi_cli.engine.losses import LogitRule

#: What can be trained apart. "adapters" are LoRA matrices (:mod:`vlsi_cli.engine.backbones.lora`).
PARTS = ("layers", "final_norm", "head", "embeddings", "vision", "projector", "adapters")


class Backbone:
    """A loaded vision language model. Build it with :func:`vlsi_cli.engine.backbones.load.load_backbone`.

    Attributes:
        model: the transformers model, head included; nothing of it is wrapped or renamed.
        family: where this model keeps its parts.
        processor: the family's processor (chat template, tokenizer, image processor).
        id: what the user called it: a hub id, "demo/small" or a path.
        revision: the hub revision asked for, or None.
        folder: the local folder that it was loaded from.
        vision_memory: what its frozen tower said about earlier records; None keeps nothing.
    """

    def __init__(
        self, *, model: Any, family: Family, processor: Any, id: str, revision: str | None, folder: Path
    ) -> None:
        self.model = model
        self.family = family
        self.processor = processor
        self.id = id
        self.revision = revision
        self.folder = folder
        self.vision_memory: VisionMemory | None = None

    # ---------------------------------------------------------------- parts

    @property
    def config(self) -> Any:
        """The model's transformers config."""
        return self.model.config

    @property
    def base(self) -> nn.Module:
        """The model without its head."""
        return self.family.base(self.model)

    @property
    def decoder(self) -> nn.Module:
        """The text decoder inside the base."""
        return self.family.decoder_of(self.model)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers; layer k of this project is ``layers[k - 1]``."""
        layers = self.decoder.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last decoder layer and the head."""
        return self.decoder.get_submodule("norm")

    @property
    def head(self) -> nn.Linear:
        """The language head, weight [V, H], no bias in any supported family."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head

    @property
    def logit_rule(self) -> LogitRule:
        """What the model does to its logits behind the head."""
        return self.family.logit_rule(self.config)

    def logits(self, states: Tensor) -> Tensor:
        """The model's own logits of states that enter its head, without gradient: [..., H] to [..., V]."""
        return self.logit_rule.apply_(self.head(states))

    @property
    def embeddings(self) -> nn.Embedding:
        """The token embeddings, weight [V, H]; the head's own tensor when the head is tied."""
        embeddings = self.model.get_input_embeddings()
        assert isinstance(embeddings, nn.Embedding)
        return embeddings

    @property
    def vision(self) -> nn.ModuleList:
        """The vision tower and, where it is a module of its own, the projector."""
        rooms = (*self.family.vision, *self.family.projector)
        found = [self.base.get_submodule(room) for room in rooms if _is_module(self.base, room)]
        return nn.ModuleList(found)

    @property
    def head_tied(self) -> bool:
        """Whether head and embeddings are one tensor."""
        return self.head.weight is self.embeddings.weight

    @property
    def hidden_size(self) -> int:
        """H, the decoder's width."""
        return int(self.head.weight.shape[1])

    @property
    def experts(self) -> Experts | None:
        """What its feed-forward layers are mixed of, or None where they are dense."""
        return experts_of(self.config.get_text_config().to_dict())

    @property
    def intermediate_size(self) -> int:
        """Inner width of its feed-forward layers; with experts the width that a token meets."""
        experts = self.experts
        return experts.width if experts else int(self.config.get_text_config().intermediate_size)

    @property
    def num_layers(self) -> int:
        """L, the number of decoder layers."""
        return len(self.layers)

    @property
    def vocabulary_rows(self) -> int:
        """V, the rows of the head: the tokenizer's length plus padding."""
        return int(self.head.weight.shape[0])

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @cached_property
    def tokenizer_length(self) -> int:
        """The largest token id + 1: rows of the head from here on are padding and belong to no token."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the head's weights are stored in."""
        return self.head.weight.dtype

    @property
    def image_token_id(self) -> int:
        """Id of the token that each image feature replaces."""
        return self.family.image_token_id(self.config)

    # ---------------------------------------------------------------- forward

    def forward_base(self, inputs: dict[str, Any], *, cache: Any = None) -> Tensor:
        """Run the model up to its head: last hidden state, final-normed, [B, S, H].

        ``logits(forward_base(inputs))`` would be the model's logits; nothing of the size of the vocabulary is built.

        Args:
            inputs: what the processor returned, right padded, on the model's device.
            cache: a transformers cache to fill with keys and values; None keeps none.
        """
        base: Any = self.base
        if hasattr(base, "rope_deltas"):
            base.rope_deltas = None  # Qwen keeps the last call's image offsets; they are not this call's
        state = base(**inputs, **cache_argument(base, cache), use_cache=cache is not None).last_hidden_state
        assert isinstance(state, Tensor)
        return state

    def forward_batch(self, batch: Batch) -> Tensor:
        """:meth:`forward_base` on a batch, with what the host knows of it (:mod:`.ahead`): the same state, bit for bit.

        Where features are remembered the vision tower is left out. :attr:`text_offset` is not told of.
        """
        inputs, memory = host_known(self.base, batch), self.vision_memory
        if memory is not None and batch.digests and "pixel_values" in inputs and not self._vision_trains():
            counts = self.family.image_tokens(self.config, batch.on_host or batch.inputs)
            said = memory.features(self.base, batch, inputs, counts)
        elif sizes_are_here(inputs):
            said = picture_features(self.base, inputs)
        else:
            return self.forward_base(inputs)
        with answered(self.base, said):
            return self.forward_base(inputs)

    def remember_vision(self, limit: int) -> None:
        """Keep what the frozen tower says, up to ``limit`` bytes of host memory; see :mod:`.vision`.

        Raises:
            ConfigError: a family whose features cannot be kept.
        """
        require_features(self.family.keeps_features, self.id)
        self.vision_memory = VisionMemory(limit)

    def _vision_trains(self) -> bool:
        return any(parameter.requires_grad for parameter in self.vision.parameters())

    @property
    def text_offset(self) -> int:
        """What :meth:`forward_base` last added to a text token's index behind its input to get its position.

        In the Qwen families an image of many tokens takes fewer positions (M-RoPE, arXiv 2409.12191, section 2.1), so
        that text behind it counts on from less than its index. Zero in the other families. One prompt only.
        """
        deltas = getattr(self.base, "rope_deltas", None)
        return 0 if deltas is None else int(deltas)

    def text_rotary(self, position: int, kind: str = "full_attention") -> tuple[Tensor, Tensor]:
        """Cosine and sine of one text token's position, [1, 1, D] each, as decoder layers of a kind take them.

        In Gemma 3 layers with a window turn faster than others.
        """
        ids = torch.full((1, 1), position, device=self.device)
        if hasattr(self.base, "rope_deltas"):
            ids = ids.expand(3, 1, 1)  # time, row and column of a text token are one number
        rotary: Any = self.decoder.get_submodule("rotary_emb")
        kinds = (kind,) if "layer_type" in parameters(type(rotary).forward) else ()
        cos, sin = rotary(self.head.weight[:0], ids, *kinds)  # of the weight only dtype and device are read
        return cos, sin

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """What each decoder layer does, in transformers' words: "full_attention", "linear_attention", ..."""
        text = self.config.get_text_config()
        windowed = getattr(text, "sliding_window", None) is not None
        alike = "sliding_attention" if windowed else "full_attention"
        return tuple(getattr(text, "layer_types", None) or (alike,) * self.num_layers)

    def tap(
        self,
        layers: Sequence[int],
        *,
        rows: Tensor | None = None,
        cols: Tensor | None = None,
        calls: bool = False,
    ) -> AbstractContextManager[Tapped]:
        """Catch raw outputs of decoder layers during :meth:`forward_base`; see :func:`.tap.tap`.

        Args:
            layers: layer numbers from 1 to L.
            rows, cols: response positions, [R] each; then each state is [R, H] instead of [B, S, H].
            calls: keep the layers' other arguments too.
        """
        return tap(self.base, list(self.layers), layers, rows=rows, cols=cols, calls=calls)

    # ---------------------------------------------------------------- training

    def named_parts(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Every parameter once: (part, name, parameter). A tied head appears as "embeddings"."""
        for name, parameter in self.model.named_parameters():
            part = "adapters" if ".lora_" in name else self.family.part_of(name)
            yield part, name, parameter

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of each part that this model has."""
        counts: dict[str, int] = {}
        for part, _, parameter in self.named_parts():
            counts[part] = counts.get(part, 0) + parameter.numel()
        return counts

    def set_trainable(self, parts: Iterable[str]) -> list[tuple[str, nn.Parameter]]:
        """Let the named parts train and freeze everything else.

        With a tied head, "head" and "embeddings" name one tensor: either word trains it. Frozen modules go to eval
        mode and trained ones to train mode (:meth:`train`).

        Args:
            parts: any of ``PARTS``; empty freezes the whole model.

        Returns:
            Names and parameters that now train, in the model's order.

        Raises:
            ValueError: a word that is not a part.
        """
        wanted = set(parts)
        unknown = sorted(wanted - set(PARTS))
        if unknown:
            raise ValueError(f"'{unknown[0]}' is not a part of a backbone: {', '.join(PARTS)}")
        if self.head_tied and "head" in wanted:
            wanted.add("embeddings")
        chosen = []
        if self.vision_memory is not None and wanted & {"vision", "projector"}:
            self.vision_memory.clear()
        for part, name, parameter in self.named_parts():
            parameter.requires_grad_(part in wanted)
            if part in wanted:
                chosen.append((name, parameter))
            else:
                parameter.grad = None
        self.train()
        return chosen

    def freeze(self) -> None:
        """Freeze every parameter and put the whole model in eval mode."""
        self.set_trainable(())

    def train(self, mode: bool = True) -> None:
        """Train mode (dropout, checkpointing) for modules with trained parameters only; eval mode for the rest.

        ``model.train()`` of torch would switch dropout on in frozen modules too: call this instead, and again after
        anything that called it.
        """
        self.model.eval()
        if not mode:
            return
        for module in (*self.layers, *self.vision):
            if any(parameter.requires_grad for parameter in module.parameters()):
                module.train()

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute layers in backward instead of keeping their activations (the non-reentrant kind).

        Only modules in train mode checkpoint, so frozen towers never pay for it.
        """
        # Set on the layers as transformers' own switch does. That switch would also make the embeddings' output
        # require gradients (which only the reentrant kind needs), so that frozen layers build graphs for nothing.
        recompute = partial(checkpoint, use_reentrant=False)
        for room in (*self.layers, *self.vision):
            for module in room.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = enabled
                    module._gradient_checkpointing_func = recompute


def _is_module(base: nn.Module, path: str) -> bool:
    """Whether ``path`` is a module of its own, and not a bare parameter or a room inside the tower."""
    top = path.split(".")[0]
    return isinstance(getattr(base, top, None), nn.Module) and top == path
