from __future__ import annotations

import pytest

from coterie.errors import RunError
from coterie.observe.files import replacing


def test_the_new_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path, "the thing") as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path, "the thing") as temporary:
        temporary.write_text("half")
        raise KeyError
    with pytest.raises(RunError, match="the thing could not be written: No space left"), replacing(path, "the thing"):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
