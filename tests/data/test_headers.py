"""Headers: what the decoder would misread is named, everything else is let through; Pillow is the truth for pixels."""

import io
import re
import struct

import numpy as np
import pytest
import torch
from image_files import encoded, picture
from PIL import Image

from seal_fast.data import headers
from seal_fast.data.decode import Decoder, Request

RGB = picture(0)
GREY = picture(1, channels=1)
DEEP = GREY.astype(np.uint16) * 257


def raw(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def decode(data: bytes):
    decoder = Decoder(16, encoded=True, device=torch.device("cpu"), threads=1, batch_size=1)
    ((pixels, bad),) = decoder([Request([raw(data)])])
    return pixels[0].numpy(), bad.get(0)


def tiff(pixels: np.ndarray, form: int = 1, photometric: int = 1, samples: int = 1) -> bytes:
    """An uncompressed TIFF of one strip, as Pillow cannot write it; form 1 unsigned, 2 signed, 3 floating point."""
    order, bits, data = "<", pixels.dtype.itemsize * 8, pixels.tobytes()
    shorts = {256: 16, 257: 16, 259: 1, 262: photometric, 277: samples, 278: 16, 284: 1}
    many = {258: (bits,) * samples, 339: (form,) * samples}
    count = len(shorts) + len(many) + 2
    extra, at = b"", 8 + 2 + 12 * count + 4
    entries = [(tag, struct.pack("<HHIHH", tag, 3, 1, value, 0)) for tag, value in shorts.items()]
    for tag, values in many.items():
        packed = struct.pack(f"<{samples}H", *values)
        place = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", at + len(extra))
        extra += packed if len(packed) > 4 else b""
        entries.append((tag, struct.pack("<HHI", tag, 3, samples) + place))
    for tag, value in ((273, at + len(extra)), (279, len(data))):
        entries.append((tag, struct.pack("<HHII", tag, 4, 1, value)))
    body = b"".join(entry for _, entry in sorted(entries))
    return struct.pack(f"{order}2sHIH", b"II", 42, 8, count) + body + bytes(4) + extra + data


def pnm(magic: bytes, white: int, pixels: np.ndarray) -> bytes:
    return magic + b"\n# made here\n16 16\n%d\n" % white + pixels.tobytes()


MISREAD = {
    "2 samples": (tiff(np.dstack([GREY, GREY]), samples=2), "TIFF image of 2 samples a pixel"),
    "5 samples": (tiff(np.dstack([RGB, GREY, GREY]), photometric=2, samples=5), "TIFF image of 5 samples a pixel"),
    "signed": (tiff(DEEP.astype(np.int16), form=2), "TIFF image of signed 16-bit samples"),
    "32 bits": (tiff(GREY.astype(np.uint32)), "TIFF image of 32-bit samples"),
    "float to 255": (tiff(GREY.astype(np.float32), form=3), "TIFF image of floating-point numbers .* outside 0 to 1"),
    "L*a*b*": (encoded(RGB, "TIFF").replace(b"\x06\x01\x03\0\x01\0\0\0\x02", b"\x06\x01\x03\0\x01\0\0\0\x08"),
               r"TIFF image of L\*a\*b\* colours"),
    "PGM of 12 bits": (pnm(b"P5", 4095, (DEEP >> 4).astype(">u2")), "PNM image whose white is 4095, not 255 or 65535"),
    "PPM of 100": (pnm(b"P6", 100, RGB // 3), "PNM image whose white is 100"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISREAD)
def test_what_would_be_misread_is_named(case):
    data, message = MISREAD[case]
    assert re.match(f"a {message}", headers.misread(raw(data)))
    pixels, reason = decode(data)
    assert reason == headers.misread(raw(data)) and not pixels.any()


UNREAD = {
    "GIF": (encoded(RGB, "GIF"), "in content GIF, which is not read: convert"),
    "AVIF": (b"\0\0\0\x1cftypavif" + bytes(50), "in content AVIF"),
    "HEIC": (b"\0\0\0\x1cftypheic" + bytes(50), "in content HEIC"),
    "HTML": (b"<!DOCTYPE html><title>404</title>", "in content HTML"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "in content Git LFS pointer, not the image: run `git lfs"),
    "1 bit": (encoded(GREY > 99, "TIFF"), "a TIFF image of 1-bit samples"),
    "cut": (encoded(RGB, "JPEG")[:300], r"not a readable image \(corrupt or truncated\)"),
    "nothing": (b"", r"not a readable image \(corrupt or truncated\)"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_refused_is_called_what_it_is(case):
    data, message = UNREAD[case]
    pixels, reason = decode(data)
    assert reason and re.match(message, reason) and not pixels.any()


READ = {
    "grey + alpha PNG": (encoded(np.dstack([GREY, RGB[..., 0]]), "PNG"), GREY[..., None].repeat(3, 2)),
    "RGBA PNG": (encoded(np.dstack([RGB, GREY]), "PNG"), RGB),
    "RGBA TIFF": (encoded(np.dstack([RGB, GREY]), "TIFF"), RGB),
    "RGBA WebP": (encoded(np.dstack([RGB, GREY]), "WEBP", lossless=True, exact=True), RGB),
    "JPEG 2000": (encoded(RGB, "JPEG2000", irreversible=False), RGB),
    "PPM": (encoded(RGB, "PPM"), RGB),
    "PGM": (encoded(GREY, "PPM"), GREY[..., None].repeat(3, 2)),
    "16-bit PNG": (encoded(DEEP, "PNG"), GREY[..., None].repeat(3, 2)),
    "16-bit TIFF": (tiff(DEEP), GREY[..., None].repeat(3, 2)),
    "16-bit PGM": (pnm(b"P5", 65535, DEEP.astype(">u2")), GREY[..., None].repeat(3, 2)),
    "16-bit JPEG 2000": (encoded(DEEP, "JPEG2000", irreversible=False), GREY[..., None].repeat(3, 2)),
    "float to 1": (tiff((GREY / 255).astype(np.float32), form=3), GREY[..., None].repeat(3, 2)),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_read_has_the_right_pixels(case):
    data, expected = READ[case]
    pixels, reason = decode(data)
    assert reason is None and np.array_equal(pixels, expected)
    assert headers.has_16_bits(raw(data)) == case.startswith("16-bit")


def test_sixteen_bits_are_rounded_so_that_65535_is_white():
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 256 + 128
    assert np.array_equal(decode(tiff(values))[0][..., 0], np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize("size", [0, 1, 5])
def test_webp_metadata_goes_and_the_pixels_stay(size):
    file = io.BytesIO()
    Image.fromarray(RGB).save(
        file, "WEBP", lossless=True, exif=b"Exif\0\0" + bytes(size), xmp=b"<x/>", icc_profile=b"i" * 9
    )
    stripped = headers.without_metadata(raw(file.getvalue())).tobytes()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stripped))), RGB)
    assert not any(chunk in stripped for chunk in (b"EXIF", b"XMP ", b"ICCP")) and len(stripped) < len(file.getvalue())
    assert np.array_equal(decode(file.getvalue())[0], RGB)
    plain = raw(encoded(RGB, "WEBP", lossless=True))
    assert headers.without_metadata(plain) is plain


def test_sizes_come_from_headers_and_unreadable_ones_are_none():
    files = [encoded(picture(1, 7, 9)), encoded(picture(1, 5), "BMP"), encoded(RGB, "JPEG")[:20], b"nonsense"]
    assert [headers.size(raw(file)) for file in files] == [(7, 9), (5, 5), None, None]
