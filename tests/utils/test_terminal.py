"""A terminal that is gone ends no program, and every name can be shown."""

import subprocess
import sys

import pytest

BEGIN = "from seal_fast.utils.terminal import prepare_streams, say; import sys; prepare_streams();"
LATER = BEGIN + "[say('line ' * 2000) for _ in range(50)]; say('done', 'stderr')"


def bash(command, **environment):
    done = subprocess.run(["bash", "-c", command, sys.executable], capture_output=True, env=environment or None)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("end", [">&-", "> /dev/full", "| head -c 1", "2>&1 >/dev/full"])
def test_a_dead_terminal_is_dropped(end):
    code, out, errors = bash(f'set -o pipefail; PYTHONPATH={":".join(sys.path)} $0 -c "{LATER}" {end}')
    assert code == 0 and "done" in out + errors and "rror" not in errors


def test_a_closed_descriptor_is_not_that_of_the_next_file(tmp_path):
    script = BEGIN + f"f = open('{tmp_path}/f', 'w'); print(f.fileno(), file=sys.stderr)"
    _, _, errors = bash(f'PYTHONPATH={":".join(sys.path)} $0 -c "{script}" <&- >&-')
    assert int(errors) > 2


@pytest.mark.parametrize("encoding", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_any_name_is_shown(encoding):
    script = BEGIN + r"say('caf\u00e9 \udcff'); print('caf\u00e9 \udcff')"
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONCOERCECLOCALE": "0"} | encoding
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert done.returncode == 0 and done.stdout == 2 * b"caf\\xe9 \\udcff\n"
