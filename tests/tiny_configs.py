"""The shapes of the tiny models of :mod:`tests.tiny`, in their families' own config classes."""

from __future__ import annotations

from typing import Any

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
#: Gemma 4 comes in two kinds: small ones, and "gemma4 dense" as its 31B is.
GEMMA4 = ("gemma4", "gemma4 dense")
FAMILIES = (*QWEN, "llava_onevision", "internvl", "gemma3", *GEMMA4, "mistral3", "smolvlm", "idefics3")
#: With experts: they read texts and pictures as the families of their names do, and can teach only. InternVL's has
#: another decoder, Gemma 4's is dense beside them.
EXPERTS = ("qwen3_vl_moe", "qwen3_5_moe", "internvl_moe", "gemma4_moe")

#: Pixels of a patch's side, and of a tile's.
PATCH, TILE = 4, 16


def tiny_config(
    family: str,
    tokenizer: Any,
    ids: dict[str, int],
    *,
    layers: int,
    hidden: int,
    vocabulary_rows: int,
    tied: bool,
) -> Any:
    """The family's own config class at toy size: heads of 16, two vision layers, patches of 4 pixels."""
    import transformers as tf

    heads = max(hidden // 16, 1)
    end = tokenizer.eos_token_id
    text: dict[str, Any] = {
        "vocab_size": vocabulary_rows,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 2, 1),
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
        "tie_word_embeddings": tied,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end,
        "bos_token_id": None,
    }
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    tower |= {"patch_size": PATCH, "image_size": TILE}
    common = {"tie_word_embeddings": tied}
    mixed = family in EXPERTS
    if mixed:
        text |= {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": hidden // 4}
    if family.removesuffix("_moe") in QWEN:
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        if family.startswith("qwen3"):
            rope["mrope_interleaved"] = True
            text["head_dim"] = 16
        if family.startswith("qwen3_5"):
            # two kinds of layers, more value heads than key heads, half of a head rotated
            rope |= {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
            text |= {"full_attention_interval": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
            text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4}
        text["rope_parameters"] = rope
        if family == "qwen3_5_moe":
            text["shared_expert_intermediate_size"] = text.pop("intermediate_size") // 4
        vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2}
        if family == "qwen2_vl":
            vision |= {"embed_dim": 32, "hidden_size": hidden, "mlp_ratio": 2}
        else:
            vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": hidden}
        if family == "qwen2_5_vl":
            vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        if family.startswith("qwen3_vl"):
            vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        if family.startswith("qwen3_5"):
            vision |= {"num_position_embeddings": 16}
        cls = {"qwen2_vl": tf.Qwen2VLConfig, "qwen2_5_vl": tf.Qwen2_5_VLConfig, "qwen3_vl": tf.Qwen3VLConfig}
        cls |= {"qwen3_vl_moe": tf.Qwen3VLMoeConfig, "qwen3_5": tf.Qwen3_5Config}
        cls["qwen3_5_moe"] = tf.Qwen3_5MoeConfig
        return cls[family](
            text_config=text,
            vision_config=vision,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            **common,
        )
    if family == "llava_onevision":
        return tf.LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text},
            vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **tower},
            image_token_index=ids["<image>"],
            video_token_index=ids["<video>"],
            image_grid_pinpoints=pinpoints(),
            **common,
        )
    if family.removesuffix("_moe") == "internvl":
        return tf.InternVLConfig(
            text_config={"model_type": "qwen3_moe" if mixed else "qwen3", "head_dim": 16, **text},
            vision_config={**tower, "attention_bias": True},
            image_token_id=ids["<IMG_CONTEXT>"],
            image_seq_length=(TILE // PATCH // 2) ** 2,
            **common,
        )
    if family == "gemma3":
        text |= {
            "head_dim": 16,
            "sliding_window": 12,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 16,
        }
        return tf.Gemma3Config(
            text_config={**text, "bos_token_id": tokenizer.bos_token_id},
            vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **tower},
            mm_tokens_per_image=4,
            boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
            image_token_index=ids["<image_soft_token>"],
            **common,
        )
    if family in (*GEMMA4, "gemma4_moe"):
        return _gemma4_config(family, text, ids, tokenizer, tower, common)
    if family == "mistral3":
        # heads wider together than the states; queries grow from position 32 on
        rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 128.0, "llama_4_scaling_beta": 0.1}
        rope |= {"original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0}
        text |= {"head_dim": 32, "rope_parameters": rope | {"mscale": 1.0, "mscale_all_dim": 1.0}}
        return tf.Mistral3Config(
            text_config={"model_type": "ministral3", **text, "bos_token_id": tokenizer.bos_token_id},
            vision_config={"model_type": "pixtral", **tower, "image_size": 2 * TILE, "head_dim": 16},
            image_token_index=ids["[IMG]"],
            spatial_merge_size=2,
            vision_feature_layer=-1,
            **common,
        )
    cls = {"smolvlm": tf.SmolVLMConfig, "idefics3": tf.Idefics3Config}[family]
    return cls(
        text_config={"model_type": "llama", **text},
        vision_config=tower,
        image_token_id=ids["<image>"],
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        **common,
    )


def _gemma4_config(
    family: str, text: dict[str, Any], ids: dict[str, int], tokenizer: Any, tower: dict[str, Any], common: Any
) -> Any:
    """Two kinds of layers of unequal heads. The small kind has inputs of every layer, keys and values lent to the last
    layers, which are twice as wide inside, and an audio tower; the other one keys that are values, and pictures that
    see one another. Experts stand beside the feed-forward part of that kind."""
    import transformers as tf

    layers, small = text["num_hidden_layers"], family == "gemma4"
    kinds = [("sliding_attention", "full_attention")[n % 2] for n in range(layers - 1)] + ["full_attention"]
    text |= {"head_dim": 16, "global_head_dim": 32, "layer_types": kinds, "sliding_window": 12}
    text |= {"final_logit_softcapping": 3.0, "bos_token_id": tokenizer.bos_token_id}
    text |= {"hidden_size_per_layer_input": 64 * small, "vocab_size_per_layer_input": text["vocab_size"]}
    if small:
        text |= {"num_kv_shared_layers": max(0, layers - 2), "use_double_wide_mlp": True}
    else:
        text |= {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "use_bidirectional_attention": "vision",
        }
    if family == "gemma4_moe":
        text |= {"enable_moe_block": True, "top_k_experts": text.pop("num_experts_per_tok")}
    tower = {name: value for name, value in tower.items() if name != "image_size"}
    tower |= {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pooling_kernel_size": 2,
        "position_embedding_size": 160,
    }
    tower |= {"use_clipped_linears": small, "standardize": not small}
    audio = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32}
    return tf.Gemma4Config(
        text_config=text,
        vision_config=tower,
        audio_config=audio | {"subsampling_conv_channels": [8, 4]} if small else None,
        boi_token_id=ids["<|image>"],
        eoi_token_id=ids["<image|>"],
        image_token_id=ids["<|image|>"],
        boa_token_id=ids["<|audio>"],
        eoa_token_index=ids["<audio|>"],
        audio_token_id=ids["<|audio|>"],
        video_token_id=ids["<|video|>"],
        **common,
    )


def pinpoints() -> list[list[int]]:
    return [[TILE * r, TILE * c] for r in (1, 2) for c in (1, 2)]
