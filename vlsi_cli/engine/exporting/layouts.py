"""The two folders that runtimes load: which files they have, and the settings that go with the graphs.

``transformers.js``: ``onnx/vision_encoder.onnx``, ``onnx/embed_tokens.onnx`` and ``onnx/decoder_model_merged.onnx``
(with a suffix for the precision) below config, tokenizer and processor files, as the library finds them on the Hub.

``ort-genai``: ``vision.onnx``, ``embedding.onnx``, ``text.onnx``, ``genai_config.json``, and a
``processor_config.json`` of onnxruntime-genai's own kind. Qwen2-VL goes by the runtime's name of Qwen2.5-VL, which is
the same for pictures.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlsi_cli.engine.backbones.backbone import Backbone
from vlsi_cli.engine.backbones.processors import copy_processor_files

LayoutName = Literal["transformers.js", "ort-genai"]

#: Our word for a precision -> transformers.js's word, and the suffix of its files.
PRECISIONS = {
    "fp32": ("fp32", ""),
    "fp16": ("fp16", "_fp16"),
    "int8": ("q8", "_quantized"),
    "int4": ("q4", "_q4"),
}


#: Families whose positions have three parts (time, row, column).
MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

#: Families whose tiles follow each other, over all rows of a batch. transformers.js has no class for them.
TILED = ("internvl",)

#: Families whose tiles are nested in the rows of a batch, with a mask of their pixels.
NESTED = ("smolvlm", "idefics3")


def stacked_features(config: Any) -> int:
    """How many DeepStack features a picture has beside those in the places of its tokens: some in Qwen3-VL."""
    return len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())


@dataclass(frozen=True)
class Layout:
    """File names and graph interfaces of a runtime.

    Attributes:
        name: what it is called on the command line.
        vision, embedding, decoder: graph files without ending, relative to the folder.
        grid: name of the vision graph's input for the pictures' grids.
        merged: whether picture features are put in place inside the embedding graph.
        keep: whether the decoder takes ``num_logits_to_keep``.
    """

    name: LayoutName
    vision: str
    embedding: str
    decoder: str
    grid: str
    merged: bool
    keep: bool

    def files(self, precision: str) -> tuple[str, str, str]:
        """Vision, embedding and decoder file of a precision."""
        suffix = PRECISIONS[precision][1] if self.name == "transformers.js" else ""
        return tuple(f"{stem}{suffix}.onnx" for stem in (self.vision, self.embedding, self.decoder))  # type: ignore[return-value]


def layout_for(name: LayoutName, model_type: str) -> Layout:
    """The layout of one family; only Qwen2-VL's grid has another name in transformers.js."""
    if name == "ort-genai":
        return Layout(name, "vision", "embedding", "text", "image_grid_thw", merged=True, keep=False)
    grid = "grid_thw" if model_type == "qwen2_vl" else "image_grid_thw"
    stems = ("onnx/vision_encoder", "onnx/embed_tokens", "onnx/decoder_model_merged")
    return Layout(name, *stems, grid, merged=False, keep=True)


def write_settings(
    backbone: Backbone, folder: Path, layout: Layout, precision: str, data_files: dict[str, int]
) -> None:
    """Write everything of a layout but the graphs.

    Args:
        folder: where to.
        data_files: graph stem (``decoder_model_merged``) -> number of data files beside it.
    """
    copy_processor_files(backbone.folder, folder)
    if (backbone.folder / "generation_config.json").is_file():
        shutil.copyfile(backbone.folder / "generation_config.json", folder / "generation_config.json")
    config = json.loads((backbone.folder / "config.json").read_text(encoding="utf-8"))
    if layout.name == "transformers.js":
        # transformers 5 nests what the decoder is; transformers.js looks for it at the top for this family
        nested = config.get("text_config", {}) if config["model_type"] == "qwen2_vl" else {}
        config = {key: nested[key] for key in nested if key not in config} | config
        if config["model_type"] in NESTED:
            # a folder may leave out what the family takes for granted
            config.setdefault("image_token_id", backbone.image_token_id)
        config["transformers.js_config"] = {
            "dtype": PRECISIONS[precision][0],
            "use_external_data_format": data_files,
        }
        _write_processor(backbone, folder)
    else:
        _write(folder / "genai_config.json", _genai_config(backbone, layout))
        _write(folder / "processor_config.json", _genai_processor(backbone))
    _write(folder / "config.json", config)
    _write_tokenizer(backbone, folder, layout)


def _write_processor(backbone: Backbone, folder: Path) -> None:
    """Both files that tell how pictures are prepared; folders saved by transformers 5 have only one of them."""
    images, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    settings = json.loads(backbone.processor.image_processor.to_json_string())
    # the same preparation under the name that every version knows, with or without torchvision
    kind = str(settings["image_processor_type"]).removesuffix("Fast").removesuffix("Pil")
    # all of it, since what a file leaves out is on in transformers and off in transformers.js
    settings = {key: value for key, value in settings.items() if value is not None} | {
        "image_processor_type": kind
    }
    if images.is_file():
        settings |= json.loads(images.read_text(encoding="utf-8"))
    # transformers.js looks here for the class that joins pictures and text, and has one for all of the LLaVA kind;
    # transformers itself goes by the other file
    family = backbone.family.name
    llava = family == "llava_onevision"
    own = (
        "SmolVLMProcessor" if family == "smolvlm" else backbone.family.processor
    )  # read by Idefics3's twin here
    settings["processor_class"] = "LlavaProcessor" if llava else own
    _write(images, settings)
    joint = json.loads(whole.read_text(encoding="utf-8")) if whole.is_file() else {}
    joint.setdefault("processor_class", own)
    if family in NESTED:
        joint.setdefault("image_seq_len", backbone.processor.image_seq_len)
    if llava:
        # transformers.js shows the model one tile a picture: its patches and one line break
        vision = backbone.config.vision_config
        joint["patch_size"], joint["num_additional_image_tokens"] = vision.patch_size, 1
        joint["image_token"] = backbone.processor.image_token
    _write(whole, joint)


def _write_tokenizer(backbone: Backbone, folder: Path, layout: Layout) -> None:
    """The chat template inside ``tokenizer_config.json``, the one place where both runtimes look for it."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings["chat_template"] = backbone.processor.chat_template
    if layout.name == "ort-genai":
        settings["tokenizer_class"] = "Qwen2Tokenizer"
    _write(path, settings)


def _genai_config(backbone: Backbone, layout: Layout) -> dict[str, Any]:
    config: Any = backbone.config
    text: Any = config.get_text_config()
    tokenizer, own = backbone.tokenizer, backbone.model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    decoder_inputs = ("inputs_embeds", "attention_mask", "position_ids")
    return {
        "model": {
            "type": "qwen2_5_vl",
            "vocab_size": backbone.vocabulary_rows,
            "context_length": text.max_position_embeddings,
            "bos_token_id": own.bos_token_id if own.bos_token_id is not None else pad,
            "eos_token_id": ends,
            "pad_token_id": pad,
            "image_token_id": config.image_token_id,
            "video_token_id": config.video_token_id,
            "vision_start_token_id": config.vision_start_token_id,
            "decoder": {
                "filename": f"{layout.decoder}.onnx",
                "session_options": {"provider_options": []},
                "head_size": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
                "hidden_size": (1 + stacked_features(config)) * text.hidden_size,  # of the embeddings' rows
                "num_attention_heads": text.num_attention_heads,
                "num_hidden_layers": text.num_hidden_layers,
                "num_key_value_heads": text.num_key_value_heads,
                "inputs": {
                    **{name: name for name in decoder_inputs},
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
            "embedding": {
                "filename": f"{layout.embedding}.onnx",
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"},
            },
            "vision": {
                "filename": f"{layout.vision}.onnx",
                "spatial_merge_size": config.vision_config.spatial_merge_size,
                "tokens_per_second": 1.0,  # only videos have a second
                "inputs": {"pixel_values": "pixel_values", "image_grid_thw": layout.grid},
                "outputs": {"image_features": "image_features"},
            },
        },
        "search": {
            "do_sample": False,
            "max_length": text.max_position_embeddings,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": False,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


def _genai_processor(backbone: Backbone) -> dict[str, Any]:
    """The runtime's own description of how a picture becomes patches."""
    images: Any = backbone.processor.image_processor
    size = images.size
    sides = {"patch_size": images.patch_size, "merge_size": images.merge_size}
    low, high = size["shortest_edge"], size["longest_edge"]
    edge = images.patch_size * images.merge_size  # width and height are only a start: smart_resize decides
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("decode_image", "DecodeImage", {"color_space": "RGB"}),
        ("convert_to_rgb", "ConvertRGB", {}),
        ("resize", "Resize", {
            "interpolation": "CUBIC", "width": edge, "height": edge, "smart_resize": 1,
            "min_pixels": low, "max_pixels": high, **sides,
        }),
        ("rescale", "Rescale", {"rescale_factor": images.rescale_factor}),
        ("normalize", "Normalize", {
            "mean": list(images.image_mean), "std": list(images.image_std), "qwen2_5_vl": 1,
        }),
        ("patch_image", "PatchImage", {**sides, "temporal_patch_size": images.temporal_patch_size}),
    ]  # fmt: skip
    operations = [
        {"operation": {"name": name, "type": kind} | ({"attrs": attributes} if attributes else {})}
        for name, kind, attributes in steps
    ]
    return {"processor": {"name": "qwen2_5_image_processor", "transforms": operations}}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
