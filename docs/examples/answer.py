"""Answer a question about a picture from an exported folder, with onnxruntime and no torch in the loop.

    python answer.py FOLDER PICTURE "What is in the picture?"

For Qwen2-VL, Qwen2.5-VL, Qwen3-VL, SmolVLM, Idefics3 and InternVL in the layout `transformers.js`. Needs onnxruntime,
numpy, pillow, tokenizers and jinja2.
"""

import json
import sys
from pathlib import Path

import jinja2
import numpy as np
import onnxruntime as ort
from PIL import Image
from tokenizers import Tokenizer


def pixels_of(picture: Image.Image, settings: dict) -> np.ndarray:
    """Normalized colours [height, width, 3]."""
    pixels = np.asarray(picture, np.float32) * settings.get("rescale_factor", 1 / 255)
    return ((pixels - np.array(settings["image_mean"])) / np.array(settings["image_std"])).astype(np.float32)


def patches_of(picture: Image.Image, settings: dict) -> tuple[np.ndarray, np.ndarray]:
    """Qwen: patches [N, values] and their grid [1, 3] (frames, rows, columns), as its own processor makes them."""
    patch, merge, frames = (settings[key] for key in ("patch_size", "merge_size", "temporal_patch_size"))
    size = settings.get("size", {})
    low = settings.get("min_pixels") or size["shortest_edge"]
    high = settings.get("max_pixels") or size["longest_edge"]
    edge = patch * merge
    width, height = (max(edge, round(side / edge) * edge) for side in picture.size)
    if width * height > high:
        scale = np.sqrt(picture.width * picture.height / high)
        width, height = (max(edge, int(side / scale // edge) * edge) for side in picture.size)
    elif width * height < low:
        scale = np.sqrt(low / (picture.width * picture.height))
        width, height = (int(np.ceil(side * scale / edge)) * edge for side in picture.size)
    picture = picture.convert("RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = height // patch, width // patch
    blocks = pixels_of(picture, settings)
    blocks = blocks.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # block row and column, place inside, channel, pixel
    one = blocks.reshape(rows * columns, 3, 1, patch * patch)
    patches = np.repeat(one, frames, axis=2).reshape(rows * columns, -1)
    return patches, np.array([[1, rows, columns]], np.int64)


def with_longest(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height with that longest side and the same proportions."""
    ratio = size[0] / size[1]
    return (longest, int(longest / ratio)) if ratio >= 1 else (int(longest * ratio), longest)


def cut(large: Image.Image, small: Image.Image, settings: dict) -> np.ndarray:
    """The large picture in tiles [T, 3, S, S] of the small one's size, row by row, and behind them the small one."""
    side, (columns, rows) = small.width, (n // small.width for n in large.size)
    tiles = pixels_of(small, settings)[None]
    if rows * columns > 1:
        grid = pixels_of(large, settings).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        tiles = np.concatenate([grid.reshape(-1, side, side, 3), tiles])
    return tiles.transpose(0, 3, 1, 2)


def nested_tiles_of(picture: Image.Image, settings: dict) -> tuple[np.ndarray, int, int]:
    """SmolVLM and Idefics3: tiles [1, T, 3, S, S], the whole picture last, and how many rows and columns they form.

    A picture that is one tile, by its size or since the settings do not want it split, has 0 rows and columns.
    """
    side, resample = settings["max_image_size"]["longest_edge"], settings["resample"]
    picture = picture.convert("RGB")
    width, height = with_longest(picture.size, settings["size"]["longest_edge"])
    even = (width, height + height % 2) if picture.width >= picture.height else (width + width % 2, height)
    picture = picture.resize((max(even[0], 1), max(even[1], 1)), resample)
    rows = columns = 1
    if settings["do_image_splitting"]:
        longest = -(-max(picture.size) // side) * side
        columns, rows = (-(-n // side) for n in with_longest(picture.size, longest))
        picture = picture.resize((columns * side, rows * side), resample)
    small = picture.resize((side, side), resample)
    if rows * columns == 1:
        return cut(small, small, settings)[None], 0, 0
    return cut(picture, small, settings)[None], rows, columns


def tiles_of(picture: Image.Image, settings: dict) -> np.ndarray:
    """InternVL: tiles [T, 3, S, S] in the grid whose shape is nearest to the picture's, and the whole picture last."""
    side, resample, most = settings["size"]["height"], settings["resample"], settings["max_patches"]
    picture = picture.convert("RGB")
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1)]
    best, nearest = (1, 1), np.inf
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        if settings["min_patches"] <= columns * rows <= most:
            off = abs(picture.width / picture.height - columns / rows)
            large = picture.width * picture.height > side**2 * columns * rows / 2
            if off < nearest or (off == nearest and large):
                best, nearest = (columns, rows), off
    large = picture.resize((best[0] * side, best[1] * side), resample)
    return cut(large, picture.resize((side, side), resample), settings)


def words_for(rows: int, columns: int, tokens: int) -> str:
    """SmolVLM and Idefics3: what stands in the prompt for a picture, with so many tokens a tile."""
    around, features = "<fake_token_around_image>", "<image>" * tokens
    lines = (
        "".join(f"{around}<row_{row + 1}_col_{column + 1}>{features}" for column in range(columns)) + "\n"
        for row in range(rows)
    )
    return "".join(lines) + ("\n" if rows else "") + f"{around}<global-img>{features}{around}"


def positions_of(ids: list[int], image_token: int, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """M-RoPE positions [3, 1, S] (time, row, column) of a prompt with one picture, and the next one."""
    start = ids.index(image_token)
    count = rows * columns
    before = np.tile(np.arange(start), (3, 1))
    inside = start + np.stack([np.zeros(count, int), *np.divmod(np.arange(count), columns)])
    after = start + max(rows, columns)  # text goes on past the largest position of the picture
    behind = np.tile(np.arange(after, after + len(ids) - start - count), (3, 1))
    return np.concatenate([before, inside, behind], axis=1)[:, None].astype(np.int64), int(behind[0, -1]) + 1


def answer(folder: Path, picture: Image.Image, question: str, max_new_tokens: int = 64) -> str:
    """The greedy answer."""
    names = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "generation_config.json")
    config, settings, words, ending = (json.loads((folder / name).read_text("utf-8")) for name in names)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = ending["eos_token_id"] if isinstance(ending["eos_token_id"], list) else [ending["eos_token_id"]]

    def load(name: str) -> ort.InferenceSession:
        return ort.InferenceSession(next((folder / "onnx").glob(f"{name}*.onnx")))

    vision, embed, decoder = (
        load(name) for name in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    )

    # The template writes one token for the picture; the model expects one for every feature.
    qwen = config["model_type"].startswith("qwen")
    if qwen:
        pixels, grid = patches_of(picture, settings)
        rows, columns = (int(n) // settings["merge_size"] for n in grid[0, 1:])
        features = vision.run(None, {"pixel_values": pixels, vision.get_inputs()[1].name: grid})[0]
        mark, expanded = "<|image_pad|>", "<|image_pad|>" * len(features)
    elif config["model_type"] == "internvl":
        features = vision.run(None, {"pixel_values": tiles_of(picture, settings)})[0]
        mark = "<IMG_CONTEXT>"
        expanded = f"<img>{mark * features.shape[0] * features.shape[1]}</img>"
    else:
        pixels, rows, columns = nested_tiles_of(picture, settings)
        whole = np.ones(pixels.shape[:2] + pixels.shape[3:], bool)  # no pixel is padding
        features = vision.run(None, {"pixel_values": pixels, "pixel_attention_mask": whole})[0]
        mark, expanded = "<image>", words_for(rows, columns, features.shape[1])

    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(words["chat_template"])
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = template.render(messages=talk, add_generation_prompt=True)
    ids = tokenizer.encode(prompt.replace(mark, expanded, 1), add_special_tokens=False).ids
    embeds = embed.run(None, {"input_ids": np.array([ids], np.int64)})[0]
    embeds[0, np.array(ids) == config["image_token_id"]] = features.reshape(-1, embeds.shape[-1])
    positions, place = np.arange(len(ids))[None], len(ids)
    if qwen:
        positions, place = positions_of(ids, config["image_token_id"], rows, columns)

    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    cache = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), kinds[value.type])
        for value in decoder.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    written: list[int] = []
    while len(written) < max_new_tokens:
        feeds = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((1, len(ids) + len(written)), np.int64),
            "position_ids": positions,
            "num_logits_to_keep": np.array(1, np.int64),
        }
        logits, *grown = decoder.run(None, feeds | cache)
        token = int(logits[0, -1].argmax())
        if token in ends:
            break
        written.append(token)
        cache = dict(zip(cache, grown, strict=True))
        embeds = embed.run(None, {"input_ids": np.array([[token]], np.int64)})[0]
        positions, place = np.full_like(positions[..., :1], place), place + 1
    return tokenizer.decode(written).strip()


if __name__ == "__main__":
    print(answer(Path(sys.argv[1]), Image.open(sys.argv[2]), sys.argv[3]))
