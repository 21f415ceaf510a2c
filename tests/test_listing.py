"""From arguments to paths: folders, patterns, lists, standard input."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from faces.listing import expand_inputs, list_images
from faces.reader import ImageError, read_image

# "-" and "." come before "/": whole paths are compared, not their parts.
IN_ORDER = ["B.bmp", "a-1.tif", "a.jpg", "a/1 2.webp", "a/deep/er/x.gif", "a/z.JPEG", "b.PNG", "é.jpg"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures in `faces`."""
    for name in (*IN_ORDER[::-1], "a/notes.txt"):
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expand(*args: str, stdin: str = "") -> list[str]:
    return list(expand_inputs(args, io.StringIO(stdin)))


@pytest.mark.parametrize("folder", ["faces", "faces/", "./faces", "../{root}/faces"])
def test_a_folder_is_joined_as_it_was_given(tree: Path, folder: str) -> None:
    folder = folder.format(root=tree.name)
    assert expand(folder) == [os.path.join(folder, name) for name in IN_ORDER]
    assert expand(str(tree / "faces")) == [str(tree / "faces" / name) for name in IN_ORDER]


def test_list_images(tree: Path) -> None:
    assert list_images("faces") == list_images(Path("faces")) == [Path("faces") / name for name in IN_ORDER]
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        list_images("nowhere")


def test_links_to_pictures_are_listed_and_loops_are_not_entered(tree: Path) -> None:
    (tree / "faces/a/link.jpg").symlink_to(tree / "faces/a.jpg")
    (tree / "faces/a/up").symlink_to(tree / "faces")
    assert expand("faces") == sorted(f"faces/{name}" for name in [*IN_ORDER, "a/link.jpg", "a/up"])
    assert status_of("faces/a/up") == "linked_folder"
    (tree / "linked").symlink_to("faces")
    assert expand("linked") == [path.replace("faces", "linked", 1) for path in expand("faces")], "named, so entered"
    assert expand("link*") == ["linked"]


@pytest.mark.timeout(20)
def test_patterns_do_not_follow_links_round_in_circles(tree: Path) -> None:
    """`glob` would: two links up in one folder give 2 ** 40 paths."""
    links = [f"faces/a/up{number}" for number in range(4)]
    for link in links:
        (tree / link).symlink_to(tree / "faces")
    assert expand("faces/**/*.gif") == ["faces/a/deep/er/x.gif", *links]
    assert expand("**/*.gif") == ["faces/a/deep/er/x.gif", *links]
    assert expand(f"{tree}/f*/**/er/*") == [f"{tree}/faces/a/deep/er/x.gif", *(f"{tree}/{link}" for link in links)]
    every = sorted([*(f"faces/{name}" for name in IN_ORDER), "faces/a/notes.txt", *links])
    assert sorted(expand("faces/**")) == sorted(expand("faces/**/*")) == every, "each path once"


def status_of(path: str) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    return caught.value.status


@pytest.mark.parametrize("name", ["/dev/zero", "faces"])
def test_a_list_that_is_a_device_or_a_folder(tree: Path, name: str) -> None:
    with pytest.raises(OSError, match="is a folder or a device; a text file"):
        expand_inputs([f"@{name}"], [])


def test_a_list_without_line_ends(tree: Path) -> None:
    (tree / "list.txt").write_bytes(b"a.jpg\n" + bytes(100_000))
    with pytest.raises(ValueError, match=r"@list\.txt, line 2 has more than 32,767 characters"):
        expand("@list.txt")
    stdin = io.TextIOWrapper(io.BytesIO(bytes(100_000)))
    with pytest.raises(ValueError, match="standard input, line 1 has more"):
        list(expand_inputs(["-"], stdin))


def test_a_folder_that_may_not_be_listed_is_reported(tree: Path) -> None:
    (tree / "faces/a/deep").chmod(0)
    tree.chmod(0o755)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)   # root may list everything, so root becomes nobody for a moment
        found = expand("faces")
    finally:
        os.seteuid(user)
        (tree / "faces/a/deep").chmod(0o755)
    assert found == [f"faces/{name.removesuffix('/er/x.gif')}" for name in IN_ORDER]


def test_files_keep_their_order_and_their_spelling(tree: Path) -> None:
    args = ["faces/b.PNG", "./faces//a.jpg", "faces/a/notes.txt", "nowhere.jpg", "faces/b.PNG"]
    assert expand(*args) == args


def test_patterns_that_the_shell_left_alone(tree: Path) -> None:
    assert expand("faces/*.[jJ]*") == ["faces/a.jpg", "faces/é.jpg"]
    assert expand("faces/**/*.gif") == ["faces/a/deep/er/x.gif"]
    assert expand("faces/?") == ["faces/a/1 2.webp", "faces/a/deep/er/x.gif", "faces/a/z.JPEG"], "a folder that matches"
    assert expand("faces/*.heic") == ["faces/*.heic"], "what matches nothing becomes a missing row"


def test_a_file_whose_name_looks_like_a_pattern(tree: Path) -> None:
    (tree / "faces/[1].jpg").touch()
    (tree / "faces/1.jpg").touch()
    assert expand("faces/[1].jpg") == ["faces/[1].jpg"]


def test_lists(tree: Path) -> None:
    (tree / "list.txt").write_bytes("\ufefffaces/a.jpg\r\n\n  \nfaces/with space .jpg\nnowhere.jpg".encode())
    assert expand("@list.txt") == ["faces/a.jpg", "faces/with space .jpg", "nowhere.jpg"]
    assert expand("x.jpg", "-", "@list.txt", stdin="one.jpg\n\ntwo.jpg\n") == [
        "x.jpg", "one.jpg", "two.jpg", "faces/a.jpg", "faces/with space .jpg", "nowhere.jpg",
    ]


def test_a_list_keeps_names_that_are_not_utf8(tree: Path) -> None:
    (tree / "list.txt").write_bytes(b"faces/caf\xe9.jpg\n")
    assert [os.fsencode(path) for path in expand("@list.txt")] == [b"faces/caf\xe9.jpg"]


def test_a_missing_list_is_an_error_before_anything_is_read(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"@none\.txt: there is no list file 'none\.txt'"):
        expand_inputs(["faces/a.jpg", "@none.txt"], [])


def test_standard_input_may_be_endless() -> None:
    def lines() -> Iterator[str]:
        for number in itertools.count():
            yield f"{number}.jpg\n"

    assert list(itertools.islice(expand_inputs(["-"], lines()), 3)) == ["0.jpg", "1.jpg", "2.jpg"]


def test_standard_input_keeps_any_name() -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9.jpg\r\na\rb.jpg\n"), encoding="ascii")
    assert list(expand_inputs(["-"], stdin)) == [os.fsdecode(b"caf\xe9.jpg"), "a\rb.jpg"]
