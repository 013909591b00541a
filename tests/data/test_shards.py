"""WebDataset shards and parquet files, read in place: labels, splits, names, faults."""

import builtins
import io
import json
import tarfile

import numpy as np
import pytest
from image_files import encoded, picture

from seal_fast.data import make_input, open_images
from seal_fast.data.layouts import parquet
from seal_fast.data.layouts.shards import expand
from seal_fast.utils.errors import RunError, UsageError

CLASSES = ("cat", "dog", "eel")


def shard(path, numbers, label=lambda n: {"cls": str(n % 3)}):
    with tarfile.open(path, "w") as tar:
        for n in numbers:
            for suffix, data in ({"png": encoded(picture(n))} | label(n)).items():
                data = data if isinstance(data, bytes) else data.encode()
                info = tarfile.TarInfo(f"{n:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def table(path, numbers, image="image", label="label", labels=None, names=CLASSES, **options):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": encoded(picture(n)), "path": f"{n}.png"} for n in numbers]
    columns = {image: images, label: labels or [n % 3 for n in numbers]}
    content = pa.table(columns)
    if names:
        features = {label: {"names": list(names), "_type": "ClassLabel"}}
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(content, path, row_group_size=4, **options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for number in range(2):
        shard(root / f"pets-train-{number:03d}.tar", range(number * 6, number * 6 + 6))
    shard(root / "pets-val-000.tar", range(12, 18))
    return root


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    table(root / "train-00000-of-00002.parquet", range(6))
    table(root / "train-00001-of-00002.parquet", range(6, 12))
    table(root / "test-00000-of-00001.parquet", range(12, 18))
    return root


def test_patterns():
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{train,val}-{0..1}") == ["train-0", "train-1", "val-0", "val-1"]


def check(images, layout, classes):
    """Each image with its label, in the order of the files, and the same pixels after decoding."""
    assert (images.layout, images.classes, images.native_size) == (layout, classes, 16)
    assert images.train.labels.tolist() == [n % 3 for n in range(12)]
    assert [images.val.source.read(row).tobytes() for row in range(6)] == [encoded(picture(n)) for n in range(12, 18)]
    input = make_input(images, "stream", batch_size=4, eval_batch_size=6, augmentation="none")
    (batch,) = input.evaluation()
    expected = (np.stack([picture(n) for n in range(12, 18)]) / 255 - images.mean) / images.std
    np.testing.assert_allclose(batch.images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    input.close()


def test_shards_by_pattern_and_by_folder(shards):
    images = open_images(f"{shards}/pets-{{train-{{000..001}},val-000}}.tar")
    check(images, "webdataset", ("0", "1", "2"))
    assert images.train.names[6] == "pets-train-001.tar/0006.png"
    assert open_images(images.source).fingerprint == open_images(shards).fingerprint == images.fingerprint


def test_parquet_files(tables):
    images = open_images(tables)
    check(images, "parquet", CLASSES)
    assert images.train.names[7] == "train-00001-of-00002.parquet[000001]"
    pattern = f"{tables}/{{train-00000-of-00002,train-00001-of-00002,test-00000-of-00001}}.parquet"
    assert open_images(pattern).fingerprint == images.fingerprint
    other = images.val.take([4])
    assert other.source.where(0) == f"row 4 of {tables}/test-00000-of-00001.parquet"


def test_labels_in_json_and_as_names(tmp_path):
    shard(tmp_path / "train.tar", range(6), lambda n: {"json": json.dumps({"label": CLASSES[n % 3]})})
    shard(tmp_path / "test.tar", range(6), lambda n: {"cls": f"{CLASSES[n % 3]}\n", "json": '{"other": 1}'})
    images = open_images(str(tmp_path / "{train,test}.tar"))
    assert images.classes == CLASSES and images.val.labels.tolist() == [0, 1, 2] * 2 and images.notes == ()
    for part in ("train", "valid"):
        (tmp_path / part).mkdir()
        table(tmp_path / part / "0000.parquet", range(6), "img", "fine_label", [CLASSES[n % 3] for n in range(6)], ())
    images = open_images(tmp_path)  # parquet files come first
    assert images.notes == ("left out 2 files whose suffix is none of an image format that is read: 2 .tar",)
    assert (images.layout, images.classes) == ("parquet", CLASSES)
    assert images.val.names[0] == "valid/0000.parquet[000000]"


def test_files_without_a_split_are_a_pool(shards, tmp_path):
    shard(tmp_path / "pets.tar", range(12))
    with pytest.raises(UsageError, match="pets.tar: training needs files with the word train"):
        open_images(tmp_path / "pets.tar")
    images = open_images(tmp_path / "pets.tar", split_seed=0)
    assert (len(images.train), len(images.val)) == (9, 3) and sorted(images.val.labels) == [0, 1, 2]
    with pytest.raises(UsageError, match="pets-train-000.tar: training needs"):
        open_images(f"{shards}/pets-train-{{000..001}}.tar")
    with pytest.raises(UsageError, match=r"there is no file .*pets-train-002.tar"):
        open_images(f"{shards}/pets-train-{{000..002}}.tar")


@pytest.mark.parametrize(
    ("label", "error"),
    [
        (lambda n: {"cls": str(n % 3)} if n else {}, r"0000.png in .*train.tar has no label: mend it"),
        (lambda n: {"cls": "0" if n else ""}, "0000.cls in .* holds no label"),
        (lambda n: {"json": "{"}, "0000.json in .* is not JSON"),
        (lambda n: {"cls": "0", "jpg": b"x"}, "0000.png .*is an image of the same key"),
        (lambda n: {"cls": str(n % 2)}, "0002.png in .*val.tar: 2 is no class of the training images"),
        (lambda n: {"cls": str(n % 3), "png": b"" if n == 1 else encoded(picture(n))}, "0001.png in .* is empty"),
    ],
)
def test_faults_of_shards(label, error, tmp_path):
    shard(tmp_path / "train.tar", range(6), label)
    shard(tmp_path / "val.tar", range(6))
    with pytest.raises(RunError, match=error):
        open_images(tmp_path)


def test_faults_of_parquet_files(tmp_path, monkeypatch):
    for part in ("train", "val"):
        table(tmp_path / f"{part}.parquet", range(6))
    table(tmp_path / "train.parquet", range(6), labels=[0, 1, 2, -1, 1, 2])
    with pytest.raises(RunError, match="row 3 of .*train.parquet has no label"):
        open_images(tmp_path)
    images = open_images(tmp_path, "skip")
    assert len(images.train) == 5 and images.skipped == ("train.parquet[000003]",)
    table(tmp_path / "train.parquet", range(6), label="target")
    with pytest.raises(UsageError, match="no column is called label or labels or fine_label; its columns are image, t"):
        open_images(tmp_path)
    table(tmp_path / "train.parquet", range(6))
    monkeypatch.setattr(parquet, "free_bytes", lambda _: 1)
    with pytest.raises(UsageError, match="GiB of memory are free: write the set as WebDataset shards"):
        open_images(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(RunError, match="train.parquet is no parquet file, or is damaged"):
        open_images(tmp_path)
    original = builtins.__import__
    hidden = lambda name, *rest: original("no.such" if name.startswith("pyarrow") else name, *rest)  # noqa: E731
    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(UsageError, match=r"parquet files need pyarrow: pip install 'seal-fast\[parquet\]'"):
        open_images(tmp_path)
