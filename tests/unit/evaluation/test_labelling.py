"""What is asked of a model, in what order, and what of its answers becomes part of a record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.templates import ALWAYS_THINKING
from tests.tiny import tiny_folder
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.data.records import BadRecord, ImageRef, Message, Record, make_record
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.evaluation.generation import Question, Reply, Settings
from vlsi_cli.engine.evaluation.journal import Journal
from vlsi_cli.engine.evaluation.labelling import Labeller, Manner
from vlsi_cli.engine.evaluation.labels import Outcome, Place, with_answers


class Model:
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts = iter(texts)
        self.asked: list[Question] = []

    def answer(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Reply]]:
        for question in questions:
            self.asked.append(question)
            text = next(self.texts)
            yield question, Reply(text, tokens=len(text), cut=len(text) >= question.settings.max_new_tokens)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    folder = tiny_folder("qwen3_5", tmp_path_factory.mktemp("thinker"), layers=2, hidden=32)
    return ChatEncoder(load_processor(folder))


@pytest.fixture(scope="module")
def brooder(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    """Of a model that always thinks."""
    processor = load_processor(
        tiny_folder("qwen3_5", tmp_path_factory.mktemp("brooder"), layers=2, hidden=32)
    )
    processor.chat_template = ALWAYS_THINKING
    return ChatEncoder(processor)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ChatEncoder:
    folder = tiny_folder("qwen2_vl", tmp_path_factory.mktemp("plain"), layers=1, hidden=32)
    return ChatEncoder(load_processor(folder), max_length=64)


def record(*texts: str, picture: Image.Image | None = None, id: str = "r") -> Record:
    talk = [
        Message("user" if n % 2 == 0 else "assistant", (0, text) if picture and n == 0 else (text,))
        for n, text in enumerate(texts)
    ]
    return make_record(id, talk, [ImageRef(picture=picture)] if picture else [], unanswered=True)


def label(
    encoder: ChatEncoder, model: Model, records: list[Record], path: Path = Path(), **manner: Any
) -> tuple[list[Outcome | None], list[BadRecord], list[str]]:
    """Outcomes, records that could not be asked, and the texts of the answers that were taken."""
    bad: list[BadRecord] = []
    journal = Journal(path / "answers.jsonl") if path != Path() else _Memory()
    labeller = Labeller(
        lambda: model,  # type: ignore[arg-type,return-value]
        encoder,
        journal,
        Manner("a model", Settings(60), **manner),
        earlier={},
        skip=lambda place, problem: bad.append(problem),
    )
    places: list[tuple[Place, Record]] = [((0, number), each) for number, each in enumerate(records)]
    with journal:
        found = labeller.run(places)
    outcomes = [found.get(place) for place, _ in places]
    texts = [
        labeller.taken(journal.lines[key]["text"])
        for each in outcomes
        if each
        for key in each.keys
        if key in journal.lines
    ]
    return outcomes, bad, texts


class _Memory(Journal):
    def __init__(self) -> None:
        super().__init__(Path("nowhere"))

    def add(self, key: str, line: dict[str, Any]) -> None:
        self.lines[key] = {"key": key, **line}


def prompt(encoder: ChatEncoder, question: Question) -> str:
    assert question.prompt is not None
    return str(encoder.tokenizer.decode(question.prompt.input_ids))


def test_later_turns_are_asked_behind_the_new_answers(plain: ChatEncoder) -> None:
    model = Model("one", "uno", "two")
    first, second = record("a", "old", "b", "older"), record("c", "old")
    outcomes, _, texts = label(plain, model, [first, second], replace=True)
    assert [each.left_out for each in outcomes if each] == [None, None]
    assert texts == ["one", "two", "uno"]
    shown = [prompt(plain, question) for question in model.asked]
    assert "old" not in "".join(shown)
    assert shown[2].index("one") < shown[2].index("b<|im_end|>")
    done = with_answers(first, [1, 3], ["one", "two"])
    assert [message.text for message in done.messages] == ["a", "one", "b", "two"]


def test_a_picture_is_part_of_the_question(plain: ChatEncoder) -> None:
    """Equal questions are asked once, whatever the records are called; other pixels make another question."""
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    model = Model("red", "blue")
    asked = [record("what?", picture=picture, id=str(n)) for n, picture in enumerate((red, blue, red))]
    _, _, texts = label(plain, model, asked)
    assert texts == ["red", "blue", "red"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("x" * 60, "answer-cut"),
        (" \n", "answer-empty"),
        ("see <image> there", "image-in-response"),
        ("it ends <|im_start|> not", "control-token"),
    ],
)
def test_what_is_no_answer_is_left_out(plain: ChatEncoder, said: str, why: str) -> None:
    outcomes, bad, _ = label(plain, Model(said, "fine"), [record("a"), record("b")])
    assert [each.left_out for each in outcomes if each] == [why, None]
    assert not bad


def test_a_turn_without_an_answer_ends_the_record(plain: ChatEncoder) -> None:
    model = Model("", "fine", "good")
    outcomes, _, _ = label(
        plain, model, [record("a", "x", "b", "y"), record("c", "x", "d", "y")], replace=True
    )
    assert [each.left_out for each in outcomes if each] == ["answer-empty", None]
    assert len(model.asked) == 3


def test_a_record_that_cannot_be_asked_is_told(plain: ChatEncoder) -> None:
    outcomes, bad, texts = label(plain, Model("fine"), [record("word " * 99, id="long"), record("a")])
    assert [(each.record, each.reason) for each in bad] == [("long", "too-long")]
    assert outcomes[0] is None
    assert texts == ["fine"]


def test_a_batch_holds_prompts_of_like_length(plain: ChatEncoder) -> None:
    """Longest first, whatever the order of the records, in which the outcomes are; a picture counts as its tokens."""
    texts = [letter + " word" * words for letter, words in zip("abcd", (3, 9, 0, 5), strict=True)]
    asked = [record(text) for text in texts] + [record("e", picture=Image.new("RGB", (112, 112)))]
    model = Model("B", "D", "E", "A", "C")
    outcomes, _, said = label(plain, model, asked)
    assert [question.record.messages[0].text[0] for question in model.asked] == list("bdeac")
    lengths = [len(question.prompt.input_ids) for question in model.asked if question.prompt]
    assert lengths == sorted(lengths, reverse=True)
    assert said == list("ABCDE")
    assert None not in outcomes


def test_equal_questions_that_cannot_be_asked_are_told_each(plain: ChatEncoder) -> None:
    twins = [record("word " * 99, id=name) for name in "ab"]
    outcomes, bad, _ = label(plain, Model("fine"), [*twins, record("c")])
    assert [(each.record, each.reason) for each in bad] == [("a", "too-long"), ("b", "too-long")]
    assert [each is None for each in outcomes] == [True, True, False]


def test_answers_are_on_the_disk_before_the_next(plain: ChatEncoder, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Mortal(Model):
        def answer(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Reply]]:
            for number, pair in enumerate(super().answer(questions)):
                if number == 2:
                    raise Killed
                yield pair

    asked = [record(letter) for letter in "abc"]
    with pytest.raises(Killed):
        label(plain, Mortal("1", "2", "3"), asked, tmp_path)
    rest = Model("3")
    outcomes, _, _ = label(plain, rest, asked, tmp_path)
    assert [question.record.messages[0].text for question in rest.asked] == ["c"]
    assert [len(each.keys) for each in outcomes if each] == [1, 1, 1]


@pytest.mark.parametrize(
    ("think", "said", "taken"),
    [
        (False, "\n\nwords ", "words"),
        (False, "<think>\nhm\n</think>\n\nwords", "words"),
        (True, "hm\n</think>\n\nwords", "<think>\nhm\n</think>\n\nwords"),
        (True, "hm and no end", ""),
        (True, "hm\n</think>\n\n", ""),
    ],
)
def test_thoughts_are_kept_where_they_are_asked_for(
    thinker: ChatEncoder, think: bool, said: str, taken: str
) -> None:
    model = Model(said)
    outcomes, _, texts = label(thinker, model, [record("a")], think=think)
    assert texts == [taken]
    shown = prompt(thinker, model.asked[0])
    assert shown.endswith("<think>\n" if think else "<think>\n\n</think>\n\n")
    assert outcomes[0] is not None
    assert outcomes[0].left_out == (None if taken else "answer-empty")
    if taken:  # and a student is prompted as the large model was
        encoded = thinker.encode(with_answers(record("a"), [1], [taken]))
        begun = thinker.tokenizer.decode(encoded.input_ids[~encoded.trained])
        assert begun.startswith(shown)


@pytest.mark.parametrize(
    ("think", "said", "taken"),
    [
        (False, "words", "words"),
        (False, "<think>\nhm\n</think>\n\nwords", "words"),
        (True, "<think>\nhm\n</think>\n\nwords", "<think>\nhm\n</think>\n\nwords"),
        (True, "words", "<think>\n\n</think>\n\nwords"),
        (True, "<think>\nhm and no end", ""),
    ],
)
def test_thoughts_in_a_channel_are_begun_by_the_answer(
    tmp_path: Path, think: bool, said: str, taken: str
) -> None:
    """Asked for in front of the talk; a model that is asked may still answer at once."""
    encoder = ChatEncoder(load_processor(tiny_folder("gemma4", tmp_path / "model", layers=1, hidden=32)))
    model = Model(said)
    outcomes, _, texts = label(encoder, model, [record("a")], think=think)
    assert texts == [taken]
    shown = prompt(encoder, model.asked[0])
    assert ("<|think|>" in shown) == think
    assert shown.endswith("<|turn>model\n")
    assert [each.left_out for each in outcomes if each] == [None if taken else "answer-empty"]
    if taken:
        encoded = encoder.encode(with_answers(record("a"), [1], [taken]))
        assert encoder.tokenizer.decode(encoded.input_ids[~encoded.trained]) == shown


@pytest.mark.parametrize(
    ("think", "said", "taken"),
    [
        (False, "hm\n</think>\n\nwords", "words"),
        (True, "hm\n</think>\n\nwords", "<think>\nhm\n</think>\n\nwords"),
        (False, "hm and no end", ""),
    ],
)
def test_a_model_that_always_thinks_may_keep_its_thoughts_to_itself(
    brooder: ChatEncoder, think: bool, said: str, taken: str
) -> None:
    model = Model(said)
    outcomes, _, texts = label(brooder, model, [record("a")], think=think)
    assert texts == [taken]
    assert prompt(brooder, model.asked[0]).endswith("<think>\n")
    assert [each.left_out for each in outcomes if each] == [None if taken else "answer-empty"]
