from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.unit.data.kit import encoded_bytes
from vlsi_cli.engine.data.images import ImageLimits, load_image
from vlsi_cli.engine.data.records import BadRecord, ImageRef

RED = Image.new("RGB", (8, 6), (255, 0, 0))


def noise(mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> Image.Image:
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


def reason_of(ref: ImageRef, limits: ImageLimits | None = None) -> str:
    with pytest.raises(BadRecord) as caught:
        load_image(ref, limits)
    return caught.value.reason


def from_bytes(data: bytes) -> Image.Image:
    return load_image(ImageRef(data=data))


# ---------------------------------------------------------------- paths


def test_path_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    RED.save(tmp_path / "a" / "x.png")
    assert load_image(ImageRef("a/x.png", tmp_path)).size == (8, 6)
    assert load_image(ImageRef("a/../a/x.png", tmp_path)).mode == "RGB"
    assert load_image(ImageRef(str(tmp_path / "a" / "x.png"), tmp_path)).size == (8, 6)


def test_paths_that_leave_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    RED.save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    for path in ("../secret.png", "link.png", "up/secret.png", str(tmp_path / "secret.png"), "/etc/passwd"):
        assert reason_of(ImageRef(path, root)) == "image-escape"
    # the same answer whether or not the file exists: nothing outside is probed
    assert reason_of(ImageRef("../nothing.png", root)) == "image-escape"


def test_without_a_root_there_is_nowhere_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RED.save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    assert reason_of(ImageRef("x.png")) == "image-escape"


@pytest.mark.parametrize("path", ["no.png", "", "a\0b.png", "x" * 5000, "folder"])
def test_missing(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    assert reason_of(ImageRef(path, tmp_path)) == "image-missing"


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert reason_of(ImageRef("pipe.png", tmp_path)) == "image-missing"


@pytest.mark.parametrize(
    "path",
    [
        "http://x.org/a.png",
        "https://x.org/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "hf://d/a",
    ],
)
def test_addresses(tmp_path: Path, path: str) -> None:
    assert reason_of(ImageRef(path, tmp_path)) == "image-url"


# ---------------------------------------------------------------- damaged, hostile


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_unreadable(data: bytes) -> None:
    assert reason_of(ImageRef(data=data)) == "image-unreadable"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated(format: str) -> None:
    data = encoded_bytes(noise(), format)
    assert reason_of(ImageRef(data=data[: len(data) // 2])) in ("image-damaged", "image-unreadable")


def test_truncated_png_is_damaged() -> None:
    data = encoded_bytes(noise())
    assert reason_of(ImageRef(data=data[: len(data) // 2])) == "image-damaged"


def test_truncated_is_damaged_whatever_another_library_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded_bytes(noise(), "PNG")
    assert reason_of(ImageRef(data=data[: len(data) // 2])) == "image-damaged"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_001, 9_500, 60_000])
def test_bombs_are_refused_by_their_header(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three sides stand below PIL's warning, between warning and error, and above its error."""

    def never(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    assert reason_of(ImageRef(data=png_header(side, side))) == "image-too-large"


def test_own_pixel_limit() -> None:
    data = encoded_bytes(RED)
    assert load_image(ImageRef(data=data), ImageLimits(max_pixels=48)).size == (8, 6)
    assert reason_of(ImageRef(data=data), ImageLimits(max_pixels=47)) == "image-too-large"
    assert reason_of(ImageRef(picture=RED), ImageLimits(max_pixels=47)) == "image-too-large"


def test_aspect_ratio() -> None:
    assert from_bytes(encoded_bytes(Image.new("RGB", (400, 2)))).size == (400, 2)
    assert reason_of(ImageRef(data=encoded_bytes(Image.new("RGB", (402, 2))))) == "image-aspect-ratio"
    assert reason_of(ImageRef(data=encoded_bytes(Image.new("RGB", (1, 201))))) == "image-aspect-ratio"


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded_bytes(frames[0], format, save_all=True, append_images=frames[1:])
    assert reason_of(ImageRef(data=data)) == "image-animated"


def test_second_view_of_a_photograph_is_not_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded_bytes(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert from_bytes(data).getpixel((4, 4))[0] > 250


def test_one_gif_frame_is_a_picture() -> None:
    assert from_bytes(encoded_bytes(RED, "GIF")).getpixel((0, 0)) == (255, 0, 0)


# ---------------------------------------------------------------- modes


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    decoded = from_bytes(encoded_bytes(Image.fromarray(values)))
    # 128 / 257 is 0.498 and rounds down; 32768 / 257 is 127.50
    assert [decoded.getpixel((x, 0)) for x in range(5)] == [(v, v, v) for v in (0, 0, 1, 128, 255)]


def test_modes_without_a_known_white() -> None:
    for dtype in (np.int32, np.float32):
        image = Image.fromarray(np.ones((4, 4), dtype=dtype))
        assert reason_of(ImageRef(data=encoded_bytes(image, "TIFF"))) == "image-mode"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    decoded = from_bytes(encoded_bytes(image.convert(mode)))
    assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == ((0, 0, 0), (255, 255, 255))


def test_transparent_palette_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    decoded = from_bytes(encoded_bytes(image, transparency=1))
    assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == ((255, 0, 0), (255, 255, 255))


@pytest.mark.parametrize(
    ("mode", "format"), [("CMYK", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("YCbCr", "JPEG")]
)
def test_other_modes_become_rgb(mode: str, format: str) -> None:
    decoded = from_bytes(encoded_bytes(Image.new("RGB", (8, 8), "white").convert(mode), format))
    assert decoded.mode == "RGB"
    assert min(decoded.getpixel((4, 4))) > 250


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 5, 10))  # left edge, which is the top once turned
    decoded = from_bytes(encoded_bytes(image, "PNG", exif=exif))
    assert decoded.size == (10, 20)
    assert (decoded.getpixel((5, 1)), decoded.getpixel((5, 18))) == ((255, 0, 0), (0, 0, 255))


def test_one_pixel() -> None:
    assert from_bytes(encoded_bytes(Image.new("RGB", (1, 1), "red"))).getpixel((0, 0)) == (255, 0, 0)
