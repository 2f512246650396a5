"""Exported graphs against the model they were made from: the same prompts through onnxruntime and through torch.

Each case is read as a whole (logits of every position that is not padding are compared) and then continued for some
greedy tokens with the cache. The tokens are torch's, whatever the graphs would have said, so that each step is compared
on the same history: if every step agrees, then the graphs alone would have written the same text.

Shapes: B rows, S positions of the prompt, T tokens, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.quiet import quiet_transformers
from vlsi_cli.engine.batch import PromptBatch
from vlsi_cli.engine.data.collate import collate_prompts, in_groups
from vlsi_cli.engine.data.patterns import exact_match
from vlsi_cli.engine.data.records import ImageRef, Message, Record
from vlsi_cli.engine.data.sources import PatternsSource
from vlsi_cli.engine.data.template import ChatEncoder, EncodedPrompt
from vlsi_cli.engine.evaluation import answer_prompts
from vlsi_cli.engine.exporting.runtime import OnnxModel

#: Largest difference of two logits, as a share of the largest logit. fp32: rounding of 6e-8 a step, grown by some
#: hundred sums in a row; fp16: the same from 5e-4. Quantized graphs are held to the share of equal tokens alone.
TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}

#: Smallest share of greedy tokens that must be equal. In fp32 a single other token is a fault.
AGREEMENT = {"fp32": 1.0, "fp16": 0.95, "int8": 0.8, "int4": 0.5}

#: Greedy tokens of each case.
TOKENS = 32

#: Two pictures of unlike sizes and shapes, width and height in pixels. The processor resizes them to its budget.
SIZES = ((96, 64), (140, 252))


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: what was asked.
        rows: prompts in the batch.
        tokens: length of the longest prompt.
        logit_difference: largest absolute difference of two logits, of the prompt and of every step after it.
        largest_logit: largest absolute logit of torch.
        equal_tokens: share of the greedy tokens that are equal, 0..1.
        equal_prefix: tokens before the first that differs, in the row where that is earliest.
    """

    name: str
    rows: int
    tokens: int
    logit_difference: float
    largest_logit: float
    equal_tokens: float
    equal_prefix: int


@dataclass(frozen=True)
class Accuracy:
    """Share of built-in puzzles answered exactly, 0..1, by both.

    Attributes:
        questions: how many were asked.
        torch, onnx: the shares.
        error: standard error of the change.
        same_answers: share of questions to which both give the same text.
    """

    questions: int
    torch: float
    onnx: float
    same_answers: float
    error: float


@dataclass(frozen=True)
class Check:
    """What a comparison found.

    Attributes:
        precision: of the graphs.
        cases: see :class:`Case`.
        steps: greedy tokens a row.
        accuracy: None when no puzzles were asked.
        tolerance: allowed difference of logits as a share of the largest; None for quantized graphs.
        agreement: smallest share of equal tokens allowed.
        faults: what was not within the limits, one sentence each; empty when all was.
    """

    precision: str
    cases: tuple[Case, ...]
    steps: int
    accuracy: Accuracy | None
    tolerance: float | None
    agreement: float
    faults: tuple[str, ...]

    @property
    def logit_difference(self) -> float:
        """The largest of all cases."""
        return max(case.logit_difference for case in self.cases)

    @property
    def equal_tokens(self) -> float:
        """Share over all rows of all cases."""
        return sum(case.equal_tokens * case.rows for case in self.cases) / sum(
            case.rows for case in self.cases
        )


def check(
    exported: OnnxModel,
    backbone: Backbone,
    precision: str,
    *,
    agreement: float | None = None,
    questions: int = 0,
    steps: int = TOKENS,
) -> Check:
    """Compare an exported folder with its model.

    Args:
        exported: the graphs.
        backbone: the model, in fp32.
        precision: ``fp32``, ``fp16``, ``int8`` or ``int4``.
        agreement: smallest share of equal tokens; None for that of the precision.
        questions: how many built-in puzzles to ask both.
        steps: greedy tokens of each case.
    """
    encoder = ChatEncoder(backbone.processor)
    cases = tuple(_compare(exported, backbone, name, batch, steps) for name, batch in cases_for(encoder))
    asked = _accuracy(exported, backbone, encoder, questions) if questions else None
    limit = AGREEMENT[precision] if agreement is None else agreement
    tolerance = TOLERANCE.get(precision)
    found = Check(precision, cases, steps, asked, tolerance, limit, ())
    faults = [fault for case in cases for fault in _faults(case, tolerance)]
    if not found.equal_tokens >= limit:
        first = min(cases, key=lambda case: case.equal_tokens)
        faults.append(
            f"{found.equal_tokens:.1%} of the greedy tokens are equal, where {limit:.1%} are needed "
            f"(worst: {first.name}, {first.equal_tokens:.1%})"
        )
    return Check(precision, cases, steps, asked, tolerance, limit, tuple(faults))


def _faults(case: Case, tolerance: float | None) -> list[str]:
    if not np.isfinite(case.logit_difference):
        return [f"{case.name}: the graphs give logits that are not finite"]
    allowed = None if tolerance is None else tolerance * max(1.0, case.largest_logit)
    if allowed is None or case.logit_difference <= allowed:
        return []
    return [
        f"{case.name}: logits differ by up to {case.logit_difference:.3g}, where {allowed:.3g} is allowed"
    ]


def cases_for(encoder: ChatEncoder) -> Iterable[tuple[str, PromptBatch]]:
    """A picture of each size, a text without picture; and in one batch these and a prompt with both pictures."""
    pictures = [
        Image.linear_gradient("L").rotate(90 * i).resize(s).convert("RGB") for i, s in enumerate(SIZES)
    ]
    prompts = [_prompt(encoder, picture) for picture in pictures]
    for size, prompt in zip(SIZES, prompts, strict=True):
        yield f"picture {size[0]}x{size[1]}", collate_prompts([prompt], encoder.pad_id)
    text = _prompt(encoder)
    yield "text alone", collate_prompts([text], encoder.pad_id)
    yield "batch of four", collate_prompts([*prompts, text, _prompt(encoder, *pictures)], encoder.pad_id)


def _prompt(encoder: ChatEncoder, *pictures: Image.Image) -> EncodedPrompt:
    question = (
        "What is in the picture?" if pictures else "How many colours has a rainbow? Name them in order."
    )
    parts: tuple[int | str, ...] = (*range(len(pictures)), question)
    images = tuple(ImageRef(picture=picture) for picture in pictures)
    talk = (Message("user", parts), Message("assistant", ("-",)))
    return encoder.encode_prompt(Record("check", talk, images))


@torch.no_grad()
def _compare(exported: OnnxModel, backbone: Backbone, name: str, batch: PromptBatch, steps: int) -> Case:
    inputs = batch.to(backbone.device).inputs
    plain = {key: value.numpy() for key, value in batch.inputs.items()}
    kept = batch.inputs["attention_mask"].bool()
    whole = backbone.head(backbone.forward_base(inputs)).float().cpu()[kept]
    written, scores = _greedy(backbone, inputs, steps)  # [B, T], [T, B, V]

    logits, talk = exported.begin(plain, keep=0)
    worst = _difference(torch.from_numpy(logits)[kept], whole)
    rows = len(written)
    equal = np.zeros((rows, steps), bool)
    for step in range(steps):
        last = logits[:, -1]
        worst = max(worst, _difference(torch.from_numpy(last), scores[step]))
        equal[:, step] = last.argmax(axis=-1) == scores[step].argmax(dim=-1).numpy()
        if step + 1 < steps:
            logits = exported.extend(talk, written[:, step : step + 1])
    prefix = min(int(np.argmin(row)) if not row.all() else steps for row in equal)
    largest = max(float(whole.abs().max()), float(scores.abs().max()))
    return Case(name, rows, plain["input_ids"].shape[1], worst, largest, float(equal.mean()), prefix)


def _greedy(
    backbone: Backbone, inputs: dict[str, Any], steps: int
) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """torch's own greedy tokens, past every end token, and the raw logits behind each."""
    from transformers import GenerationConfig

    base: Any = backbone.base
    if hasattr(base, "rope_deltas"):
        base.rope_deltas = None  # Qwen keeps the last call's offsets
    unending = GenerationConfig(
        max_new_tokens=steps,
        do_sample=False,
        repetition_penalty=1.0,  # or the model's own would be taken
        eos_token_id=backbone.vocabulary_rows,  # an id that no head can give
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with quiet_transformers():
        made = backbone.model.generate(**inputs, generation_config=unending)
    new = made.sequences[:, inputs["input_ids"].shape[1] :]
    return new.cpu().numpy(), torch.stack(made.logits).float().cpu()


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    worst = (ours - theirs).abs().max()
    return float(worst) if bool(torch.isfinite(worst)) else float("inf")


def _accuracy(exported: OnnxModel, backbone: Backbone, encoder: ChatEncoder, questions: int) -> Accuracy:
    """Both answer the same held-out puzzles."""
    source = PatternsSource("test", size=questions)
    prompts = [encoder.encode_prompt(source.read(index)) for index in range(questions)]
    end = int(backbone.tokenizer.eos_token_id)
    known = backbone.model.generation_config.eos_token_id
    ends = {end, *(known if isinstance(known, list) else [known] if known is not None else [])}
    theirs = answer_prompts(backbone, prompts, pad_id=encoder.pad_id, end_id=end)
    ours: list[str] = []
    for group in in_groups(prompts, 8):
        batch = collate_prompts(group, encoder.pad_id)
        rows = exported.generate({k: v.numpy() for k, v in batch.inputs.items()}, ends=ends)
        ours += [text.strip() for text in backbone.tokenizer.batch_decode(rows, skip_special_tokens=True)]
    right = np.array([exact_match(text, p.reference) for text, p in zip(ours, prompts, strict=True)], float)
    before = np.array([answer.correct for answer in theirs], float)
    same = float(np.mean([text == answer.prediction for text, answer in zip(ours, theirs, strict=True)]))
    error = float((right - before).std() / np.sqrt(questions))
    return Accuracy(questions, float(before.mean()), float(right.mean()), same, error)
