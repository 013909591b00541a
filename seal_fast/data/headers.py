"""What the header of an image file says: its format, and whether the decoder would read it wrongly.

DALI decodes some files to wrong pixels without an error, and names no reason where it refuses one. Formats: TIFF 6.0
(Adobe, 1992), "Image File Directory"; RIFF container of WebP (RFC 9649); Netpbm, ppm(5); PNG (RFC 2083), IHDR.
"""

from __future__ import annotations

import io
import re
import struct

import numpy as np

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "BigTIFF",
    b"MM\0+": "BigTIFF",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"GIF8": "GIF",
    b"\0\0\1\0": "ICO",
    b"8BPS": "PSD",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL": "JPEG XL",
    b"\x93NUMPY": "NumPy",
    b"%PDF": "PDF",
    b"PK\3\4": "zip",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"<": "HTML, XML or SVG",
    b"version https://git-lfs": "Git LFS pointer",
}
READ = {"JPEG", "PNG", "BMP", "TIFF", "JPEG 2000", "WebP", "PNM"}
_PNM = re.compile(rb"P([1-6])(?:\s|#.*\n)+(\d+)(?:\s|#.*\n)+(\d+)(?:\s|#.*\n)+(\d+)")
_TIFF_SIZES = {1: "B", 3: "H", 4: "I"}
_BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _SAMPLES, _COUNTS, _SAMPLE_FORMAT = 258, 259, 262, 273, 277, 279, 339
_CONVERT = ", which is not read: convert it to PNG or JPEG"
_WEBP_METADATA = (b"EXIF", b"XMP ", b"ICCP")
_WEBP_FLAGS = 0x2C  # of these three, in VP8X


def kind(data: np.ndarray | bytes) -> str:
    """The format of a file by its first bytes, or "" for an unknown one."""
    head = bytes(data[:32])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"mif1": "HEIC"}.get(head[8:12], "MP4")
    if re.match(rb"P[1-6][\s#]", head):
        return "PNM"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def size(data: np.ndarray) -> tuple[int, int] | None:
    """(height, width) of an image file by its header, before any rotation; None if that cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data.data)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def misread(data: np.ndarray) -> str:
    """What a file is that the decoder would read wrongly, as the end of a sentence; "" for all others."""
    first = data[:2].tobytes()
    if first in (b"II", b"MM"):
        return _misread_tiff(data)
    if first in (b"P2", b"P3", b"P5", b"P6") and (header := _PNM.match(data[:256].tobytes())):
        white = int(header[4])
        return "" if white in (255, 65535) else f"a PNM image whose white is {white}, not 255 or 65535{_CONVERT}"
    return ""


def unread(data: np.ndarray) -> str:
    """Why the decoder refused a file, as the end of a sentence."""
    if said := misread(data):
        return said
    if (name := kind(data)) not in READ and name:
        return f"in content {name}{_CONVERT if name != 'Git LFS pointer' else ', not the image: run `git lfs pull`'}"
    tags = _tiff_tags(data) if name == "TIFF" else {}
    if tags and (bits := tags.get(_BITS, (1,))[0]) not in (8, 16):
        return f"a TIFF image of {bits}-bit samples{_CONVERT}"
    if name == "JPEG 2000":
        return "a JPEG 2000 image that is damaged or of a kind that is not read (grey with alpha): convert it to PNG"
    return "not a readable image (corrupt or truncated): replace or remove it"


def has_16_bits(data: np.ndarray) -> bool:
    """Whether a PNG, TIFF, PNM or JPEG 2000 file says that it has 9 to 16 bits a sample."""
    head, name = data[:512].tobytes(), kind(data)
    if name == "PNG":
        return head[24:25] == b"\x10"
    if name == "TIFF":
        return _tiff_tags(data).get(_BITS, (8,))[0] == 16
    if name == "PNM":
        header = _PNM.match(head)
        return bool(header) and header[1] in b"2356" and int(header[4]) > 255
    if name == "JPEG 2000":
        size = head.find(b"\xff\x4f\xff\x51")  # the codestream: its first two markers; Ssiz is bits - 1
        return size >= 0 and len(head) > size + 42 and 8 <= head[size + 42] & 0x7F < 16
    return False


def without_metadata(data: np.ndarray) -> np.ndarray:
    """The file itself, or of a WebP file with EXIF, XMP or a colour profile one without: DALI refuses some of them."""
    if data[:4].tobytes() != b"RIFF" or data[12:16].tobytes() != b"VP8X" or not data[20] & _WEBP_FLAGS:
        return data
    raw, at, chunks = data.tobytes(), 12, []
    while at + 8 <= len(raw):
        size = int.from_bytes(raw[at + 4 : at + 8], "little")
        chunk = raw[at : at + 8 + size]
        if chunk[:4] == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_FLAGS]) + chunk[9:]
        if chunk[:4] not in _WEBP_METADATA:
            chunks.append(chunk + bytes(size % 2))
        at += 8 + size + size % 2
    body = b"WEBP" + b"".join(chunks)
    return np.frombuffer(b"RIFF" + len(body).to_bytes(4, "little") + body, np.uint8)


def _misread_tiff(data: np.ndarray) -> str:
    tags = _tiff_tags(data)
    bits, form, samples, colours = (tags.get(t, (1,))[0] for t in (_BITS, _SAMPLE_FORMAT, _SAMPLES, _PHOTOMETRIC))
    if samples == 2 or samples > 4:
        what = f"of {samples} samples a pixel"
    elif form == 2:
        what = f"of signed {bits}-bit samples"
    elif bits == 32 and form == 1:
        what = "of 32-bit samples"
    elif form == 3 and not _within_one(data, tags, bits):
        what = "of floating-point numbers that are compressed or lie outside 0 to 1"
    elif colours in (8, 9, 10):
        what = "of L*a*b* colours"
    else:
        return ""
    return f"a TIFF image {what}{_CONVERT}"


def _within_one(data: np.ndarray, tags: dict[int, tuple[int, ...]], bits: int) -> bool:
    """Whether all values of an uncompressed TIFF of 32-bit floats lie from 0 to 1."""
    if bits != 32 or tags.get(_COMPRESSION, (1,))[0] != 1:
        return False
    order = "<" if data[0] == ord("I") else ">"
    strips = zip(tags.get(_OFFSETS, ()), tags.get(_COUNTS, ()), strict=False)
    values = [np.frombuffer(data[at : at + size].tobytes(), f"{order}f4") for at, size in strips if size % 4 == 0]
    return bool(values) and all(((part >= 0) & (part <= 1)).all() for part in values)


def _tiff_tags(data: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Whole-number tags of a TIFF file's first image; what cannot be read is left to the decoder."""
    raw = data.data
    order = "<" if data[0] == ord("I") else ">"
    tags: dict[int, tuple[int, ...]] = {}
    try:
        (at,) = struct.unpack_from(f"{order}I", raw, 4)
        (count,) = struct.unpack_from(f"{order}H", raw, at)
        for place in range(at + 2, at + 2 + 12 * count, 12):
            tag, form, length = struct.unpack_from(f"{order}HHI", raw, place)
            letters = f"{order}{length}{_TIFF_SIZES.get(form, 'x')}"
            if form in _TIFF_SIZES and length <= len(data):
                far = struct.calcsize(letters) > 4
                start = struct.unpack_from(f"{order}I", raw, place + 8)[0] if far else place + 8
                tags[tag] = struct.unpack_from(letters, raw, start)
    except struct.error:
        pass
    return tags
