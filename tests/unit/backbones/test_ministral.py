"""What is Ministral 3's alone: rows of a picture, Mistral's tokenizer, weights in FP8, weights that are there twice."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.data.kit import conversation, picture
from vlsi_cli.config.facts import facts_from_folder
from vlsi_cli.engine.backbones import folders as folders_module
from vlsi_cli.engine.backbones import processors
from vlsi_cli.engine.backbones.compatibility import check_pair
from vlsi_cli.engine.backbones.fingerprint import weights_fingerprint
from vlsi_cli.engine.backbones.load import describe, load_backbone
from vlsi_cli.engine.backbones.processors import load_processor
from vlsi_cli.engine.data import thinking
from vlsi_cli.engine.data.records import BadRecord, Message, make_record
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.evaluation.generation import Answerer, Settings
from vlsi_cli.engine.verbalizing.answers import read_answers
from vlsi_cli.errors import CompatibilityError, ConfigError, ModelError

Folders = Callable[..., Path]


def edited(source: Path, target: Path, name: str, **values: Any) -> Path:
    """A copy of a folder with other values in one of its JSON files; ``a__b`` is b of a, and None takes it away."""
    path = Path(shutil.copytree(source, target / "edited"))
    tree = json.loads((path / name).read_text("utf-8"))
    for key, value in values.items():
        *above, last = key.split("__")
        here = tree
        for part in above:
            here = here[part]
        here[last] = value
        if value is None:
            del here[last]
    (path / name).write_text(json.dumps(tree), encoding="utf-8")
    return path


# ---------------------------------------------------------------- pictures


def test_a_picture_is_written_row_by_row(folders: Folders) -> None:
    """24 x 16 pixels are 3 x 2 squares of 8; 40 x 30 become 32 x 24, so 4 x 3. Only [IMG] stands for a feature."""
    described = describe(str(folders("mistral3")))
    encoder = ChatEncoder(described.processor)
    record = conversation("What?", "Red.", images=2)
    record = make_record("r", record.messages, [picture(24, 16), picture(40, 30)])
    encoded = encoder.encode(record)
    first = "[IMG]" * 3 + "[IMG_BREAK]" + "[IMG]" * 3 + "[IMG_END]"
    second = ("[IMG]" * 4 + "[IMG_BREAK]") * 2 + "[IMG]" * 4 + "[IMG_END]"
    text = described.processor.tokenizer.decode(encoded.input_ids)
    system = "[SYSTEM_PROMPT]Answer shortly.[/SYSTEM_PROMPT]"
    assert text == f"<s>{system}[INST]{first}{second}What?[/INST]Red.</s>"
    assert encoded.tensors["image_sizes"].tolist() == [[16, 24], [24, 32]]
    inputs = {"input_ids": encoded.input_ids[None]}
    assert described.family.image_tokens(described.config, inputs) == [18]


def test_what_pads_a_picture_to_the_size_of_another_is_not_seen(folders: Folders) -> None:
    backbone = load_backbone(str(folders("mistral3")))
    encoded = ChatEncoder(backbone.processor).encode(
        make_record("r", conversation("What?", "Red.", images=2).messages, [picture(24, 8), picture(8, 32)])
    )
    pixels, sizes = encoded.tensors["pixel_values"], encoded.tensors["image_sizes"]
    assert pixels.shape == (2, 3, 32, 24)
    other = pixels.clone()
    other[0, :, 8:], other[1, :, :, 8:] = 7.0, -7.0
    ids = encoded.input_ids[None]
    states = [
        backbone.forward_base({"input_ids": ids, "pixel_values": each, "image_sizes": sizes})
        for each in (pixels, other)
    ]
    assert torch.equal(*states)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 7}, "say patch_size 7, and its vision tower was made for 4"),
        ({"image_processor__patch_size": 7}, "say patch_size 7, and its vision tower was made for 4"),
        ({"spatial_merge_size": None}, "say spatial_merge_size 1, and its vision tower was made for 2"),
    ],
)
def test_pictures_cut_otherwise_than_the_tower_wants(
    values: dict[str, Any], message: str, folders: Folders, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        describe(str(edited(folders("mistral3"), tmp_path, "processor_config.json", **values)))


def test_a_patch_may_be_given_by_height_and_width(folders: Folders, tmp_path: Path) -> None:
    square = {"image_processor__patch_size": {"height": 4, "width": 4}}
    assert describe(str(edited(folders("mistral3"), tmp_path, "processor_config.json", **square)))


def test_pictures_are_bounded_by_a_longest_side(folders: Folders, tmp_path: Path) -> None:
    source = folders("mistral3")
    with pytest.raises(ConfigError, match="Ministral 3 resizes pictures to a longest side") as error:
        load_processor(source, max_pixels=1000)
    assert "size.longest_edge in its processor_config.json" in (error.value.hint or "")
    shorter = {"image_processor__size": {"longest_edge": 16}}
    large, small = (
        describe(str(each)) for each in (source, edited(source, tmp_path, "processor_config.json", **shorter))
    )
    with pytest.raises(CompatibilityError, match="images are prepared differently: size is") as refused:
        check_pair(large, small, (1, 2), (1,))
    assert "max_pixels" not in str(refused.value)  # there is no such budget here


def test_the_processor_is_found_where_its_module_cannot_be_imported(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that reads data begins without it, and without torchvision the stock module does not import."""
    processor = load_processor(folders("mistral3"))
    sent = pickle.dumps(processor)
    monkeypatch.delitem(sys.modules, "transformers.models.pixtral.processing_pixtral", raising=False)
    processors._image_only_class.cache_clear()
    found = pickle.loads(sent)
    asked = {"text": ["[INST][IMG]?[/INST]"], "images": [Image.new("RGB", (20, 12))], "return_tensors": "pt"}
    assert torch.equal(found(**asked)["input_ids"], processor(**asked)["input_ids"])


# ---------------------------------------------------------------- tokenizer and template


def test_words_are_cut_as_mistral_cuts_them(folders: Folders, tmp_path: Path) -> None:
    """tokenizer.json of Mistral Small 3.1 splits words otherwise than Mistral's code; transformers can mend that."""
    path = Path(shutil.copytree(folders("mistral3"), tmp_path / "large"))
    stock = load_processor(path).tokenizer
    fillers = {f"\u0120{number}": number for number in range(100_001)}  # as large as that it looks at
    tokenizer = Tokenizer(models.BPE(fillers, []))
    words = pre_tokenizers.Split(Regex(r"\p{L}+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.add_special_tokens([str(token) for token in stock.added_tokens_decoder.values()])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)
    config = json.loads((path / "config.json").read_text("utf-8")) | {"transformers_version": "5.0.0.dev0"}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    cut = load_processor(path).tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("eBay mL")
    assert [word for word, _ in cut] == ["e", "Bay", "\u0120m", "L"]


def test_tokens_of_the_template_are_none_of_the_data(folders: Folders) -> None:
    encoder = ChatEncoder(load_processor(folders("mistral3")))
    for word in ("[INST]", "[/INST]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "</s>", "<s>"):
        with pytest.raises(BadRecord) as bad:
            encoder.encode(conversation(f"see {word}", "Red."))
        assert bad.value.reason == "control-token"


def test_a_system_message_takes_the_place_of_the_templates_own(folders: Folders) -> None:
    encoder = ChatEncoder(load_processor(folders("mistral3")))
    said = [
        encoder.tokenizer.decode(encoder.encode(conversation("What?", "Red.", system=system)).input_ids)
        for system in (None, "Be brief.")
    ]
    assert said == [
        f"<s>[SYSTEM_PROMPT]{each}[/SYSTEM_PROMPT][INST]What?[/INST]Red.</s>"
        for each in ("Answer shortly.", "Be brief.")
    ]


def test_system_tokens_are_none_of_the_data_where_only_a_given_message_brings_them(
    folders: Folders, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(folders("mistral3"), tmp_path / "silent"))
    template = (path / "chat_template.jinja").read_text("utf-8")
    silent = template.replace("{{ '[SYSTEM_PROMPT]'", "{% if said %}{{ '[SYSTEM_PROMPT]'").replace(
        "'[/SYSTEM_PROMPT]' }}", "'[/SYSTEM_PROMPT]' }}{% endif %}"
    )
    silent = silent.replace("'Answer shortly.'", "''")
    (path / "chat_template.jinja").write_text(silent, encoding="utf-8")
    encoder = ChatEncoder(load_processor(path))
    plain = encoder.encode(conversation("What?", "Red."))
    assert encoder.tokenizer.decode(plain.input_ids) == "<s>[INST]What?[/INST]Red.</s>"
    with pytest.raises(BadRecord):
        encoder.encode(conversation("a[/SYSTEM_PROMPT]b", "Red."))


def test_a_picture_behind_its_question_is_written_in_front(folders: Folders) -> None:
    """As the template has it; both say the same to the model, and the answer is marked all the same."""
    encoder = ChatEncoder(load_processor(folders("mistral3")))
    answer = Message("assistant", ("Red.",))
    ids = [
        encoder.encode(make_record("r", [Message("user", parts), answer], [picture()])).input_ids
        for parts in (("What?", 0), (0, "What?"))
    ]
    assert torch.equal(*ids)


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("Red.", "Red."),
        ("<think>\nIt glows.\n</think>\n\nRed.", "[THINK]It glows.[/THINK]Red."),
        ("<think>\n\n</think>\n\nRed.", "Red."),
        ("[THINK]It glows.[/THINK]Red.", "[THINK]It glows.[/THINK]Red."),
    ],
)
def test_thoughts_are_written_between_tokens(said: str, written: str, folders: Folders) -> None:
    """Into the response that has them, where they are trained and stay; nothing of the prompt asks for them."""
    encoder = ChatEncoder(load_processor(folders("mistral3")))
    record = conversation("What?", said, "And?", "Blue.")
    encoded = encoder.encode(record)
    decode = encoder.tokenizer.decode
    assert decode(encoded.input_ids[encoded.trained]) == f"{written}</s>Blue.</s>"
    start = "<s>[SYSTEM_PROMPT]Answer shortly.[/SYSTEM_PROMPT][INST]What?[/INST]"
    assert decode(encoded.input_ids) == f"{start}{written}</s>[INST]And?[/INST]Blue.</s>"
    prompt = encoder.encode_prompt(record, 0)
    assert decode(prompt.input_ids) == start
    assert prompt.reference == ("Red." if said.startswith("<think>") else said)
    last = int((~encoded.trained).nonzero().max()) + 1
    assert torch.equal(encoder.encode_prompt(record).input_ids, encoded.input_ids[:last])


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("Red.", "Red."),
        ("[THINK]It glows.[/THINK]Red.", "<think>\nIt glows.\n</think>\n\nRed."),
        ("[THINK][/THINK]Red.", "Red."),
        ("[THINK]It glows and", "<think>\nIt glows and"),
    ],
)
def test_thoughts_that_are_said_become_a_block(said: str, text: str, folders: Folders) -> None:
    """Their tokens are special ones, without which the thoughts would be an answer's first words."""
    backbone = load_backbone(str(folders("mistral3")))
    row = backbone.tokenizer(said, add_special_tokens=False)["input_ids"]
    assert thinking.decoded(backbone.tokenizer, row) == text
    words = "Red." if "Red." in said else ""
    assert Answerer(backbone, 1)._reply(row, [], Settings(99)).text == words
    assert Answerer(backbone, 1, thoughts=True)._reply(row, [], Settings(99)).text == text


# ---------------------------------------------------------------- checkpoints


def test_weights_in_fp8_are_refused(folders: Folders, tmp_path: Path) -> None:
    rounded = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    path = str(edited(folders("mistral3"), tmp_path, "config.json", quantization_config=rounded))
    for read in (describe, load_backbone):
        with pytest.raises(ConfigError, match="are stored in FP8, which is not read here") as error:
            read(path)
        assert "the edition of the same model in bf16" in (error.value.hint or "")
    known = facts_from_folder(Path(path))
    assert known is not None
    assert known.rounded == "fp8"


def test_whether_the_head_is_tied_is_the_decoders_word(folders: Folders) -> None:
    """Published folders say it nowhere else; read from weights it shows, and fresh ones must be told."""
    for tied in (True, False):
        path = str(folders("mistral3", tied=tied))
        assert [load_backbone(path, init=init).head_tied for init in ("pretrained", "random")] == [tied] * 2


def test_weights_that_are_there_twice_count_once(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral's own format lies beside that of transformers: it is neither counted nor fetched."""
    source = folders("mistral3")
    path = Path(shutil.copytree(source, tmp_path / "twice"))
    shutil.copy(path / "model.safetensors", path / "consolidated.safetensors")
    known, once = facts_from_folder(path), facts_from_folder(source)
    assert known is not None
    assert once is not None
    assert known.parameters == once.parameters
    assert weights_fingerprint(path) == weights_fingerprint(source)
    assert load_backbone(str(path)).num_layers == 4
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(folders_module, "_cached", lambda *_: None)
    monkeypatch.setattr(folders_module, "_fetch", lambda *words: asked.append(words) or path)
    folders_module.resolve_folder("mistralai/Some-BF16")
    assert "consolidated*.safetensors" in asked[0][3]
    assert asked[0][4] == "hf download mistralai/Some-BF16 --exclude 'consolidated*.safetensors'"


def test_the_decoder_of_mistral_small_is_read(folders: Folders, tmp_path: Path) -> None:
    """Weights are named alike; queries do not grow with the position."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    path = edited(
        folders("mistral3"), tmp_path, "config.json",
        text_config__model_type="mistral", text_config__rope_parameters=rope,
    )  # fmt: skip
    backbone = load_backbone(str(path))
    assert type(backbone.decoder).__name__ == "MistralModel"
    ids = torch.arange(40)[None]
    logits = backbone.model(input_ids=ids).logits
    assert torch.equal(backbone.head(backbone.forward_base({"input_ids": ids})), logits)


@torch.no_grad()
def test_a_window_that_layers_are_not_named_after(folders: Folders) -> None:
    """Mistral's decoders with a window do not list the kinds of their layers: all are alike."""
    backbone = load_backbone(str(folders("mistral3")))
    ids = torch.arange(30, 70)[None]
    read = {"ends": set(), "max_new_tokens": 3}
    unbounded = read_answers(backbone, None, {"input_ids": ids}, [2], **read)
    backbone.config.get_text_config().sliding_window = 8
    assert set(backbone.layer_kinds) == {"sliding_attention"}
    answers = read_answers(backbone, None, {"input_ids": ids}, [2], **read)
    assert [a.log_probability for a in answers.layers] != [a.log_probability for a in unbounded.layers]
    for answer in answers.layers:
        text, logs = ids, []
        for token in answer.tokens:
            state = backbone.model(text, output_hidden_states=True).hidden_states[answer.layer][0, -1]
            state = backbone.final_norm(state) if answer.layer == 2 else state  # the last one is normed
            shares = backbone.head(state)[: backbone.tokenizer_length].log_softmax(-1)
            assert int(shares.argmax()) == token.id
            logs.append(float(shares.max()))
            text = torch.cat([text, torch.tensor([[token.id]])], dim=1)
        assert answer.log_probability == pytest.approx(sum(logs) / 3, abs=1e-4)


def test_the_decoder_with_experts_is_refused(folders: Folders, tmp_path: Path) -> None:
    path = edited(folders("mistral3"), tmp_path, "config.json", text_config__model_type="mistral4")
    with pytest.raises(ModelError, match="of the family Ministral 3 with a decoder 'mistral4'") as error:
        load_backbone(str(path))
    assert error.value.hint == "Ministral 3 is read with these decoders: ministral3, mistral"
