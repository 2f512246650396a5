"""The plan's memory and arithmetic against the layers of transformers themselves, on tensors without storage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

from vlsi_cli.config import flops, memory
from vlsi_cli.config.experts import Experts
from vlsi_cli.config.facts import LinearAttention, ModelFacts
from vlsi_cli.config.memory import Workload
from vlsi_cli.config.mixed import MixedLayers

SHAPES = [(512, 1024, 8, 2, 64), (768, 3000, 12, 12, 64)]
KINDS = {"fp32": (torch.float32, False), "mixed": (torch.float32, True), "bf16": (torch.bfloat16, True)}
LOAD = Workload(records=2, length=128, responses=26, image_tokens=64)


#: A decoder of this family with layers of linear attention only; the family mixes them with those of attention.
LINEAR = "qwen3_5 linear"
#: Decoders of Gemma 4 with layers of one kind: those with inputs of their own, those of them that read the keys of the
#: first layer, and those whose keys are values.
GEMMA4, INPUTS = ("gemma4", "gemma4 shared", "gemma4 dense"), 64


def facts(family: str, shape: tuple[int, int, int, int, int], layers: int) -> ModelFacts:
    hidden, ffn, heads, kv_heads, head_dim = shape
    return ModelFacts(
        name=family, model_type=family, layers=layers, hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, vocab=1000, tied=False, attention_bias=False, vision=0,
        qk_norm=family.startswith("qwen3") or family == "gemma3", norms=4 if family == "gemma3" else 2,
        gated=family.startswith("qwen3_5"),
        linear=LinearAttention(layers, kv_heads, heads, 32, 48, 4) if family == LINEAR else None,
        mixed=mixed(family, layers, kv_heads, head_dim) if family in GEMMA4 else None,
        experts=Experts(8, 2, ffn // 2) if family == "qwen3_vl_moe" else None,
    )  # fmt: skip


def mixed(family: str, layers: int, kv_heads: int, head_dim: int) -> MixedLayers:
    shared = layers - 1 if family == "gemma4 shared" else 0
    dense = family == "gemma4 dense"
    return MixedLayers(
        layers, head_dim, kv_heads, dense, shared, shared, 1, 0 if dense else INPUTS, 0 if dense else 1000
    )


def decoder(family: str, shape: tuple[int, int, int, int, int], layers: int, dtype: torch.dtype) -> Any:
    hidden, ffn, heads, kv_heads, head_dim = shape
    text: dict[str, Any] = {
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2, "head_dim": head_dim,
    }  # fmt: skip
    if family.startswith("qwen"):
        if family == "qwen3_vl_moe":
            text |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": ffn // 2}
        third = head_dim // 6
        sections = [head_dim // 2 - 2 * third, third, third]
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
        if family.startswith("qwen3_5"):
            text["layer_types"] = ["linear_attention" if family == LINEAR else "full_attention"] * layers
            text |= {"linear_num_key_heads": kv_heads, "linear_num_value_heads": heads}
            text |= {"linear_key_head_dim": 32, "linear_value_head_dim": 48}
            text["rope_parameters"] |= {"partial_rotary_factor": 1.0}
    elif family in GEMMA4:
        text |= {"global_head_dim": head_dim, "layer_types": ["full_attention"] * layers}
        text |= {"hidden_size_per_layer_input": INPUTS, "vocab_size_per_layer_input": 1000}
        if family == "gemma4 shared":
            text["num_kv_shared_layers"] = layers - 1
        if family == "gemma4 dense":
            text |= {"attention_k_eq_v": True, "num_global_key_value_heads": kv_heads}
            text["hidden_size_per_layer_input"] = 0
    elif family != "gemma3":
        text["model_type"] = {"llava_onevision": "qwen2", "mistral3": "ministral3"}.get(family, "llama")
    config = AutoConfig.for_model(family.split()[0], text_config=text).get_text_config()
    # by plain products, which are counted, and have sizes in fp32 too
    options = {"experts_implementation": "batched_mm"} if family == "qwen3_vl_moe" else {}
    return AutoModel.from_config(config, dtype=dtype, **options).train()


def kept(family: str, shape: tuple[int, int, int, int, int], layers: int, kind: str) -> tuple[int, int]:
    """Bytes that a decoder keeps for its backward, parameters apart, and its forward operations."""
    dtype, autocast = KINDS[kind]
    with FakeTensorMode():
        model = decoder(family, shape, layers, dtype)
        states = torch.empty(LOAD.records, LOAD.length, shape[0], dtype=dtype, requires_grad=True)
        more = {}
        if family in GEMMA4[:2]:
            more["per_layer_inputs"] = torch.empty(LOAD.records, LOAD.length, layers, INPUTS, dtype=dtype)
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        saved: dict[int, tuple[int, Any]] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = (storage.nbytes(), storage)  # holding it keeps its address its own
            return tensor

        counter = FlopCounterMode(display=False)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with counter, hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(inputs_embeds=states, use_cache=False, **more)
        return sum(size for size, _ in saved.values()), counter.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "family",
    [
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_5",
        LINEAR,
        "gemma3",
        *GEMMA4,
        "llava_onevision",
        "mistral3",
        "smolvlm",
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_layer_keeps(family: str, shape: tuple[int, int, int, int, int], kind: str) -> None:
    if family in (
        "qwen3_vl",
        "qwen3_5",
        "gemma3",
        *GEMMA4,
        "mistral3",
    ):  # heads that are not as wide together as the states
        shape = (*shape[:4], 96)
    if family == "gemma4 shared":  # keys of as many heads as queries need no copy for each layer
        shape = (*shape[:3], shape[2] // 4, 96)
    measured = kept(family, shape, 3, kind)[0] - kept(family, shape, 2, kind)[0]
    known = facts(family, shape, 3)
    layer = known.kinds[-1]
    planned = LOAD.tokens * memory.kept_per_token(known, kind, layer)
    weights = known.layer_parameters - 2 * known.hidden  # autocast copies the matrices
    if known.mixed:
        weights = known.mixed.parameters(layer, known.hidden) - 4 * known.hidden
    if family == LINEAR:
        planned = LOAD.tokens * memory.kept_linear_per_token(known, kind)
    planned += memory.cast_bytes(weights, kind)
    # Small tensors (rotary tables, the mask's row) are left out of the formula.
    assert planned == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize(
    "family",
    ["qwen2_vl", "qwen3_vl_moe", "qwen3_5", LINEAR, "gemma3", *GEMMA4, "llava_onevision", "mistral3"],
)
def test_operations_of_a_decoder(family: str) -> None:
    shape = SHAPES[0]
    measured = kept(family, shape, 2, "fp32")[1]
    known = facts(family, shape, 2)
    # torch counts no operations inside CPU attention and none of solving systems; without them both are sums of the
    # same matrix products, and the formula's norms (2 x hidden a layer) count as if they were matrices.
    uncounted = LOAD.tokens * known.attention_layers * 2 * LOAD.length * known.heads * known.head_dim
    if one := known.linear:
        uncounted += LOAD.tokens * one.layers * one.value_heads * 64 * (one.key_dim + one.value_dim)
    assert flops.decoder(known, LOAD) - uncounted == pytest.approx(measured, rel=0.002)


def test_checkpointing_keeps_the_inputs_of_layers() -> None:
    known = facts("qwen2_vl", SHAPES[0], 10)
    inputs, one = memory.backward_bytes(known, LOAD, "fp32", checkpointing=True)
    whole, moment = memory.backward_bytes(known, LOAD, "fp32", checkpointing=False)
    assert inputs == LOAD.tokens * 10 * 512 * 4
    assert one - moment == whole // 10


def test_tiles_stop_growing() -> None:
    sizes = [
        memory.tile_bytes(151_936, tokens, heads=2, narrow=True, on_cpu=False) for tokens in (64, 8192, 16384)
    ]
    most = memory.RECTANGLES + memory.KEPT_ROWS
    assert sizes == [3 * 2 * 64 * 151_936 * 4, most, most]


def test_budgets_are_those_of_the_losses() -> None:
    from vlsi_cli.engine.losses import pairs, rectangles

    assert (
        rectangles.TILE_BYTES_ACCELERATOR,
        rectangles.TILE_BYTES["cpu"],
    ) == (memory.RECTANGLES, memory.RECTANGLES_CPU)
    assert (
        rectangles.KEPT_BYTES_ACCELERATOR,
        rectangles.KEPT_BYTES["cpu"],
    ) == (memory.KEPT_ROWS, memory.KEPT_ROWS_CPU)
    assert (pairs.SUMS_BYTES_ACCELERATOR, pairs.SUMS_BYTES["cpu"]) == (memory.SUMS, memory.SUMS_CPU)
