"""What a short run without --compile imports, under a locale that knows ASCII only."""

import os
import shutil
import subprocess
import sys

from seal_fast.config import Config, load

SCRIPT = """
import sys
from pathlib import Path
import seal_fast.runs.plots as plots
import seal_fast.train as train
import seal_fast.training.assembly as assembly
from seal_fast.config import Config
from small_resnet import build_shallow

draw = plots.draw
def late(rows, *rest):
    assert len(rows) == 1 and "matplotlib" not in sys.modules  # it is imported to draw, after the last epoch
    return draw(rows, *rest)

plots.draw, assembly.build = late, build_shallow
folder, out = sys.argv[1:]
assert sys.getfilesystemencoding() == "utf-8" or "\\udcc3" in folder
train.run(Config(data=folder, out=Path(out), stem="small", generations=1, epochs=1, ascent_epochs=0, batch_size=4))
assert "torch._dynamo" not in sys.modules and "torch._inductor" not in sys.modules
"""


def test_an_uncompiled_run_imports_no_compiler_and_draws_last(image_folder, tmp_path):
    data, out = shutil.copytree(image_folder, tmp_path / "données"), tmp_path / "été"
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}\n{SCRIPT}", data, out]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, capture_output=True, env=os.environ | ascii_only)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert (out / "curves.png").exists() and (out / "weights" / "last.safetensors").exists()
    assert load(out / "config.toml", Config()).data == str(data)
