"""Every layer's own answer, against an oracle that shares no code with it: no cache, no batch, no early exit.

The oracle is plain transformers: the whole model on the whole text for every single token, with all hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pairs import verbalizers as random_set
from tests.tiny import EXPERTS, FAMILIES, QWEN, tiny_folder
from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.branches import Branches
from vlsi_cli.engine.backbones.load import load_backbone
from vlsi_cli.engine.data.collate import collate_prompts
from vlsi_cli.engine.data.sources import PatternsSource
from vlsi_cli.engine.data.template import ChatEncoder
from vlsi_cli.engine.verbalizing import Verbalizers, decoder_layers_like
from vlsi_cli.engine.verbalizing.answers import Answers, read_answers
from vlsi_cli.engine.verbalizing.following import Recomputed, SharedPrompt, follow
from vlsi_cli.errors import ModelError

LAYERS, LONGEST = 4, 6
MODELS = (*FAMILIES, *EXPERTS, "demo/small", "demo/large")
DEMO_ENDS = {600, 601}  # of the demo pair: end of turn, end of text


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    loaded: dict[str, Backbone] = {}

    def get(name: str) -> Backbone:
        if name not in loaded:
            folder = tmp_path_factory.mktemp(name.replace("/", "-"))
            place = name if "/" in name else str(tiny_folder(name, folder, layers=LAYERS, hidden=64))
            loaded[name] = load_backbone(place)
        return loaded[name]

    return get


def prompt(backbone: Backbone, index: int = 12) -> dict[str, Tensor]:
    """A question about a picture of several rows: under M-RoPE its tokens outnumber the positions they take."""
    encoder = ChatEncoder(backbone.processor)
    encoded = encoder.encode_prompt(PatternsSource("test", size=20).read(index))
    return collate_prompts([encoded], encoder.pad_id).inputs


def extended(inputs: dict[str, Tensor], ids: list[int]) -> dict[str, Tensor]:
    """The prompt with tokens behind it, as the processor would have made it from the longer text."""
    new = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    new |= {name: [0] * len(ids) for name in ("mm_token_type_ids", "token_type_ids")}
    return inputs | {
        name: torch.cat([inputs[name], torch.tensor([row], dtype=inputs[name].dtype)], dim=1)
        for name, row in new.items()
        if name in inputs
    }


@torch.no_grad()
def oracle_logits(
    backbone: Backbone, sets: Verbalizers | None, inputs: dict[str, Tensor], layer: int
) -> Tensor:
    """[V] what a layer says behind the last token: stock forward pass, hidden state, verb-FFN by hand, norm, head."""
    model = backbone.model
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    state = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[layer][0, -1]
    if layer < backbone.num_layers:  # transformers gives the last one normed
        if sets is not None:
            tensors = sets.state_dict()
            gate, up, down = (tensors[f"layers.{layer}.0.{name}.weight"] for name in ("gate", "up", "down"))
            state = state + down @ (torch.nn.functional.silu(gate @ state) * (up @ state))
        state = backbone.final_norm(state)
    logits: Tensor = model.lm_head.weight @ state
    if backbone.family.name == "gemma4":
        logits = 3.0 * torch.tanh(logits / 3.0)  # its cap, as tests.tiny_configs has it
    return logits[: backbone.tokenizer_length]


def oracle(
    backbone: Backbone,
    sets: Verbalizers | None,
    inputs: dict[str, Tensor],
    layer: int,
    ends: set[int],
    longest: int,
) -> tuple[list[int], float, float]:
    """A layer's greedy tokens, their mean log-probability and the mean entropy of where they came from."""
    ids: list[int] = []
    logs, entropies = [], []
    while len(ids) < longest and not ends & set(ids):
        shares = oracle_logits(backbone, sets, extended(inputs, ids), layer).double().softmax(-1)
        ids.append(int(shares.argmax()))
        logs.append(math.log(float(shares.max())))
        entropies.append(-float((shares * shares.clamp_min(1e-300).log()).sum()))
    return ids, sum(logs) / len(logs), sum(entropies) / len(entropies)


def ids_of(answers: Answers) -> dict[int, list[int]]:
    return {answer.layer: [token.id for token in answer.tokens] for answer in answers.layers}


def uneven_end(answers: Answers) -> set[int]:
    """The token that, if it ended answers, would make their lengths most different."""
    rows = list(ids_of(answers).values())

    def lengths(end: int) -> set[int]:
        return {row.index(end) + 1 if end in row else len(row) for row in rows}

    return {max((token for row in rows for token in row), key=lambda token: len(lengths(token)))}


@pytest.mark.parametrize("trained", [False, True], ids=["lens", "verbalizers"])
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_one_generation_a_layer(
    name: str, trained: bool, backbones: Callable[[str], Backbone]
) -> None:
    backbone = backbones(name)
    inputs = prompt(backbone)
    layers = [2, 5, 8] if name == "demo/large" else list(range(1, backbone.num_layers))
    sets = random_set(backbone, tuple(layers)) if trained else None
    read = {"max_new_tokens": LONGEST}
    ends = uneven_end(read_answers(backbone, sets, inputs, layers, ends=set(), **read))
    assert isinstance(follow(backbone, sets, layers), SharedPrompt)
    answers = read_answers(backbone, sets, inputs, layers, ends=ends, **read)
    with torch.no_grad():
        backbone.forward_base(inputs)
    assert (backbone.text_offset < 0) == (name.removesuffix("_moe") in QWEN or "demo" in name)
    for answer in answers.layers:
        ids, log_probability, entropy = oracle(backbone, sets, inputs, answer.layer, ends, LONGEST)
        assert [token.id for token in answer.tokens] == ids
        # fp32 sums in another order, over some 300 to 700 words
        assert answer.log_probability == pytest.approx(log_probability, abs=1e-4)
        assert answer.entropy == pytest.approx(entropy, abs=1e-4)
        assert answer.complete == (ids[-1] in ends)
    found = list(ids_of(answers).values())
    assert len({tuple(row) for row in found}) > 1, "layers that all say the same would prove nothing"
    assert len({len(row) for row in found}) > 1, "nor would answers that are all equally long"


@pytest.mark.parametrize("name", MODELS)
def test_last_row_is_what_the_model_generates(name: str, backbones: Callable[[str], Backbone]) -> None:
    from transformers import GenerationConfig

    backbone = backbones(name)
    inputs = prompt(backbone, index=1)
    stops = backbone.model.generation_config.eos_token_id
    # Random weights may choose rows of the head that belong to no token; a trained model never does.
    padding = list(range(backbone.tokenizer_length, backbone.vocabulary_rows))
    greedy = GenerationConfig(
        max_new_tokens=12, do_sample=False, eos_token_id=stops, pad_token_id=stops[-1], bos_token_id=None
    )
    greedy.suppress_tokens = None if "/" in name else padding
    made = backbone.model.generate(**inputs, generation_config=greedy)
    answers = read_answers(backbone, None, inputs, [1, 3], ends=set(stops), max_new_tokens=12)
    assert ids_of(answers)[backbone.num_layers] == made[0, inputs["input_ids"].shape[1] :].tolist()
    assert [answer.layer for answer in answers.layers] == [1, 3, backbone.num_layers]


@pytest.mark.parametrize(
    "name", ["qwen3_vl", "qwen3_5", "gemma3", "gemma4", "mistral3", "smolvlm", "demo/large"]
)
def test_no_row_is_computed_past_its_layer(name: str, backbones: Callable[[str], Backbone]) -> None:
    backbone = backbones(name)
    inputs = prompt(backbone)
    last = backbone.num_layers
    chosen = [1, 3, last]
    first = read_answers(backbone, None, inputs, chosen, ends=set(), max_new_tokens=LONGEST)
    passed = [0] * last
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, n=number: passed.__setitem__(n, passed[n] + args[0].shape[:2].numel())
        )
        for number, layer in enumerate(backbone.layers)
    ]
    try:
        answers = read_answers(backbone, None, inputs, chosen, ends=uneven_end(first), max_new_tokens=LONGEST)
    finally:
        for handle in handles:
            handle.remove()
    lengths = {answer.layer: len(answer.tokens) for answer in answers.layers}
    wanted = [
        answers.prompt_tokens + sum(n - 1 for depth, n in lengths.items() if depth >= k)
        for k in range(1, last + 1)
    ]
    assert passed == wanted
    assert answers.layer_tokens == sum(passed)
    assert (
        answers.separate_layer_tokens == sum(answers.prompt_tokens + n - 1 for n in lengths.values()) * last
    )
    assert answers.prompt_tokens == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", ["qwen3_5", "gemma3", "gemma4", "mistral3", "demo/small"])
def test_an_answer_that_ends_leaves_the_others_as_they_are(
    name: str, backbones: Callable[[str], Backbone]
) -> None:
    """The deepest and one in the middle end: what is left is computed as if they had gone on."""
    backbone = backbones(name)
    together, left = (Branches(backbone, (1, 2, 3, 4)) for _ in range(2))
    states = {}
    with torch.no_grad():
        for branches, ended in ((together, ()), (left, (2, 4))):
            branches.begin(prompt(backbone))
            branches.advance({1: 21, 2: 22, 3: 23, 4: 24})
            branches.advance({depth: 30 + depth for depth in (1, 2, 3, 4) if depth not in ended})
            states[branches] = branches.advance(dict.fromkeys((1, 3), 40))
    assert list(states[left]) == [1, 2, 3]
    for depth, rows in states[left].items():
        assert len(rows) == 1 + (depth == 1)
        torch.testing.assert_close(rows, states[together][depth], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_may_say_the_token_of_a_picture(name: str, backbones: Callable[[str], Backbone]) -> None:
    """To the model it would mean one picture more; here, as in generation, it is a token like any other."""
    backbone = backbones(name)
    picture = backbone.family.image_token_id(backbone.config)
    ways = [way(backbone, None, [LAYERS]) for way in (SharedPrompt, Recomputed)]
    with torch.no_grad():
        for way in ways:
            way.begin(prompt(backbone))
            way.advance({LAYERS: picture})
        one, other = (way.advance({LAYERS: 30})[0][LAYERS] for way in ways)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_other_layers_do_not_change_an_answer(backbones: Callable[[str], Backbone]) -> None:
    backbone = backbones("demo/large")
    inputs = prompt(backbone)
    together = ids_of(read_answers(backbone, None, inputs, range(1, 10), ends=DEMO_ENDS, max_new_tokens=8))
    for layer in (1, 9):
        alone = ids_of(read_answers(backbone, None, inputs, [layer], ends=DEMO_ENDS, max_new_tokens=8))
        assert alone == {layer: together[layer], 10: together[10]}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_5", "gemma4", "llava_onevision"])
def test_decoder_verbalizers_read_the_whole_sequence(name: str, backbones: Callable[[str], Backbone]) -> None:
    backbone = backbones(name)
    inputs = prompt(backbone)
    sets = Verbalizers(
        (1, 3),
        backbone.hidden_size,
        64,
        "decoder",
        init="random",
        norm=backbone.final_norm,
        initializer_range=0.3,
        decoder_factory=decoder_layers_like(list(backbone.layers)),
    ).requires_grad_(False)
    assert isinstance(follow(backbone, sets, [1, 3, LAYERS]), Recomputed)
    answers = read_answers(backbone, sets, inputs, [1, 3], ends=set(), max_new_tokens=4, place=3)
    lens = read_answers(backbone, None, inputs, [1, 3], ends=set(), max_new_tokens=4)
    for layer in (1, 3):
        ids: list[int] = []
        for _ in range(4):
            with torch.no_grad(), backbone.tap([layer], calls=True) as tapped:
                backbone.forward_base(extended(inputs, ids))
                state = sets(layer, tapped[layer], tapped.call[layer])[0, -1]
                ids.append(int(backbone.head(state)[: backbone.tokenizer_length].argmax()))
        assert ids_of(answers)[layer] == ids
    assert ids_of(answers)[LAYERS] == ids_of(lens)[LAYERS]
    assert answers.layers[0].tokens != lens.layers[0].tokens  # their probabilities at least
    assert [row.layer for row in answers.candidates] == [1, 3, LAYERS]


@pytest.mark.parametrize("place", [1, 4])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_5", "gemma3", "gemma4", "mistral3", "idefics3"])
def test_candidates_are_read_along_the_final_answer(
    name: str, place: int, backbones: Callable[[str], Backbone]
) -> None:
    backbone = backbones(name)
    inputs = prompt(backbone)
    first = read_answers(backbone, None, inputs, [1, 2], ends=set(), max_new_tokens=5)
    # A layer whose own answer has ended before that place is read there all the same.
    ends = {ids_of(first)[1][0]} - set(ids_of(first)[LAYERS])
    answers = read_answers(backbone, None, inputs, [1, 2], ends=ends, max_new_tokens=5, place=place, top_k=3)
    text = extended(inputs, ids_of(answers)[LAYERS][: place - 1])
    assert [row.layer for row in answers.candidates] == [1, 2, LAYERS]
    for row in answers.candidates:
        shares, ids = oracle_logits(backbone, None, text, row.layer).softmax(-1).topk(3)
        assert [token.id for token in row.candidates] == ids.tolist()
        assert [token.probability for token in row.candidates] == pytest.approx(shares.tolist(), abs=1e-5)
    late = read_answers(backbone, None, inputs, [1], ends=set(), max_new_tokens=2, place=3)
    assert late.candidates == ()


def test_where_the_final_answer_comes_up(backbones: Callable[[str], Backbone]) -> None:
    answers = read_answers(
        backbones("demo/large"),
        None,
        prompt(backbones("demo/large")),
        range(1, 10),
        ends=DEMO_ENDS,
        max_new_tokens=20,
    )
    agreeing = [answer.layer for answer in answers.layers if answer.text == answers.layers[-1].text]
    assert agreeing == [answer.layer for answer in answers.layers if answer.agrees]
    assert answers.first == agreeing[0]
    gaps = [layer for layer in range(1, 11) if layer not in agreeing]
    assert answers.settled == max(gaps, default=0) + 1


def test_pieces_of_an_answer_make_up_its_text(backbones: Callable[[str], Backbone]) -> None:
    from vlsi_cli.engine.verbalizing.answers import _Draft, _tokens

    tokenizer: Any = backbones("demo/small").tokenizer
    ids = tokenizer("größe 日本 🙂")["input_ids"]
    draft = _Draft(ids=ids, log_probabilities=[0.0] * len(ids), entropies=[0.0] * len(ids))
    pieces = _tokens(tokenizer, draft, ends=())
    assert "".join(piece.text for piece in pieces) == "größe 日本 🙂"
    assert len(pieces) == len(ids) > 3


def test_layers_of_another_kind_take_the_slow_way(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_folder(QWEN[0], tmp_path)))
    backbone.config.get_text_config().layer_types[1] = "chunked_attention"
    assert isinstance(follow(backbone, None, [1, 4]), Recomputed)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_answers_on_a_gpu(dtype: torch.dtype) -> None:
    backbone = load_backbone("demo/large", device="cuda", dtype=dtype)
    inputs = {name: value.to("cuda") for name, value in prompt(backbone).items()}
    layers = range(1, 10)
    answers = read_answers(backbone, None, inputs, layers, ends=DEMO_ENDS, max_new_tokens=16)
    assert all(math.isfinite(answer.log_probability) for answer in answers.layers)
    if dtype == torch.float32:
        on_cpu = load_backbone("demo/large")
        wanted = read_answers(on_cpu, None, prompt(on_cpu), layers, ends=DEMO_ENDS, max_new_tokens=16)
        assert ids_of(answers) == ids_of(wanted)


def test_broken_weights_are_told(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_folder(QWEN[0], tmp_path)))
    with torch.no_grad():
        backbone.final_norm.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="gives numbers that are not finite"):
        read_answers(backbone, None, prompt(backbone), [1], ends=set(), max_new_tokens=2)
