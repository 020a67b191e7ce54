"""list_images(): which images, in what order, with which labels."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from adaptkit import DataError
from adaptkit.data import list_images

CLASSES = ("cat", "dog", "emu")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_class_folders_by_name(tmp_path: Path) -> None:
    root = tree(tmp_path, "emu/2.png", "cat/x/deep.JPG", "cat/1.png", "emu/notes.txt")
    found = list_images(root, classes=CLASSES)
    assert [p.as_posix() for p in found.paths] == ["cat/1.png", "cat/x/deep.JPG", "emu/2.png"]
    assert found.labels == (0, 0, 2)
    assert found.classes == CLASSES
    assert found.note == ""


def test_a_flat_folder_never_becomes_a_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "cat", "1.png", "2.png")
    found = list_images(root, classes=CLASSES, outputs=3)
    assert (found.labels, found.note) == (None, "")


def test_nested_folders_of_other_names_are_unlabelled_and_say_so(tmp_path: Path) -> None:
    found = list_images(tree(tmp_path, "day/1.png", "night/a/2.png"), classes=CLASSES)
    assert found.labels is None
    assert "no folder in" in found.note
    assert "day, night" in found.note
    assert "cat, dog, emu" in found.note


def test_an_unknown_name_beside_known_ones_lists_both_sides(tmp_path: Path) -> None:
    root = tree(tmp_path, "cat/1.png", "gnu/1.png", "yak/1.png", "empty/readme.txt")
    with pytest.raises(DataError, match="is named gnu, yak; its classes are cat, dog, emu"):
        list_images(root, classes=CLASSES)


def test_images_beside_class_folders(tmp_path: Path) -> None:
    root = tree(tmp_path, "cat/1.png", "loose.png")
    with pytest.raises(
        DataError, match=r"class folders, and beside them 1 image, loose\.png: move"
    ):
        list_images(root, classes=CLASSES)
    tree(root, "more.png")
    with pytest.raises(DataError, match=r"2 images, the first being loose\.png: move"):
        list_images(root, classes=CLASSES)
    tree(tmp_path / "other", "loose.png", "day/1.png")
    assert list_images(tmp_path / "other", classes=CLASSES).labels is None


def test_without_names_the_order_is_imagefolders(tmp_path: Path) -> None:
    root = tree(tmp_path, "b/1.png", "a/1.png", "C/1.png", "a/0.png")
    found = list_images(root, outputs=3)
    theirs = ImageFolder(str(root))
    assert found.labels == tuple(theirs.targets)
    assert list(found.classes or ()) == theirs.classes
    assert "in the order of their names" in found.note
    assert list_images(root, outputs=4).labels is None
    assert list_images(root).labels is None


def test_numbers_whose_order_is_not_clear_are_no_labels(tmp_path: Path) -> None:
    root = tree(tmp_path, *[f"{i}/x.png" for i in range(11)])
    found = list_images(root, outputs=11)
    assert found.labels is None
    assert "sort otherwise as text" in found.note


def test_hidden_files_and_circles_of_links(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "a/1.png", ".hidden.png", ".cache/2.png", "a/.3.png")
    (root / "a" / "up").symlink_to(root)
    (root / "b").symlink_to(root / "a")
    elsewhere = tree(tmp_path / "elsewhere", "4.png")
    (root / "c").symlink_to(elsewhere)
    names = [p.as_posix() for p in list_images(root).paths]
    assert {"a/1.png", "b/1.png", "c/4.png"} <= set(names)
    assert not [n for n in names if "/." in n or n.startswith(".")]
    assert len(names) < 20


def test_links_that_lead_nowhere_are_listed_for_decode_to_refuse(tmp_path: Path) -> None:
    root = tree(tmp_path, "a.png")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "self.png").symlink_to("self.png")
    (root / "self").symlink_to("self")
    names = [p.name for p in list_images(root).paths]
    assert names == ["a.png", "gone.png", "self.png"]


def test_long_lists_of_names_are_cut(tmp_path: Path) -> None:
    root = tree(tmp_path, "c00/1.png", *[f"x{i:02}/1.png" for i in range(11)])
    with pytest.raises(
        DataError, match=r"x07 and 3 more; its classes are c00, .*, c07 and 92 more"
    ):
        list_images(root, classes=[f"c{i:02}" for i in range(100)])


def test_no_class_names_are_as_good_as_none(tmp_path: Path) -> None:
    root = tree(tmp_path, "a/1.png", "b/1.png")
    assert list_images(root, classes=(), outputs=2) == list_images(root, outputs=2)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "file/below"])
def test_a_path_that_cannot_be_is_a_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"there is no folder|cannot read the folder .*too long"):
        list_images(tmp_path / name)


@pytest.mark.parametrize("case", ["missing", "file", "empty", "no images"])
def test_folders_that_hold_nothing(tmp_path: Path, case: str) -> None:
    root = tmp_path / "target"
    if case == "file":
        root.write_bytes(b"")
    elif case != "missing":
        root.mkdir()
    if case == "no images":
        tree(root, "a/readme.txt")
    expected = {"missing": "there is no folder", "file": "is a file: give a folder"}
    with pytest.raises(DataError, match=expected.get(case, r"holds no images \(\.png")):
        list_images(root)


def test_a_folder_of_other_files_names_some_of_them(tmp_path: Path) -> None:
    root = tree(tmp_path / "one", "scan.nii.gz")
    with pytest.raises(DataError, match=r"\.dicom\), but 1 other file: scan\.nii\.gz$"):
        list_images(root)
    root = tree(tmp_path / "several", "b/2.heic", "a/1.nii", "3.avif", "4.svg", "5.CR2", ".6.x")
    with pytest.raises(DataError, match=r", but 5 other files: 3\.avif, 4\.svg, 5\.CR2, \.\.\.$"):
        list_images(root)


@given(
    st.sets(
        st.tuples(st.sampled_from(CLASSES), st.text("ab0-_", min_size=1, max_size=4)), min_size=1
    )
)
def test_every_image_is_found_once_with_its_folders_label(
    tmp_path_factory: pytest.TempPathFactory, images: set[tuple[str, str]]
) -> None:
    root = tree(tmp_path_factory.mktemp("t"), *[f"{c}/{n}.png" for c, n in images])
    found = list_images(root, classes=CLASSES)
    assert len(found.paths) == len(images)
    assert sorted(found.paths, key=Path.as_posix) == list(found.paths)
    assert found.labels == tuple(CLASSES.index(p.parts[0]) for p in found.paths)
