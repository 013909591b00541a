"""Official archives to one .tar: small replicas of every layout, and every disagreement named."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from image_files import encoded, picture
from PIL import Image
from scipy.io import savemat

from seal_fast.data import open_images
from seal_fast.data.prepare import main, prepare
from seal_fast.data.prepare.catalogue import OFFICIAL
from seal_fast.utils.errors import RunError, UsageError

JPEG = [encoded(picture(i), "JPEG") for i in range(4)]


def tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def mat(path=None, **variables):
    file = io.BytesIO()
    savemat(file, variables)
    if not path:
        return file.getvalue()
    path.write_bytes(file.getvalue())
    return path


def text(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def lines(*rows):
    return ("\n".join(rows) + "\n").encode()


def jpegs(*names):
    return {name: JPEG[i % 4] + bytes([i]) for i, name in enumerate(names)}  # bytes behind the end tell them apart


def flowers(folder, missing=()):
    names = [f"jpg/image_{n:05d}.jpg" for n in range(1, 7) if n not in missing]
    return [
        tar(folder / "102flowers.tgz", jpegs(*names), "w:gz"),
        mat(folder / "imagelabels.mat", labels=[[1, 1, 1, 2, 2, 2]]),
        mat(folder / "setid.mat", trnid=[[3, 6]], valid=[[1, 4]], tstid=[[2, 5]]),
    ]


CUB = {
    "CUB_200_2011/images.txt": lines("1 001.Auk/a.jpg", "2 001.Auk/b.jpg", "3 002.Owl/c.jpg", "4 002.Owl/d.jpg"),
    "CUB_200_2011/image_class_labels.txt": lines("1 1", "2 1", "3 2", "4 2"),
    "CUB_200_2011/train_test_split.txt": lines("1 1", "2 0", "3 0", "4 1"),
    "CUB_200_2011/classes.txt": lines("1 001.Auk", "2 002.Owl"),
    **jpegs(*(f"CUB_200_2011/images/{n}.jpg" for n in ("001.Auk/a", "001.Auk/b", "002.Owl/c", "002.Owl/d"))),
}


def cub(folder, changes=None):
    return [tar(folder / "CUB_200_2011.tgz", CUB | (changes or {}), "w:gz")]


def aircraft(folder):
    data = "fgvc-aircraft-2013b/data/"
    files = {
        f"{data}variants.txt": lines("F/A-18", "707-320"),
        f"{data}images_variant_train.txt": lines("0000001 F/A-18", "0000002 707-320"),
        f"{data}images_variant_val.txt": lines("0000003 F/A-18", "0000004 707-320"),
        f"{data}images_variant_test.txt": lines("0000005 F/A-18", "0000006 707-320"),
        f"{data}images_family_test.txt": lines("0000005 F/A-18", "0000006 Boeing 707"),
    }
    images = jpegs(*(f"{data}images/000000{n}.jpg" for n in range(1, 7)))
    return [tar(folder / "fgvc-aircraft-2013b.tar.gz", files | images, "w:gz")]


def mit(folder):
    names = ["bar/a.jpg", "bar/b.jpg", "gym/c.jpg", "gym/d.jpg", "gym/unlisted.jpg"]
    return [
        text(folder / "TrainImages.txt", "bar/a.jpg", "gym/c.jpg"),
        text(folder / "TestImages.txt", "bar/b.jpg", "gym/d.jpg"),
        tar(folder / "indoorCVPR_09.tar", jpegs(*(f"Images/{name}" for name in names))),
    ]


def dogs(folder, labels=(1, 2)):
    def listed(*names):
        cells = np.empty((len(names), 1), object)
        cells[:, 0] = names
        return mat(file_list=cells, labels=np.array(labels)[:, None])

    names = ["n1-Pug/n1_1.jpg", "n2-Chow/n2_1.jpg", "n1-Pug/n1_2.jpg", "n2-Chow/n2_2.jpg"]
    lists = {"train_list.mat": listed(*names[:2]), "test_list.mat": listed(*names[2:]), "file_list.mat": b"unused"}
    images = jpegs(*(f"Images/{name}" for name in names))
    return [tar(folder / "images.tar", images), tar(folder / "lists.tar", lists)]


RECORDS = np.random.default_rng(0).integers(0, 256, (6, 3 * 32 * 32), np.uint8)


def cifar10(folder, extra=b""):
    def records(*rows):
        return b"".join(bytes([row % 2]) + RECORDS[row].tobytes() for row in rows)

    files = {f"data_batch_{n}.bin": records(n - 1) for n in range(1, 5)}
    files |= {"test_batch.bin": records(4, 5) + extra, "batches.meta.txt": lines("frog", "ship", "")}
    return [tar(folder / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{n}": d for n, d in files.items()}, "w:gz")]


def cifar100(folder):
    def records(*rows):
        return b"".join(bytes([7, row % 2]) + RECORDS[row].tobytes() for row in rows)

    files = {"train.bin": records(0, 1, 2, 3), "test.bin": records(4, 5)}
    files |= {"fine_label_names.txt": lines("apple", "bee"), "coarse_label_names.txt": lines("x", "y")}
    return [tar(folder / "cifar-100-binary.tar.gz", {f"cifar-100-binary/{n}": d for n, d in files.items()}, "w:gz")]


def eurosat(folder):
    names = [f"2750/{c}/{c}_{n}.jpg" for c in ("River", "Forest") for n in range(1, 6)]
    return [zipped(folder / "EuroSAT.zip", jpegs(*names))]


def isic(folder):
    images = jpegs(*(f"ISIC2018_Task3_Training_Input/ISIC_{n}.jpg" for n in range(10)))
    rows = [f"ISIC_{n},{(n < 5) * 1.0},{(n >= 5) * 1.0}" for n in range(10)]
    table = {
        "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv": lines("image,MEL,NV", *rows)
    }
    return [zipped(folder / "input.zip", images), zipped(folder / "truth.zip", table)]


def ham10000(folder):
    table = text(
        folder / "HAM10000_metadata.csv",
        "lesion_id,image_id,dx,age",
        *(f"HAM_{n},ISIC_{n},{'mel' if n < 5 else 'nv'},50" for n in range(10)),
    )
    parts = [zipped(folder / f"{p}.zip", jpegs(*(f"ISIC_{n}.jpg" for n in range(5 * p, 5 * p + 5)))) for p in (0, 1)]
    return [table, *parts]


def chestx(folder):
    rows = [f"{n}_000.png,{'Mass' if n < 5 else 'Nodule'},0" for n in range(10)]
    rows += ["10_000.png,Mass|Nodule,0", "11_000.png,No Finding,0", "12_000.png,Pneumonia,0"]
    files = {f"images/{n}_000.png": encoded(picture(n), "PNG") for n in range(13)}
    return [
        tar(folder / "images_001.tar.gz", dict(list(files.items())[:6]), "w:gz"),
        tar(folder / "images_002.tar.gz", dict(list(files.items())[6:]), "w:gz"),
        text(folder / "Data_Entry_2017.csv", "Image Index,Finding Labels,Follow-up #", *rows),
    ]


def crops(folder):
    names = [f"dataset/{p}/{c}/{c}{n}.JPG" for p in ("train", "test") for c in ("Apple_scab", "Corn") for n in (1, 2)]
    return [zipped(folder / "plant-disease.zip", jpegs(*names) | {"dataset/readme.txt": b"-"})]


# name, archives, images of each part, some of the files that the .tar must hold with the members they come from
CASES = {
    "flowers102": (
        flowers,
        {"train": 2, "valid": 2, "test": 2},
        {"valid/001/image_00001.jpg": 0, "train/002/image_00006.jpg": 5},
    ),
    "cub200": (cub, {"train": 2, "test": 2}, {"train/001.Auk/a.jpg": 0, "test/002.Owl/c.jpg": 2}),
    "aircraft": (
        aircraft,
        {"train": 2, "valid": 2, "test": 2},
        {"train/F-A-18/0000001.jpg": 0, "test/707-320/0000006.jpg": 5},
    ),
    "mit67": (mit, {"train": 2, "test": 2}, {"test/gym/d.jpg": 3}),
    "stanford-dogs": (dogs, {"train": 2, "test": 2}, {"train/n2-Chow/n2_1.jpg": 1, "test/n1-Pug/n1_2.jpg": 2}),
    "eurosat": (eurosat, {"": 10}, {}),
    "isic": (isic, {"": 10}, {}),
    "chestx": (chestx, {"": 10}, {}),
    "cropdisease": (crops, {"train": 4, "test": 4}, {"test/Corn/Corn2.JPG": 7}),
}


def make(name, folder, archives, images, classes=2):
    return prepare(name, archives, folder / "data", _official=OFFICIAL[name]._replace(images=images, classes=classes))


def contents(path):
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


@pytest.mark.parametrize("name", CASES)
def test_a_replica_of_the_official_layout_becomes_a_tar_that_opens(tmp_path, name, capsys):
    archives, images, expected = CASES[name]
    path = make(name, tmp_path, archives(tmp_path), images)
    files = contents(path)
    assert {file: files[file] for file in expected} == {file: JPEG[i % 4] + bytes([i]) for file, i in expected.items()}
    dataset = open_images(path)
    assert len(dataset.classes) == 2
    if "" in images:
        assert (len(dataset.train), len(dataset.val)) == (8, 2) and set(dataset.val.labels) == {0, 1}
        assert "no official split: of each class a fixed draw" in capsys.readouterr().out
    else:
        assert (len(dataset.train), len(dataset.val)) == (images["train"], images["test"])
        assert "no official split" not in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == [f"{name}.tar"]
    before = path.read_bytes()
    assert make(name, tmp_path, [], images) == path and path.read_bytes() == before  # only verified


def test_what_no_list_names_is_left_out_and_counted(tmp_path, capsys):
    assert "test/gym/unlisted.jpg" not in contents(make("mit67", tmp_path, mit(tmp_path), {"train": 2, "test": 2}))
    assert "left out 1 images that no list names" in capsys.readouterr().out


def test_the_two_tables_of_isic_give_the_same_images(tmp_path):
    first = contents(make("isic", tmp_path, isic(tmp_path), {"": 10}))
    (tmp_path / "data" / "isic.tar").unlink()
    assert set(contents(make("isic", tmp_path, ham10000(tmp_path), {"": 10}))) == set(first)


@pytest.mark.parametrize(("name", "archives"), [("cifar10", cifar10), ("cifar100", cifar100)])
def test_cifar_is_unpacked_to_the_bit(tmp_path, name, archives):
    files = contents(make(name, tmp_path, archives(tmp_path), {"train": 4, "test": 2}))
    classes = ("frog", "ship") if name == "cifar10" else ("apple", "bee")
    for row in range(6):
        part, number = ("train", row) if row < 4 else ("test", row - 4)
        pixels = np.asarray(Image.open(io.BytesIO(files[f"{part}/{classes[row % 2]}/{number:05d}.png"])))
        red, green, blue = RECORDS[row].reshape(3, 32, 32)
        assert (pixels == np.stack([red, green, blue], axis=2)).all()


def test_content_that_is_no_image_is_counted_by_kind(tmp_path, capsys):
    gif = {"CUB_200_2011/images/001.Auk/a.jpg": b"GIF89a..."}
    make("cub200", tmp_path, cub(tmp_path, gif), {"train": 2, "test": 2})
    assert "not read as an image (1 GIF): train with --on-bad-image skip" in capsys.readouterr().out


def broken(data):
    def cut(folder):
        (path,) = cub(folder)
        path.write_bytes(path.read_bytes()[:data])
        return [path]

    return cut


MANY = {"train": 2, "valid": 2, "test": 2}
TWO = {"train": 2, "test": 2}
FAULTS = {
    "missing": (
        "flowers102",
        lambda f: flowers(f, (2, 6)),
        MANY,
        "2 listed images are missing in 102flowers.tgz, .* first",
    ),
    "count": (
        "cub200",
        cub,
        {"train": 3, "test": 2},
        "cub200.tar: 2 train images instead of 3: the archives are not the",
    ),
    "in both parts": (
        "mit67",
        lambda f: [*mit(f)[1:], text(f / "TrainImages.txt", "bar/a.jpg", "bar/b.jpg")],
        TWO,
        "Images/bar/b.jpg is listed twice, as train/bar and as test/bar",
    ),
    "another class": (
        "cub200",
        lambda f: cub(f, {"CUB_200_2011/image_class_labels.txt": lines("1 1", "2 2", "3 2", "4 2")}),
        TWO,
        "images.txt has 001.Auk/b.jpg, and image_class_labels.txt says that its class is 002.Owl",
    ),
    "no class": (
        "cub200",
        lambda f: cub(f, {"CUB_200_2011/image_class_labels.txt": lines("1 1")}),
        TWO,
        r"image 2 of images.txt \(001.Auk/b.jpg\) has no class or no part",
    ),
    "dog labels": (
        "stanford-dogs",
        lambda f: dogs(f, (1, 1)),
        TWO,
        "train_list.mat gives label 1 to n2-Chow/n2_1.jpg and",
    ),
    "not a mat": (
        "flowers102",
        lambda f: [*flowers(f)[:2], text(f / "setid.mat", "x" * 200)],
        MANY,
        "setid.mat is no readable .mat file",
    ),
    "other variable": (
        "flowers102",
        lambda f: [*flowers(f)[:2], mat(f / "setid.mat", trnid=[[1]])],
        MANY,
        "setid.mat holds no variable valid",
    ),
    "number": (
        "flowers102",
        lambda f: [*flowers(f)[:2], mat(f / "setid.mat", trnid=[[7]], valid=[[1]], tstid=[[2]])],
        MANY,
        "setid.mat lists image 7, and imagelabels.mat has 6 labels",
    ),
    "truncated": ("cub200", broken(300), TWO, "CUB_200_2011.tgz is truncated or damaged"),
    "no archive": ("cub200", broken(5), TWO, "CUB_200_2011.tgz is truncated or damaged"),
    "half a record": (
        "cifar10",
        lambda f: cifar10(f, b"1"),
        {"train": 4, "test": 2},
        "test_batch.bin ends within an image",
    ),
    "label": (
        "cifar10",
        lambda f: cifar10(f, bytes([9]) + bytes(3072)),
        {"train": 4, "test": 2},
        "holds label 9, and there are 2",
    ),
    "columns": (
        "chestx",
        lambda f: [*chestx(f)[:2], text(f / "Data_Entry_2017.csv", "a,b", "1,2")],
        {},
        "has other columns than the official",
    ),
    "two classes": (
        "isic",
        lambda f: [isic(f)[0], text(f / "ISIC2018_Task3_Training_GroundTruth.csv", "image,A,B", "ISIC_0,1.0,1.0")],
        {},
        "ISIC_0 has 2 classes instead of one",
    ),
    "one path": (
        "eurosat",
        lambda f: [zipped(f / "E.zip", jpegs("x/A/1.jpg", "y/A/1.jpg", "x/B/1.jpg"))],
        {},
        "would both become .*/A/1.jpg",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_disagreements_are_named_and_leave_no_tar(tmp_path, fault):
    name, archives, images, message = FAULTS[fault]
    with pytest.raises(RunError, match=message):
        make(name, tmp_path, archives(tmp_path), images)
    assert list((tmp_path / "data").iterdir()) == []


def test_usage(tmp_path, capsys):
    with pytest.raises(
        UsageError, match=r"cub200 is made from CUB_200_2011.tgz: download them from https://data.caltech"
    ):
        prepare("cub200", [], tmp_path)
    with pytest.raises(UsageError, match="nowhere.tgz: no such file"):
        prepare("cub200", [tmp_path / "nowhere.tgz"], tmp_path)
    with pytest.raises(UsageError, match="setid.mat is in none of 102flowers.tgz, imagelabels.mat: name the file"):
        prepare("flowers102", flowers(tmp_path)[:2], tmp_path)
    with pytest.raises(UsageError, match="none of .* is or holds the table of labels"):
        prepare("chestx", chestx(tmp_path)[:2], tmp_path)
    pickled = tar(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": b"x"}, "w:gz")
    with pytest.raises(
        UsageError, match="holds pickled objects, and unpickling can run code: download the binary version"
    ):
        prepare("cifar10", [pickled], tmp_path)
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(name in out and one.url in out for name, one in OFFICIAL.items())


def test_the_official_numbers():
    found = {name: (one.classes, tuple(one.images.values())) for name, one in OFFICIAL.items()}
    assert found == {
        "flowers102": (102, (1020, 1020, 6149)),
        "cub200": (200, (5994, 5794)),
        "aircraft": (100, (3334, 3333, 3333)),
        "mit67": (67, (5360, 1340)),
        "stanford-dogs": (120, (12000, 8580)),
        "cifar10": (10, (50000, 10000)),
        "cifar100": (100, (50000, 10000)),
        "eurosat": (10, (27000,)),
        "isic": (7, (10015,)),
        "chestx": (7, ()),
        "cropdisease": (38, (43456, 10849)),
    }
