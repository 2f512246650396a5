"""Decoding images that nobody vouches for.

Every image becomes 8-bit RGB, upright. What would need a guess is refused with a reason instead: animations,
32-bit and floating-point pixels. The size is read from the header and checked *before* any pixel is decoded.
A path may not leave its folder, not even through a symbolic link; an address is refused unless the caller can fetch it.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from vlsi_cli.engine.data.addresses import shown
from vlsi_cli.engine.data.records import BadRecord, ImageRef

Result = TypeVar("Result")

#: Raster formats only; PostScript and the like would start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_URL = re.compile(r"^([a-z][a-z0-9+.-]+://|data:|file:)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is refused by its header alone.

    Attributes:
        max_pixels: width times height; 64 million is an 8000 x 8000 picture, 192 MB once decoded.
        max_aspect_ratio: long side over short side; Qwen2-VL's own processor refuses more than 200.
    """

    max_pixels: int = 64_000_000
    max_aspect_ratio: float = 200.0


#: Gives the bytes at an address, or raises BadRecord.
Fetch = Callable[[str], bytes]


def is_address(ref: ImageRef) -> bool:
    """Whether a reference is an address rather than a path, of whatever scheme."""
    return ref.path is not None and _URL.match(ref.path) is not None


def load_image(ref: ImageRef, limits: ImageLimits | None = None, fetch: Fetch | None = None) -> Image.Image:
    """The decoded picture, 8-bit RGB and upright (EXIF orientation applied).

    Transparency is laid on white. 16-bit grey is scaled to 8 bits (65535 becomes 255); grey, palette and CMYK
    are converted by PIL.

    Args:
        fetch: what gives the bytes at an address; None refuses addresses.

    Raises:
        BadRecord: with one of the ``image-*`` reasons.
    """
    return _with_picture(ref, limits or ImageLimits(), fetch, _pixels)


def image_size(
    ref: ImageRef, limits: ImageLimits | None = None, fetch: Fetch | None = None
) -> tuple[int, int]:
    """Width and height of what :func:`load_image` gives, by the header alone.

    Raises:
        BadRecord: as :func:`load_image`, for what a header shows.
    """
    return _with_picture(ref, limits or ImageLimits(), fetch, _upright_size)


def image_kind(data: bytes, limits: ImageLimits | None = None) -> str:
    """The ending that a file of these bytes should have, by their header: ``png``, ``jpeg`` and so on.

    Raises:
        BadRecord: as :func:`load_image`, for what a header shows.
    """

    def named(picture: Image.Image, name: str) -> str:
        return "jpeg" if picture.format == "MPO" else str(picture.format).lower()

    return _with_picture(ImageRef(data=data), limits or ImageLimits(), None, named)


def _with_picture(
    ref: ImageRef, limits: ImageLimits, fetch: Fetch | None, use: Callable[[Image.Image, str], Result]
) -> Result:
    """What ``use`` makes of the opened picture and its name in messages."""
    if ref.picture is not None:
        _check_size(ref.picture.size, limits, "picture")
        return use(ref.picture, "picture")
    if ref.data is not None:
        return _open(io.BytesIO(ref.data), f"{len(ref.data)} bytes", limits, use)
    if fetch is not None and ref.path is not None and is_address(ref):
        return _open(io.BytesIO(fetch(ref.path)), shown(ref.path), limits, use)
    path = locate(ref)
    try:
        with path.open("rb") as file:
            return _open(file, str(ref.path), limits, use)
    except OSError as error:
        raise BadRecord("image-unreadable", f"{ref.path}: {error.strerror or error}") from error


def locate(ref: ImageRef) -> Path:
    """The file a reference means, symbolic links resolved.

    Raises:
        BadRecord: an address, a path outside ``ref.root``, or no such regular file.
    """
    text = ref.path or ""
    if _URL.match(text):
        raise BadRecord("image-url", shown(text))
    if ref.root is None:
        raise BadRecord("image-escape", f"{text[:80]}: these data have no image folder")
    root = ref.root.resolve()
    try:
        path = (root / text).resolve()
        inside, exists = path.is_relative_to(root), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL byte, a name too long, a loop of links
        raise BadRecord("image-missing", f"{text[:80]!r}: {error}") from error
    if not inside:
        raise BadRecord("image-escape", f"{text} is not inside {root}")
    if not exists:
        raise BadRecord("image-missing", text)
    return path


def _check_size(size: tuple[int, int], limits: ImageLimits, name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadRecord("image-unreadable", f"{name}: {width} x {height}")
    if width * height > limits.max_pixels:
        raise BadRecord("image-too-large", f"{name}: {width} x {height}, limit {limits.max_pixels} pixels")
    if max(size) > limits.max_aspect_ratio * min(size):
        raise BadRecord("image-aspect-ratio", f"{name}: {width} x {height}")


def _open(
    file: IO[bytes], name: str, limits: ImageLimits, use: Callable[[Image.Image, str], Result]
) -> Result:
    with warnings.catch_warnings(), _no_truncated_images():
        # PIL warns of large pictures, odd metadata and palettes; size is checked here.
        warnings.simplefilter("ignore")
        try:
            Image.init()
            picture = Image.open(file, formats=[known for known in FORMATS if known in Image.OPEN])
        except Image.DecompressionBombError as error:
            raise BadRecord("image-too-large", f"{name}: {error}") from error
        except UnidentifiedImageError as error:
            raise BadRecord("image-unreadable", name) from error
        except Exception as error:  # hostile headers make decoders raise anything
            raise BadRecord("image-unreadable", f"{name}: {error}") from error
        with picture:
            _check_size(picture.size, limits, name)
            try:
                # MPO is a JPEG whose second frame is another view or a preview of the same photograph.
                frames = 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))
                if frames > 1:
                    raise BadRecord("image-animated", f"{name}: {frames} frames")
                return use(picture, name)
            except BadRecord:
                raise
            except Exception as error:  # so do hostile pixels
                raise BadRecord("image-damaged", f"{name}: {error}") from error


@contextmanager
def _no_truncated_images() -> Iterator[None]:
    """A cut file is damaged, whatever else in the process says: lmms-eval lets PIL fill it up with grey for all."""
    kept, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = kept


def _pixels(picture: Image.Image, name: str) -> Image.Image:
    picture.load()
    return _to_rgb(picture, name)


def _upright_size(picture: Image.Image, name: str) -> tuple[int, int]:
    width, height = picture.size
    # Looking for what is not in the header would decode the pixels of a PNG.
    sideways = "exif" in picture.info and picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if sideways else (width, height)


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise BadRecord("image-mode", f"{name}: mode {picture.mode}")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")
