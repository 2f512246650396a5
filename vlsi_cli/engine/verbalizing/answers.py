"""What each layer would answer: its own greedy text, how sure it is, and whether that is already the final answer.

Layer k's answer is generated from layer k: its state goes through its verbalizer (or, without one, through the final
norm alone: the logit lens) and the model's own head, the likeliest token is fed back in, and so on to the end of the
turn. The last decoder layer is the model as it is, so its answer is the model's own greedy output.

Shapes: K layers, H hidden width, V tokens of the tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.given import left_as_found
from vlsi_cli.engine.verbalizing.following import Heads, follow
from vlsi_cli.engine.verbalizing.verbalizer import Verbalizers
from vlsi_cli.errors import ModelError

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        id: its number.
        text: what it adds to the text. Of a character in several tokens the last one has all of it.
        probability: what the layer gave it.
        ends: whether it ends the answer and is not part of its text.
    """

    id: int
    text: str
    probability: float
    ends: bool


@dataclass(frozen=True)
class LayerAnswer:
    """One layer's own greedy answer.

    Attributes:
        layer: decoder layer, from 1.
        text: the answer without its end token and surrounding white space.
        tokens: what was generated, the end token included.
        log_probability: mean over those tokens, nats.
        entropy: of the distributions that they were taken from, mean, nats.
        complete: whether it ended by itself, before the limit of new tokens.
        agrees: whether the text is the final answer's.
    """

    layer: int
    text: str
    tokens: tuple[Token, ...]
    log_probability: float
    entropy: float
    complete: bool
    agrees: bool


@dataclass(frozen=True)
class LayerCandidates:
    """A layer's likeliest tokens at one place of the final answer.

    Attributes:
        layer: its number.
        candidates: likeliest first.
    """

    layer: int
    candidates: tuple[Token, ...]


@dataclass(frozen=True)
class Answers:
    """The answers of all layers that were read, shallow to deep; the last one is the final answer.

    Attributes:
        layers: an answer each.
        first: the first layer read whose answer is the final one.
        settled: the first from which on every layer read gives the final one.
        prompt_tokens: image tokens included.
        layer_tokens: tokens computed, once for every decoder layer that they passed.
        separate_layer_tokens: what one generation a layer, each with its own cache, would have computed.
        candidates: at the place that was asked for; empty when none was, or when the final answer is shorter.
    """

    layers: tuple[LayerAnswer, ...]
    first: int
    settled: int
    prompt_tokens: int
    layer_tokens: int
    separate_layer_tokens: int
    candidates: tuple[LayerCandidates, ...] = ()


@dataclass
class _Draft:
    """An answer while it grows."""

    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


@torch.no_grad()
def read_answers(
    backbone: Backbone,
    verbalizers: Verbalizers | None,
    inputs: dict[str, Any],
    layers: Sequence[int],
    *,
    ends: Collection[int],
    max_new_tokens: int,
    place: int | None = None,
    top_k: int = 5,
) -> Answers:
    """Let every layer answer a prompt.

    Rows of the head past the tokenizer's length are padding and are never chosen. In fp32 the answers do not depend
    on which other layers are read; in half precision two nearly equal tokens may change places, as they do between
    batch sizes anywhere.

    Args:
        backbone: any; in eval mode while this runs, and afterwards as it was.
        verbalizers: a set for this backbone, or None for the logit lens.
        inputs: one prompt as the processor makes it, [1, S], on the backbone's device.
        layers: decoder layers to read; the last one is added.
        ends: tokens that end an answer.
        max_new_tokens: longest answer, in tokens.
        place: token of the final answer, from 1, at which every layer's likeliest tokens are wanted. All layers are
            then asked about the same text: prompt and final answer up to there.
        top_k: how many of them.

    Raises:
        ValueError: a layer that the backbone does not have, or that has no verbalizer in the set.
        ModelError: overflow, or weights that are not numbers.
    """
    chosen = sorted({*layers, backbone.num_layers})
    drafts = {layer: _Draft() for layer in chosen}
    candidates: tuple[LayerCandidates, ...] = ()
    following = follow(backbone, verbalizers, chosen, along=place is not None)
    with left_as_found(backbone):
        heads, along = following.begin(inputs)
        for count in range(1, max_new_tokens + 1):
            if count == place and along:
                candidates = _candidates(backbone, along, top_k, ends)
            tokens = _choose(backbone, heads, drafts)
            going = {layer: token for layer, token in tokens.items() if token not in ends}
            if not going or count == max_new_tokens:
                break
            heads, along = following.advance(going)
    answers = _finished(backbone.tokenizer, drafts, ends)
    prompt = int(inputs["input_ids"].shape[1])
    return Answers(
        layers=answers,
        first=next(a.layer for a in answers if a.agrees),
        settled=_settled(answers),
        prompt_tokens=prompt,
        layer_tokens=following.layer_tokens,
        separate_layer_tokens=sum(prompt + len(a.tokens) - 1 for a in answers) * backbone.num_layers,
        candidates=candidates,
    )


def _logits(backbone: Backbone, heads: Heads) -> Tensor:
    """[K, V] fp32, cut to the tokenizer's length."""
    logits = backbone.logits(torch.stack(list(heads.values())))
    return logits[:, : backbone.tokenizer_length].float()


def _choose(backbone: Backbone, heads: Heads, drafts: dict[int, _Draft]) -> dict[int, int]:
    """The likeliest token of each layer, noted in its draft."""
    logits = _logits(backbone, heads)
    if not bool(logits.isfinite().all()):
        raise ModelError(
            f"'{backbone.id}' gives numbers that are not finite, in {backbone.dtype}",
            hint="use --precision bf16 or fp32; if that changes nothing, the weights are damaged",
        )
    ids = logits.argmax(dim=-1)
    logs = logits.log_softmax(dim=-1)
    taken = logs.gather(1, ids[:, None])[:, 0].tolist()
    entropies = torch.special.entr(logs.exp()).sum(dim=-1).tolist()
    chosen = dict(zip(heads, ids.tolist(), strict=True))
    for (layer, token), log_probability, entropy in zip(chosen.items(), taken, entropies, strict=True):
        drafts[layer].ids.append(token)
        drafts[layer].log_probabilities.append(log_probability)
        drafts[layer].entropies.append(entropy)
    return chosen


def _candidates(
    backbone: Backbone, along: Heads, top_k: int, ends: Collection[int]
) -> tuple[LayerCandidates, ...]:
    probabilities, ids = _logits(backbone, along).softmax(dim=-1).topk(min(top_k, backbone.tokenizer_length))
    return tuple(
        LayerCandidates(
            layer,
            tuple(
                Token(token, backbone.tokenizer.decode([token]), probability, token in ends)
                for token, probability in zip(row, shares, strict=True)
            ),
        )
        for layer, row, shares in zip(along, ids.tolist(), probabilities.tolist(), strict=True)
    )


def _finished(tokenizer: Any, drafts: dict[int, _Draft], ends: Collection[int]) -> tuple[LayerAnswer, ...]:
    texts = {layer: _text(tokenizer, draft.ids, ends) for layer, draft in drafts.items()}
    final = texts[max(texts)]
    return tuple(
        LayerAnswer(
            layer=layer,
            text=texts[layer],
            tokens=_tokens(tokenizer, draft, ends),
            log_probability=sum(draft.log_probabilities) / len(draft.ids),
            entropy=sum(draft.entropies) / len(draft.ids),
            complete=draft.ids[-1] in ends,
            agrees=texts[layer] == final,
        )
        for layer, draft in drafts.items()
    )


def _text(tokenizer: Any, ids: Sequence[int], ends: Collection[int]) -> str:
    kept = [token for token in ids if token not in ends]
    return str(tokenizer.decode(kept, skip_special_tokens=True)).strip()


def _tokens(tokenizer: Any, draft: _Draft, ends: Collection[int]) -> tuple[Token, ...]:
    made, held = [], []
    for position, (token, log_probability) in enumerate(zip(draft.ids, draft.log_probabilities, strict=True)):
        held.append(token)
        text = str(tokenizer.decode(held))
        # The bytes of one character may be several tokens, which decode to it only together.
        whole = position + 1 == len(draft.ids) or not text.endswith(_UNFINISHED)
        made.append(Token(token, text if whole else "", math.exp(log_probability), token in ends))
        held = [] if whole else held
    return tuple(made)


def _settled(answers: Sequence[LayerAnswer]) -> int:
    agreeing = list(takewhile(lambda answer: answer.agrees, reversed(answers)))
    return agreeing[-1].layer
