"""Files and folders appear whole, or not at all."""

import logging
import os
import threading
import time

import pytest

from sru_asr.files import atomically, exclusively, write_atomically


def test_a_file_and_its_folder_are_made(tmp_path):
    with atomically(tmp_path / "new" / "a.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"1")
        assert not (tmp_path / "new" / "a.png").exists()
    assert (tmp_path / "new" / "a.png").read_bytes() == b"1"
    assert os.listdir(tmp_path / "new") == ["a.png"]


@pytest.mark.parametrize("folder", [False, True])
def test_after_a_failure_the_old_is_there_and_nothing_else(tmp_path, folder):
    path = tmp_path / "x"
    if folder:
        path.mkdir()
        (path / "old").touch()
    else:
        path.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), atomically(path) as temporary:
        if folder:
            temporary.mkdir()
            (temporary / "half").touch()
        else:
            temporary.write_text("half")
        raise RuntimeError("stop")
    assert os.listdir(tmp_path) == ["x"]
    assert os.listdir(path) == ["old"] if folder else path.read_text() == "old"


def test_a_folder_is_replaced_with_all_its_content(tmp_path):
    for number in range(3):
        with atomically(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / str(number)).touch()
        assert os.listdir(tmp_path / "model") == [str(number)]
    assert os.listdir(tmp_path) == ["model"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "precious").touch()
    with pytest.raises(IsADirectoryError, match="Is a directory: .*results"):
        write_atomically(tmp_path / "results", "text")
    assert os.listdir(tmp_path) == ["results"]
    assert os.listdir(tmp_path / "results") == ["precious"]


def test_nothing_written_is_an_error(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError), atomically(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "old"


def test_links_stay_links(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "there" / name)
    write_atomically(tmp_path / "file", "text")
    with atomically(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "folder").is_symlink()
    assert sorted(os.listdir(tmp_path / "there")) == ["file", "folder"]


def test_a_pipe_is_written_directly(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_atomically(tmp_path / "pipe", "text")
    reader.join()
    assert read == ["text"]


def test_text_is_written_as_it_is(tmp_path):
    write_atomically(tmp_path / "a", "é\r\nb\n")
    assert (tmp_path / "a").read_bytes() == "é\r\nb\n".encode()


def test_who_waits_says_so_and_goes_in_when_the_other_is_done(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    lock, order, inside = tmp_path / ".lock", [], threading.Event()

    def second():
        inside.wait()
        with exclusively(lock):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with exclusively(lock):
        inside.set()
        deadline = time.monotonic() + 60
        while not caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert caplog.text.count(f"waiting for the process that holds {lock}") == 1
    assert not lock.exists()
    caplog.clear()
    with exclusively(lock):
        pass
    assert not caplog.text
