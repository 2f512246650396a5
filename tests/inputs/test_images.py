"""Pictures that nobody vouches for: each is decoded, or its record named with a documented reason."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tests.image_server import HOST, PUBLIC, ImageServer, leads_to, raw, says
from tests.inputs.kit import ends_well, vlsi
from vlsi_cli.engine.data import fetching
from vlsi_cli.engine.data.records import REASONS

EXAMPLES = 60
RED = Image.new("RGB", (40, 32), "red")
NOISE = Image.effect_noise((64, 64), 90).convert("RGB")
USED = "used"
BAD = ("image-unreadable", "image-damaged")


def saved(picture: Image.Image = RED, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes = b"", depth: int = 8, colour: int = 2, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def texts(count: int, size: int) -> bytes:
    """A PNG whose compressed notes unfold to ``count * size`` bytes."""
    notes = PngImagePlugin.PngInfo()
    for number in range(count):
        notes.add_text(f"k{number}", "a" * size, zip=True)
    return saved(pnginfo=notes)


def bmp(rows: int) -> bytes:
    """A BMP that says that it has so many rows; a negative number means from the top."""
    whole = saved(RED, "BMP")
    return whole[:22] + struct.pack("<i", rows) + whole[26:]


def two(format: str) -> bytes:
    """A file of two pictures."""
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    return saved(first, format, save_all=True, append_images=[second])


#: Content of the file -> the reasons that may be given; ``USED`` where the picture can be used.
CONTENTS: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "nothing": (lambda: b"", ("image-unreadable",)),
    "text": (lambda: b"hello" * 99, ("image-unreadable",)),
    "a pickle": (lambda: b"\x80\x04\x95\x20\x00\x00\x00cposix\nsystem\n", ("image-unreadable",)),
    "a ZIP": (lambda: b"PK\x03\x04" + b"\0" * 200, ("image-unreadable",)),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", ("image-unreadable",)),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ("image-unreadable",)),
    "PDF": (lambda: b"%PDF-1.7\n", ("image-unreadable",)),
    "an icon": (lambda: saved(RED.resize((16, 16)), "ICO"), ("image-unreadable",)),
    "PNG, its signature": (lambda: saved()[:8], ("image-unreadable",)),
    "PNG, half": (lambda: saved(NOISE)[:900], ("image-damaged",)),
    "PNG, no pixels": (lambda: png(40, 32), ("image-damaged",)),
    "PNG, other pixels": (lambda: png(40, 32, zlib.compress(b"\0" * 7)), ("image-damaged",)),
    "PNG, pixels that are not compressed": (lambda: png(40, 32, b"junk" * 9), ("image-damaged",)),
    "PNG of no width": (lambda: png(0, 32), BAD),
    "PNG of no height": (lambda: png(40, 0), BAD),
    "PNG of 2^31 pixels a side": (lambda: png(2**31 - 1, 2**31 - 1), ("image-too-large",)),
    "PNG of 2^32 pixels a side": (lambda: png(2**32 - 1, 2**32 - 1), ("image-too-large", "image-unreadable")),
    "PNG of 20,000 pixels a side": (lambda: png(20_000, 20_000, zlib.compress(b"\0" * 999)), ("image-too-large",)),
    "PNG that unfolds to 200 MB": (lambda: png(40, 32, zlib.compress(b"\0" * 200_000_000, 9)), (USED, "image-damaged")),
    "PNG, colour type 9": (lambda: png(40, 32, b"", 8, 9), BAD),
    "PNG, 3 bits": (lambda: png(40, 32, b"", 3, 2), BAD),
    "PNG, notes of 64 MB": (lambda: texts(1, 64_000_000), BAD),
    "PNG, many notes": (lambda: texts(90, 1_000_000), BAD),
    "PNG, long profile": (
        lambda: png(40, 32, b"", 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 50_000_000))),
        BAD,
    ),
    "PNG, animated": (lambda: two("PNG"), ("image-animated",)),
    "PNG, 16 bits": (lambda: saved(Image.new("I;16", (40, 32), 900)), (USED,)),
    "PNG, palette": (lambda: saved(RED.convert("P")), (USED,)),
    "PNG, one bit": (lambda: saved(RED.convert("1")), (USED,)),
    "PNG, transparent": (lambda: saved(RED.convert("RGBA")), (USED,)),
    "GIF": (lambda: saved(RED, "GIF"), (USED,)),
    "GIF, animated": (lambda: two("GIF"), ("image-animated",)),
    "GIF of no size": (lambda: b"GIF89a" + b"\0" * 20, BAD),
    "GIF of 65,535 pixels a side": (
        lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x00;",
        ("image-too-large",),
    ),
    "WebP": (lambda: saved(RED, "WEBP"), (USED,)),
    "WebP, half": (lambda: saved(NOISE, "WEBP")[:99], BAD),
    "WebP, animated": (lambda: two("WEBP"), ("image-animated",)),
    "JPEG, CMYK": (lambda: saved(RED.convert("CMYK"), "JPEG"), (USED,)),
    "JPEG, half": (lambda: saved(NOISE, "JPEG")[:900], ("image-damaged",)),
    "JPEG, markers only": (lambda: b"\xff\xd8\xff\xe0\x00\x10JFIF" + b"\0" * 20 + b"\xff\xd9", BAD),
    "JPEG, EXIF that is none": (lambda: saved(RED, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), (USED, *BAD)),
    "JPEG of two views": (lambda: two("MPO"), (USED,)),
    "TIFF, floating point": (lambda: saved(Image.new("F", (40, 32)), "TIFF"), ("image-mode",)),
    "TIFF, two pages": (lambda: two("TIFF"), ("image-animated",)),
    "TIFF, its first bytes": (lambda: b"II*\0\x08\0\0\0", BAD),
    "TIFF, pages in a circle": (lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", BAD),
    "TIFF, a million tags": (lambda: b"II*\0\x08\0\0\0\xff\xff" + b"\x01" * 12 * 65535, (*BAD, "image-too-large")),
    "BMP of negative height": (lambda: bmp(-32), (USED, "image-damaged")),
    "BMP of 2^31 rows": (lambda: bmp(-(2**31)), (*BAD, "image-too-large", "image-aspect-ratio")),
    "PPM of 99,999 pixels a side": (lambda: b"P6 99999 99999 255\n", ("image-too-large",)),
    "PPM of letters": (lambda: b"P6 aa bb 255\n", BAD),
    "PPM, cut short": (lambda: b"P6 40 32 255\n" + b"\0" * 9, ("image-damaged",)),
    "a line of 20,000 pixels": (lambda: saved(Image.new("1", (20_000, 4))), ("image-aspect-ratio",)),
    "one pixel": (lambda: saved(Image.new("RGB", (1, 1))), (USED,)),
}  # fmt: skip

#: Path in the record -> the reason.
PATHS: dict[str, tuple[str, ...]] = {
    "../secret.png": ("image-escape",),
    "sub/../../secret.png": ("image-escape",),
    "/etc/passwd": ("image-escape",),
    "~/.ssh/id_rsa": ("image-missing",),
    "$HOME/a.png": ("image-missing",),
    "out.png": ("image-escape",),  # a link that leads outside
    "up/secret.png": ("image-escape",),  # in a folder that is a link to the outside
    "loop.png": ("image-missing",),
    "pipe.png": ("image-missing",),
    "socket.png": ("image-missing",),
    "folder.png": ("image-missing",),
    "folder.png/": ("image-missing",),
    ".": ("image-missing",),
    "": ("image-count", "image-missing"),
    " ": ("image-missing",),
    "a\0b.png": ("image-missing",),
    "x" * 5000: ("image-missing",),
    "x/" * 3000: ("image-missing",),
    "\ud800.png": ("image-missing",),
    "http://127.0.0.1/a.png": ("image-url",),
    "HTTPS://example.org/a.png": ("image-url",),
    "ftp://example.org/a.png": ("image-url",),
    "file:///etc/passwd": ("image-url",),
    "FILE:a.png": ("image-url",),
    "data:image/png;base64,AAAA": ("image-unreadable",),
    "data:image/png,AAAA": ("image-url",),
    "s3://bucket/a.png": ("image-url",),
    "//example.org/a.png": ("image-escape",),
    "\\\\example.org\\a.png": ("image-missing",),
    "a%2e%2e%2fb.png": ("image-missing",),
    "good.png": (USED,),
    "./sub/../good.png": (USED,),
    "named-jpeg.jpg": (USED,),  # a PNG under another ending
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    above = tmp_path_factory.mktemp("images")
    made = above / "root"
    (made / "sub").mkdir(parents=True)
    (made / "folder.png").mkdir()
    (above / "secret.png").write_bytes(saved())
    for name in ("good.png", "named-jpeg.jpg"):
        (made / name).write_bytes(saved())
    (made / "out.png").symlink_to(above / "secret.png")
    (made / "up").symlink_to(above)
    (made / "loop.png").symlink_to(made / "loop.png")
    os.mkfifo(made / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(made / "socket.png"))
    return made


#: Address in the record, where images are fetched -> the reason. Pages are those of ``web``.
ADDRESSES: dict[str, tuple[str, ...]] = {
    f"http://{HOST}/good": (USED,),
    f"HTTP://{HOST.upper()}:80/good?size=1#top": (USED,),
    f"http://{HOST}/moved": (USED,),
    f"http://{HOST}/gone": ("image-not-fetched",),
    f"http://{HOST}/broken": ("image-not-fetched",),
    f"http://{HOST}/round": ("image-not-fetched",),
    f"http://{HOST}/inside": ("image-address",),
    f"http://{HOST}/endless": ("image-not-fetched",),
    f"http://{HOST}/drip": ("image-not-fetched",),
    f"http://{HOST}/zip": ("image-not-fetched",),
    f"http://{HOST}/page": ("image-unreadable",),
    f"http://{HOST}/svg": ("image-unreadable",),
    f"http://{HOST}/half": ("image-damaged",),
    f"http://{HOST}/bomb": ("image-too-large",),
    f"http://{HOST}/moving": ("image-animated",),
    "http://nowhere.example/a.png": ("image-not-fetched",),
    "http://inside.example/good": ("image-address",),
    "http://127.0.0.1/good": ("image-address",),
    "http://2130706433/good": ("image-address",),
    "http://[::ffff:7f00:1]/good": ("image-address",),
    "http://169.254.169.254/latest/meta-data/": ("image-address",),
    f"http://me:secret@{HOST}/good": ("image-address",),
    f"http://{HOST}:22/good": ("image-address",),
    "ftp://example.org/a.png": ("image-address",),
    "file:///etc/passwd": ("image-address",),
    "data:image/png;base64,AAAA": ("image-unreadable",),
    "data:image/png,AAAA": ("image-address",),
    "s3://bucket/a.png": ("image-address",),
    "http://": ("image-address",),
    "http://\0/": ("image-address",),
    "//example.org/a.png": ("image-escape",),
    "../secret.png": ("image-escape",),
    "good.png": (USED,),
}


def outcome(folder: Path, path: str, allowed: tuple[str, ...], *words: object) -> None:
    """Look at the one record of a file whose picture is at ``path``."""
    file = folder / "data.json"
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A circle."}]
    file.write_text(json.dumps([{"image": path, "conversations": talk}]))
    done = vlsi("data", "preview", "--data", file, "--json", *words)
    said = ends_well(done, 0, 3)
    found = [reason for reason in allowed if reason != USED and REASONS[reason] in said]
    assert found or (not said and USED in allowed), f"allowed are {allowed}: {said or 'it is used'}"


@pytest.mark.parametrize("name", CONTENTS)
def test_contents(folder: Path, name: str) -> None:
    make, allowed = CONTENTS[name]
    (folder / "case.png").write_bytes(make())
    outcome(folder, "case.png", allowed)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:24].encode("unicode_escape").decode())
def test_paths(folder: Path, path: str) -> None:
    outcome(folder, path, PATHS[path])


def web(server: ImageServer) -> None:
    ok = b"HTTP/1.1 200 OK\r\n\r\n"
    server.names["inside.example"] = ["10.0.0.8"]
    server.pages |= {
        "/good": saved(),
        "/good?size=1": saved(),
        "/moved": leads_to("/good", 301),
        "/broken": says(status=500),
        "/round": leads_to("/round"),
        "/inside": leads_to("http://inside.example/good"),
        "/endless": raw(ok, forever=b"x" * 65536),
        "/drip": raw(ok, forever=b"x", wait=0.02),
        "/zip": says(zlib.compress(bytes(9_000_000)), Content_Encoding="deflate"),
        "/page": says(b"<html>not found</html>", Content_Type="image/png"),
        "/svg": says(b"<svg xmlns='http://www.w3.org/2000/svg'/>", Content_Type="image/svg+xml"),
        "/half": saved(NOISE)[:900],
        "/bomb": png(20_000, 20_000, zlib.compress(b"\0" * 999)),
        "/moving": two("GIF"),
    }


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda text: text[:36].encode("unicode_escape").decode())
def test_addresses(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with ImageServer() as server:
        web(server)
        monkeypatch.setattr(fetching, "WORLD", server.network())
        patience = 0.5 if address.endswith("/drip") else 120  # a machine may be busy, and nothing else waits
        keys = {"fetch": "true", "folder": tmp_path, "timeout": patience, "max_bytes": 200_000}
        words = [word for key, value in keys.items() for word in ("--set", f"data.image_urls.{key}={value}")]
        outcome(folder, address, ADDRESSES[address], *words)
        assert all(number == PUBLIC for number, _ in server.dialled)


def test_a_device_is_no_picture(folder: Path) -> None:
    try:
        os.mknod(folder / "zero.png", 0o600 | 0o020000, os.makedev(1, 5))
    except (PermissionError, AttributeError):
        pytest.skip("making a device needs root")
    outcome(folder, "zero.png", ("image-missing",))


_WHOLE = {
    format: saved(RED if format != "GIF" else RED.convert("P"), format)
    for format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
}


@settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    format=st.sampled_from(sorted(_WHOLE)),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
def test_generated_damage(folder: Path, format: str, cut: float, changes: list[tuple[float, int]]) -> None:
    content = bytearray(_WHOLE[format])
    for place, value in changes:
        content[int(place * len(content))] = value
    (folder / "case.png").write_bytes(content[: int(cut * len(content)) + 1])
    outcome(folder, "case.png", (USED, *(reason for reason in REASONS if reason.startswith("image-"))))
