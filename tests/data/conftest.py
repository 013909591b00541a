from pathlib import Path

import pytest
from image_files import image_folder_files, tiny_imagenet_files, write


@pytest.fixture
def image_folder(tmp_path) -> Path:
    return write(tmp_path / "pets", image_folder_files())


@pytest.fixture
def tiny_imagenet(tmp_path) -> Path:
    return write(tmp_path / "tiny-imagenet-200", tiny_imagenet_files())
