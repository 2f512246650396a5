"""Greedy answers to held-out questions, compared word for word with what the data give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.data import thinking
from vlsi_cli.engine.data.collate import collate_prompts, in_groups
from vlsi_cli.engine.data.patterns import exact_match
from vlsi_cli.engine.data.template import EncodedPrompt

#: What a greedy answer does not use, as transformers has it where nobody says otherwise. A checkpoint's own values
#: would be taken in its place (those of Qwen2-VL ask for sampling), with a warning that they are not used.
NO_SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}


@dataclass(frozen=True)
class Answer:
    """One question answered.

    Attributes:
        record: id of the record.
        kind: kind of question, "" when the data tell none.
        prediction: the model's text.
        reference: the data's text.
        correct: whether they are equal but for case, spaces and a final stop.
    """

    record: str
    kind: str
    prediction: str
    reference: str
    correct: bool


def answer_prompts(
    backbone: Backbone,
    prompts: Iterable[EncodedPrompt],
    *,
    pad_id: int,
    end_id: int,
    batch_size: int = 8,
    max_new_tokens: int = 32,
    after_batch: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answer every prompt greedily, in left-padded batches; batching does not change an answer.

    Args:
        backbone: any, in eval mode while this runs.
        prompts: encoded questions.
        pad_id: the token that fills up a batch.
        end_id: the token that ends a response; base checkpoints do not list it among their end tokens.
        batch_size: questions answered together.
        max_new_tokens: longest answer.
        after_batch: told after each batch how many questions are answered.
    """
    from transformers import GenerationConfig

    own = backbone.model.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        **NO_SAMPLING,
        eos_token_id=sorted({end_id, *(end for end in ends if end is not None)}),
        bos_token_id=own.bos_token_id,
        pad_token_id=pad_id,
    )
    answers: list[Answer] = []
    backbone.train(False)
    try:
        for group in in_groups(prompts, batch_size):
            texts = _generate(backbone, group, greedy, pad_id)
            for prompt, text in zip(group, texts, strict=True):
                _, words = thinking.parts(text)
                correct = exact_match(words, prompt.reference)
                answers.append(Answer(prompt.record, prompt.kind, text, prompt.reference, correct))
            after_batch(len(answers))
    finally:
        backbone.train()
    return answers


@torch.no_grad()
def _generate(backbone: Backbone, group: list[EncodedPrompt], greedy: Any, pad_id: int) -> list[str]:
    inputs = collate_prompts(group, pad_id).to(backbone.device).inputs
    if hasattr(backbone.base, "rope_deltas"):
        backbone.base.rope_deltas = None  # type: ignore[assignment]  # Qwen keeps the last call's offsets
    tokens = backbone.model.generate(**inputs, generation_config=greedy)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [thinking.decoded(backbone.tokenizer, row).strip() for row in new.tolist()]
