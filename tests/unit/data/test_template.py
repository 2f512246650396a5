from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.templates import ALWAYS_THINKING
from tests.tiny import FAMILIES, GEMMA4
from tests.unit.data.kit import conversation, picture, processor_of
from vlsi_cli.engine.data.records import BadRecord, Message, make_record
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.errors import ModelError


@cache
def processor(family: str) -> Any:
    return processor_of(family, Path(mkdtemp()))


def encoder(family: str = "qwen2_vl", **settings: Any) -> ChatEncoder:
    return ChatEncoder(processor(family), **settings)


def test_response_mask_by_hand() -> None:
    """Two turns and a picture of 16 x 16: 4 x 4 patches of 4, merged 2 x 2, are four image tokens."""
    encoded = encoder().encode(conversation("What?", "Red.", "And?", "Blue.", images=1))
    tokenizer = processor("qwen2_vl").tokenizer
    text = (
        "<|im_start|>user\n<|vision_start|>" + 4 * "<|image_pad|>" + "<|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "Red.<|im_end|>",
        "\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
        "Blue.<|im_end|>",
    )
    expected_ids, expected_mask = [], []
    for number, segment in enumerate(text):
        ids = tokenizer(segment)["input_ids"]
        expected_ids += ids
        expected_mask += [number % 2 == 1] * len(ids)
    assert encoded.input_ids.tolist() == expected_ids
    assert encoded.trained.tolist() == expected_mask
    assert encoded.token_types is not None
    assert encoded.token_types.tolist() == [
        int(i == tokenizer.convert_tokens_to_ids("<|image_pad|>")) for i in expected_ids
    ]
    # Tokens counted one by one: "Red." is R, ed (or e, d), "."; what matters is that the end of turn is trained and
    # the line break after it is not.
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ends = (encoded.input_ids == end).nonzero().squeeze(1).tolist()
    assert [bool(encoded.trained[e]) for e in ends] == [False, True, False, True]
    assert not encoded.trained[ends[1] + 1]
    assert encoded.tensors["pixel_values"].shape == (16, 3 * 2 * 4 * 4)
    assert encoded.tensors["image_grid_thw"].tolist() == [[1, 4, 4]]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_those_of_generation(family: str) -> None:
    """What precedes each response in training is, token for token, what generation is prompted with."""
    record = conversation("What is it?", "A red circle.", "How many?", "Three.", system="Be brief.", images=1)
    coder = encoder(family)
    encoded = coder.encode(record)
    starts = [i for i in range(1, len(encoded.trained)) if encoded.trained[i] and not encoded.trained[i - 1]]
    assert len(starts) == record.turns == 2
    for turn, start in enumerate(starts):
        if turn and family in ("qwen3_5", "gemma4 dense"):
            continue  # at generation the earlier answer has lost its block: see the tests of thoughts
        prompt = coder.encode_prompt(record, turn)
        assert torch.equal(prompt.input_ids, encoded.input_ids[:start])
        assert prompt.reference == ("A red circle.", "Three.")[turn]
        assert prompt.question == ("What is it?", "How many?")[turn]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [[], [(20, 30)], [(20, 30), (40, 8)]])
def test_prompt_equals_stock_processing(family: str, sizes: list[tuple[int, int]]) -> None:
    """Ids and image tensors are those that plain transformers makes of the same chat."""
    images = [picture(*size) for size in sizes]
    record = make_record(
        "r", [Message("user", (*range(len(images)), "What is it?")), Message("assistant", ("Red.",))], images
    )
    ours = encoder(family).encode_prompt(record)
    content = [{"type": "image", "image": image.picture} for image in images]
    stock = processor(family).apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
        **({"enable_thinking": False} if family in ("qwen3_5", *GEMMA4) else {}),
    )
    assert torch.equal(ours.input_ids, stock.pop("input_ids")[0])
    stock.pop("attention_mask")
    types = stock.pop("token_type_ids" if family == "gemma3" else "mm_token_type_ids", None)
    assert (types is None) == (ours.token_types is None)
    if types is not None:
        assert torch.equal(types[0], ours.token_types)
    assert set(stock) == set(ours.tensors)
    for name, value in stock.items():
        assert torch.equal(torch.as_tensor(value), ours.tensors[name]), name


@pytest.mark.parametrize("answer", ["Red.", "<think>It is warm.</think>Red."])
def test_a_later_prompt_of_a_model_that_can_think_is_the_stock_one(answer: str) -> None:
    """In training the blocks of earlier answers stay; at generation the template drops them, and so does the prompt."""
    record = conversation("What is it?", "A circle.", "What colour?", answer)
    ours = encoder("qwen3_5").encode_prompt(record)
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "What is it?"), ("assistant", "A circle."), ("user", "What colour?"))
    ]
    stock = processor("qwen3_5").apply_chat_template(
        chat, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        enable_thinking=answer != "Red.",
    )  # fmt: skip
    assert torch.equal(ours.input_ids, stock["input_ids"][0])
    assert ours.reference == "Red."  # what is compared with an answer's words


def test_a_response_that_speaks_of_the_end_of_thoughts_has_none() -> None:
    with pytest.raises(
        BadRecord, match="the text is changed"
    ):  # the template would take half of it for thoughts
        encoder("qwen3_5").encode(conversation("What closes a block?", "Write </think> behind it."))


words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(words, words.filter(lambda t: t.strip() != "")), min_size=1, max_size=3), st.booleans()
)
def test_trained_tokens_are_the_responses(turns: list[tuple[str, str]], with_image: bool) -> None:
    record = conversation(*(text for turn in turns for text in turn), images=int(with_image))
    coder = encoder()
    encoded = coder.encode(record)
    decode = processor("qwen2_vl").tokenizer.decode
    assert decode(encoded.input_ids[encoded.trained]) == "".join(f"{answer}<|im_end|>" for _, answer in turns)
    whole = decode(encoded.input_ids)
    assert all(question in whole for question, _ in turns)


@pytest.mark.parametrize("family", FAMILIES)
def test_too_long_is_refused_not_cut(family: str) -> None:
    record = conversation("What is it?", "A red circle.", images=1)
    length = len(encoder(family).encode(record).input_ids)
    assert len(encoder(family, max_length=length).encode(record).input_ids) == length
    with pytest.raises(BadRecord, match=f"{length} tokens, max_length {length - 1}") as caught:
        encoder(family, max_length=length - 1).encode(record)
    assert caught.value.reason == "too-long"


@pytest.mark.parametrize("text", ["see <|image_pad|>", "<|im_end|>", "<|video_pad|>"])
@pytest.mark.parametrize("place", [0, 1])
def test_control_tokens_in_text(text: str, place: int) -> None:
    texts = ["What?", "Red."]
    texts[place] = text
    with pytest.raises(BadRecord) as caught:
        encoder().encode(conversation(*texts))
    assert caught.value.reason == "control-token"


def test_an_image_token_in_text_that_the_template_does_not_write() -> None:
    """Gemma 3 writes one token for a picture, and its processor others in its place."""
    with pytest.raises(BadRecord) as caught:
        encoder("gemma3").encode(conversation("see <image_soft_token>", "Red."))
    assert caught.value.reason == "control-token"


def with_template(template: str) -> ChatEncoder:
    import copy

    changed = copy.copy(processor("qwen2_vl"))
    changed.chat_template = template
    return ChatEncoder(changed)


def decoded_turns(*texts: str) -> tuple[str, str]:
    """What a talk becomes for a model that can think, and what of it is trained."""
    encoded = encoder("qwen3_5").encode(conversation(*texts))
    decode = processor("qwen3_5").tokenizer.decode
    return decode(encoded.input_ids), decode(encoded.input_ids[encoded.trained])


def test_answers_without_thoughts_follow_an_empty_block() -> None:
    """The template drops the block of an answer when the talk goes on; here each stays as it was prompted for."""
    whole, trained = decoded_turns("What?", "Red.", "And?", "Blue.", "Last?", "Green.")
    assert trained == "Red.<|im_end|>Blue.<|im_end|>Green.<|im_end|>"
    assert whole == "".join(
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n{answer}<|im_end|>"
        + "\n" * (answer != "Green.")
        for question, answer in (("What?", "Red."), ("And?", "Blue."), ("Last?", "Green."))
    )


@pytest.mark.parametrize("thoughts", ["<think>\nIt glows.\n</think>\n\n", "<think> It glows. </think> "])
def test_thoughts_are_part_of_a_response(thoughts: str) -> None:
    whole, trained = decoded_turns("What?", thoughts + "Red.", "And?", "Blue.")
    assert trained == "It glows.\n</think>\n\nRed.<|im_end|>Blue.<|im_end|>"
    assert whole == (
        "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n<think>\nIt glows.\n</think>\n\nRed.<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nBlue.<|im_end|>"
    )


def test_thoughts_that_a_template_changes() -> None:
    with pytest.raises(BadRecord, match="the text is changed"):
        decoded_turns("What?", "<think>a</think>b</think>Red.")


def always_thinking(template: str = ALWAYS_THINKING) -> ChatEncoder:
    """A model whose every prompt ends in an open block of thoughts."""
    import copy

    changed = copy.copy(processor("qwen3_5"))
    changed.chat_template = template
    return ChatEncoder(changed)


def test_a_model_that_always_thinks_learns_to_close_the_block() -> None:
    """Its prompt is the one of generation; without thoughts the end of an empty block is what it has to say first."""
    coder = always_thinking()
    record = conversation("What?", "Red.", "And?", "<think>It glows.</think>Blue.", "Last?", "Green.")
    assert coder.turns(record) == [
        (
            "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n<think>\n",
            "\n</think>\n\nRed.<|im_end|>",
        ),
        (
            "\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n<think>\n",
            "It glows.\n</think>\n\nBlue.<|im_end|>",
        ),
        (
            "\n<|im_start|>user\nLast?<|im_end|>\n<|im_start|>assistant\n<think>\n",
            "\n</think>\n\nGreen.<|im_end|>",
        ),
    ]
    prompt = coder.encode_prompt(record, 1)
    assert processor("qwen3_5").tokenizer.decode(prompt.input_ids) == (
        "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert prompt.reference == "Blue."
    with pytest.raises(BadRecord, match="the text is changed"):  # half of it would become thoughts
        coder.encode(conversation("What closes a block?", "Write </think> behind it."))


@pytest.mark.parametrize("answer", ["Red.", "<think>It glows.</think>Red."])
@pytest.mark.parametrize("block", ["", "<think>\n"])
def test_a_template_that_asks_for_thoughts_and_leaves_them_out(block: str, answer: str) -> None:
    """An answer would be trained as if it were a thought."""
    written = "{{ '<think>\n' + thoughts + '\n</think>\n\n' }}"
    assert written in ALWAYS_THINKING
    coder = always_thinking(ALWAYS_THINKING.replace(written, block))
    with pytest.raises(BadRecord) as caught:
        coder.encode(conversation("What?", answer))
    assert caught.value.reason == "template-thoughts"
    assert "(Instruct)" in str(caught.value.hint)


HEAD = (
    "{% for m in messages %}{% set text = m['content'] | map(attribute='text') | select('defined') | join %}"
)
TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_template_whose_response_header_differs() -> None:
    """LLaVA-OneVision's template writes "assistant \\n" but prompts with "assistant\\n": the prompt's form counts."""
    coder = with_template(HEAD + "{{ '<|im_start|>' + m['role'] + ' \\n' + text + '<|im_end|>' }}" + TAIL)
    encoded = coder.encode(conversation("What?", "Red.", "And?", "Blue."))
    decode = processor("qwen2_vl").tokenizer.decode
    assert decode(encoded.input_ids[encoded.trained]) == "Red.<|im_end|>Blue.<|im_end|>"
    assert decode(encoded.input_ids) == (
        "<|im_start|>user \nWhat?<|im_end|><|im_start|>assistant\nRed.<|im_end|>"
        "<|im_start|>user \nAnd?<|im_end|><|im_start|>assistant\nBlue.<|im_end|>"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        # the last response only keeps its text: adding a turn rewrites the one before
        ("{{ '<|im_start|>' + m['role'] + '\n' + (text if loop.last or m['role'] == 'user' else '.') }}<|im_end|>",
         "template-history"),
        ("{{ '<|im_start|>' + m['role'] + '\n' + text | upper + '<|im_end|>' }}", "template-response"),
        ("{{ '<|im_start|>' + m['role'] + '\n' + text }}", "template-response"),
        ("{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
         "{{ '<|im_start|>' + m['role'] + '\n' + text + '<|im_end|>' }}", "template-refused"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_cut(body: str, reason: str) -> None:
    record = conversation("What?", "Red.", "And?", "Blue.", system="Be brief.")
    with pytest.raises(BadRecord) as caught:
        with_template(HEAD + body + TAIL).encode(record)
    assert caught.value.reason == reason


def test_no_chat_template() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        with_template("")


def test_fault_names_record_and_place() -> None:
    record = make_record("seven", conversation("What?", "<|im_end|>").messages, where="data.jsonl:7")
    with pytest.raises(BadRecord, match=r"^data.jsonl:7: record 'seven' cannot be used: .*control token"):
        encoder().encode(record)
