"""Tiny data sets with Pillow, each as a folder and as a .tar of it."""

import gzip
import io
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from seal_fast.data.random_resized_crop import COUNTDOWN, window

NUMPY = SimpleNamespace(
    sqrt=np.sqrt, exp=np.exp, floor=np.floor, clamp=np.clip, largest=np.max, total=np.sum, countdown=COUNTDOWN
)


def crop_window(height: float, width: float, draw: np.ndarray) -> tuple[int, ...]:
    """The window of an image's random resized crop by numpy, whole pixels; `draw` is [tries, 4]."""
    return tuple(int(side) for side in window(np.float32(height), np.float32(width), tuple(draw.T), NUMPY))


def picture(seed: int, height: int = 16, width: int | None = None, channels: int = 3) -> np.ndarray:
    """A smooth random picture, uint8 [height, width(, 3)]."""
    width = width or height
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3) if channels == 3 else (5, 5), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tar_of(folder: Path, top: bool = True) -> Path:
    """A .tar beside the folder, with the folder as its single top or with its content at the top."""
    path = folder.with_name(f"{folder.name}{'' if top else '-flat'}.tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, folder.name if top else ".")
    return path


def image_folder_files(classes=("cat", "dog", "eel"), train=4, val=2, size=16, held_out="val") -> dict[str, bytes]:
    files, seed = {}, 0
    for part, count in (("train", train), (held_out, val)):
        for label in classes:
            for number in range(count):
                files[f"{part}/{label}/{number}.png"] = encoded(picture(seed, size))
                seed += 1
    return files


def tiny_imagenet_files(wnids=("n03", "n01", "n02"), train=3, val=2) -> dict[str, bytes]:
    files: dict[str, bytes] = {"wnids.txt": "\n".join(wnids).encode()}
    lines, seed = [], 0
    for wnid in wnids:
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"box"
        for number in range(train):
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = encoded(picture(seed, 64), "JPEG")
            seed += 1
    for number in range(val * len(wnids)):
        files[f"val/images/val_{number}.JPEG"] = encoded(picture(seed, 64), "JPEG")
        lines.append(f"val_{number}.JPEG\t{wnids[number % len(wnids)]}\t0\t0\t63\t63")
        seed += 1
    files["val/val_annotations.txt"] = "\n".join(lines).encode()
    files["test/images/test_0.JPEG"] = encoded(picture(seed, 64), "JPEG")
    return files


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def idx_files(train=20, val=10, size=9, compress=False) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", train), ("t10k", val)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, size, size), dtype=np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx((np.arange(count) % 5).astype(np.uint8))
    return {f"{name}.gz": gzip.compress(data) for name, data in files.items()} if compress else files
