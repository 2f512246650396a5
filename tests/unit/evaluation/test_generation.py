"""Answers in batches: padding, stops, lengths, losses, and what happens when memory runs out."""

from __future__ import annotations

import random
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation import needs_harness
from tests.templates import ALWAYS_THINKING
from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.data.patterns import pattern_record
from vlsi_cli.engine.data.template import EncodedPrompt
from vlsi_cli.engine.evaluation import answer_prompts
from vlsi_cli.engine.evaluation.generation import Answerer, Question, Settings
from vlsi_cli.engine.evaluation.questions import question_from, settings_from
from vlsi_cli.engine.evaluation.sharing import Sharing
from vlsi_cli.errors import ConfigError, DataError, EvaluationError


@pytest.fixture(scope="module")
def small() -> Backbone:
    return load_backbone("demo/small")


def puzzle(
    index: int, settings: Settings, pictures: int = 1, answer: str | None = None, kind: str | None = None
) -> Question:
    record = pattern_record("test", index, questions=(kind,) if kind else None)
    parts: list[dict[str, Any]] = [{"type": "image", "url": record.image}] * pictures
    parts.append({"type": "text", "text": record.turns[0].text})
    return question_from(f"q{index}", [{"role": "user", "content": parts}], settings, answer)


def texts(model: Backbone, size: int, questions: list[Question]) -> list[str]:
    return [reply.text for _, reply in Answerer(model, size).answer(questions)]


def test_batched_is_unbatched(small: Backbone) -> None:
    """Questions of unlike lengths, with no picture, one and two."""
    questions = [puzzle(n, Settings(16), pictures=n % 3) for n in range(9)]
    assert texts(small, 1, questions) == texts(small, 4, questions)


def test_a_checkpoint_that_asks_for_sampling_answers_greedily_and_in_silence(
    small: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of Qwen2-VL do; transformers would warn of what it does not use."""
    from transformers.generation import configuration_utils

    told: list[str] = []
    question = puzzle(0, Settings(16))
    plain = texts(small, 1, [question])
    for name, value in {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001}.items():
        monkeypatch.setattr(small.model.generation_config, name, value)
    monkeypatch.setattr(configuration_utils.logger, "warning_once", lambda text, *_: told.append(text))
    prompt = small_prompt(small, question)
    end = small.tokenizer.eos_token_id
    found = answer_prompts(small, [prompt], pad_id=end, end_id=end, batch_size=1, max_new_tokens=16)
    assert texts(small, 1, [question]) == plain == [found[0].prediction]
    assert not told


def small_prompt(model: Backbone, question: Question) -> EncodedPrompt:
    return Answerer(model, 1).encoder.encode_prompt(question.record)


@pytest.mark.parametrize("family", ["llava_onevision", "idefics3", "qwen3_vl"])
def test_batched_is_unbatched_in_other_families(family: str, tmp_path: Path) -> None:
    model = load_backbone(str(tiny_folder(family, tmp_path / family)))
    questions = [puzzle(n, Settings(5), pictures=1 + n % 2) for n in range(4)]
    assert texts(model, 1, questions) == texts(model, 4, questions)


def test_stops_and_lengths(small: Backbone) -> None:
    whole = next(iter(Answerer(small, 1).answer([puzzle(0, Settings(16), kind="what")])))[1]
    assert len(whole.text) > 3
    assert not whole.cut
    stop = whole.text.strip()[2]
    stopped = next(iter(Answerer(small, 1).answer([puzzle(0, Settings(16, (stop,)), kind="what")])))[1]
    assert stopped.text == whole.text.split(stop)[0]
    assert not stopped.cut
    short = next(iter(Answerer(small, 1).answer([puzzle(0, Settings(1), kind="what")])))[1]
    assert short.cut
    assert short.tokens == 1


def test_an_answer_is_what_follows_the_thoughts(tmp_path: Path) -> None:
    """Where every prompt opens a block of thoughts; a stop inside it ends nothing."""
    model = load_backbone(str(tiny_folder("qwen3_5", tmp_path / "model")))
    model.processor.chat_template = ALWAYS_THINKING
    answerer, settings = Answerer(model, 1), Settings(5, ("\n",))
    row = model.tokenizer("It is\nwarm.\n</think>\n\nRed.\nOr blue.")["input_ids"]
    assert answerer._reply(row, [], settings).text == "Red."
    unfinished = answerer._reply(row[:3], [], Settings(3))
    assert (unfinished.text, unfinished.cut) == ("", True)
    everything = tuple(chr(code) for code in range(32, 127))
    ((_, reply),) = answerer.answer([puzzle(0, Settings(5, everything))])
    assert (reply.text, reply.tokens, reply.cut) == ("", 5, True)


def test_an_answer_is_what_follows_a_channel(tmp_path: Path) -> None:
    """Of a model that thinks though it was not asked to; its thoughts are special tokens and words between them."""
    model = load_backbone(str(tiny_folder("gemma4", tmp_path / "model", layers=2)))
    answerer, keeping = Answerer(model, 1), Answerer(model, 1, thoughts=True)
    row = model.tokenizer("<|channel>thought\nIt is warm.\n<channel|>Red.", add_special_tokens=False)[
        "input_ids"
    ]
    assert answerer._reply(row, [], Settings(99)).text == "Red."
    assert keeping._reply(row, [], Settings(99)).text == "<think>\nIt is warm.\n</think>\n\nRed."
    assert answerer._reply(row[:5], [], Settings(5)).text == ""
    ((_, reply),) = answerer.answer([puzzle(0, Settings(3))])
    assert reply.tokens == 3


def test_unlike_settings_do_not_share_a_batch(small: Backbone) -> None:
    questions = [puzzle(n, Settings(2 if n % 2 else 16)) for n in range(4)]
    apart = [texts(small, 1, [question])[0] for question in questions]
    assert texts(small, 4, questions) == apart


def test_a_loss_is_that_of_the_models_own_logits(small: Backbone) -> None:
    question = puzzle(3, Settings(1), answer="red circle")
    (_, reply), = Answerer(small, 1).losses([question])  # fmt: skip
    answerer = Answerer(small)
    encoded = answerer.encoder.encode(question.record)
    inputs = {"input_ids": encoded.input_ids[None], **encoded.tensors}
    if encoded.token_types is not None:
        inputs["mm_token_type_ids"] = encoded.token_types[None]
    with torch.no_grad():
        logits = small.model(**inputs).logits[0, :, : small.tokenizer_length].double()
    positions = encoded.trained.nonzero().squeeze(1)
    picked = logits.log_softmax(-1)[positions - 1, encoded.input_ids[positions]]
    assert reply.loss == pytest.approx(-picked.sum().item(), rel=1e-4)  # fp32 against fp64 softmax
    assert reply.tokens == len(positions)
    batched = [
        r.loss
        for _, r in Answerer(small, 3).losses([puzzle(1, Settings(1), answer="a long answer"), question])
    ]
    assert batched[1] == pytest.approx(reply.loss, rel=1e-4)


def test_what_is_greedy_is_told(small: Backbone) -> None:
    answer = next(iter(Answerer(small, 1).answer([puzzle(0, Settings(16))])))[1].text
    wrong = "yellow" if "yellow" not in answer else "blue"
    pair = [puzzle(0, Settings(1), answer=text) for text in (answer.strip(), wrong)]
    assert [reply.greedy for _, reply in Answerer(small, 2).losses(pair)] == [True, False]


class Cramped:
    """A model whose memory holds two questions."""

    def __init__(self, model: Any, most: int) -> None:
        self._model, self._most = model, most
        self.left: list[weakref.ref[torch.Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, **inputs: Any) -> Any:
        if len(inputs["input_ids"]) > self._most:
            half_done = torch.zeros(1)
            self.left.append(weakref.ref(half_done))
            raise torch.OutOfMemoryError("no")
        return self._model.generate(**inputs)


def cramped(model: Backbone, most: int) -> Backbone:
    return Backbone(
        model=Cramped(model.model, most),
        family=model.family,
        processor=model.processor,
        id=model.id,
        revision=None,
        folder=model.folder,
    )


def test_auto_halves_when_memory_runs_out(small: Backbone) -> None:
    said: list[str] = []
    questions = [puzzle(n, Settings(8)) for n in range(20)]
    model = cramped(small, 2)

    def told(text: str) -> None:
        said.append(text)
        assert model.model.left[-1]() is None  # what the batch held is gone when memory is given back

    answerer = Answerer(model, None, told)
    assert [reply.text for _, reply in answerer.answer(questions)] == texts(small, 4, questions)
    assert answerer.batch_size == 2
    assert said == [f"memory ran out with {n} questions at once; going on with {n // 2}" for n in (16, 8, 4)]


@pytest.mark.parametrize(("size", "most", "hint"), [(4, 2, "--batch-size auto"), (None, 0, "--max-pixels")])
def test_no_memory_left_is_told(small: Backbone, size: int | None, most: int, hint: str) -> None:
    with pytest.raises(EvaluationError, match="do not fit into the memory of cpu") as caught:
        list(Answerer(cramped(small, most), size).answer([puzzle(n, Settings(8)) for n in range(5)]))
    assert hint in str(caught.value.hint)


# ---------------------------------------------------------------- questions


def test_the_injected_stop_is_dropped_and_a_tasks_own_is_kept() -> None:
    injected = {"until": ["\n\n"], "max_new_tokens": 16}
    assert settings_from(injected) == (Settings(16), ())
    assert settings_from(injected, own_stops=True) == (Settings(16, ("\n\n",)), ())
    assert settings_from({"until": ["ASSISTANT:"], "image_aspect_ratio": "original"})[0] == Settings(
        1024, ("ASSISTANT:",)
    )
    assert settings_from({"until": None}, longest=7)[0] == Settings(7)
    assert settings_from({"do_sample": True, "temperature": 0.7, "num_beams": 5})[1] == (
        "sampling",
        "5 beams",
    )
    with pytest.raises(ConfigError, match="generation_kwargs"):
        settings_from({"max_new_tokens": "many"})


def test_keys_stand_for_questions() -> None:
    base = puzzle(0, Settings(8))
    assert base.key == puzzle(0, Settings(8)).key
    others = [
        puzzle(1, Settings(8)),
        puzzle(0, Settings(9)),
        puzzle(0, Settings(8), 2),
        puzzle(0, Settings(8), 1, "x"),
    ]
    assert len({base.key, *(other.key for other in others)}) == 5


def test_messages_of_one_role_are_joined_and_systems_kept() -> None:
    picture = Image.new("RGB", (8, 8))
    talk = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image", "url": picture}]},
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
    ]
    record = question_from("q", talk, Settings(1)).record
    assert [message.parts for message in record.messages] == [("Be short.",), (0, "What?"), (".",)]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "video", "url": "a.mp4"}, "t:0 holds a 'video', and only text and pictures are read"),
        ({"type": "image", "url": "none.png"}, "t:0 names a picture that is not here: 'none.png'"),
    ],
)
def test_what_cannot_be_asked_is_told(part: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        question_from("t:0", [{"role": "user", "content": [part]}], Settings(1))
    assert caught.value.message == message


def test_a_replaced_setting_is_another_question() -> None:
    base = puzzle(0, Settings(8))
    assert replace(base, settings=Settings(9)).settings != base.settings


# ---------------------------------------------------------------- shares


def test_shares_are_disjoint_and_whole() -> None:
    for count, size in ((0, 2), (1, 3), (10, 3), (12, 4)):
        shares = [set(Sharing(rank, size).mine(count)) for rank in range(size)]
        assert set().union(*shares) == set(range(count))
        assert sum(map(len, shares)) == count
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@needs_harness
def test_what_a_prompt_draws_depends_on_its_sample_alone() -> None:
    from vlsi_cli.engine.evaluation.adapter import _drawing_for

    def draw(doc_id: int) -> tuple[float, float]:
        with _drawing_for(SimpleNamespace(task_name="t", doc_id=doc_id)):
            return random.random(), float(np.random.random())

    random.seed(0)
    following = random.Random(0).random()
    alone = draw(3)
    assert [draw(n) for n in range(4)][3] == alone
    assert len({draw(n) for n in range(4)}) == 4
    assert random.random() == following  # what is drawn elsewhere stays as it was
