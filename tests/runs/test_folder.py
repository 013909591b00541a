import pytest

from seal_fast.runs.folder import RunFolder


def row(generation, epoch):
    return {"generation": generation, "epoch": epoch}


def test_rows_survive_a_line_cut_short(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append(row(0, 0))
    folder.append(row(0, 1))
    with folder.metrics.open("a") as file:
        file.write('{"generation": 1, "ep')
    assert folder.rows() == [row(0, 0), row(0, 1)]


@pytest.mark.parametrize("junk", [b"\xff\xfe\0\n", b"5\n", b"null\n", b'{"epoch": 1}\n', b"[]\n"])
def test_rows_end_before_what_is_no_row(tmp_path, junk):
    folder = RunFolder(tmp_path)
    folder.append(row(0, 0))
    with folder.metrics.open("ab") as file:
        file.write(junk)
    folder.append(row(0, 1))
    assert folder.rows() == [row(0, 0)]


def test_truncate_drops_what_will_be_repeated(tmp_path):
    folder = RunFolder(tmp_path)
    for g in range(2):
        for e in range(3):
            folder.append(row(g, e))
    folder.truncate(1, 1)
    assert folder.rows() == [row(0, 0), row(0, 1), row(0, 2), row(1, 0)]
    folder.truncate(0, 0)
    assert folder.rows() == []
