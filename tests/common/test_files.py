"""Files that are whole at any time."""

import pytest

from sb3_sparse.common.files import written_beside


def test_a_file_takes_the_place_of_another_as_a_whole(tmp_path):
    path = tmp_path / "new folder" / "numbers.txt"
    for content in ("one", "two"):
        with written_beside(path) as beside:
            beside.write_text(content)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_if_writing_fails(tmp_path, error):
    path = tmp_path / "numbers.txt"
    path.write_text("one")

    def write_half():
        with written_beside(str(path)) as beside:
            beside.write_text("half of tw")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    with pytest.raises(FileNotFoundError), written_beside(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "folder").write_text("")
    with pytest.raises(OSError, match="folder"), written_beside(tmp_path / "folder" / "a.txt"):
        pass
