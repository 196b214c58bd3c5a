"""Preparation of images from folders, and the messages about bad ones."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcdistill.cli.main import main
from hpcdistill.data.images.folder import File, _by_hash, cut_into_tasks, make_piece
from hpcdistill.data.images.prepare_images import prepare_images
from hpcdistill.data.images.store import ImageStore
from hpcdistill.errors import UserError
from peak_memory import peak_of

Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.launch

CLASSES = ["ant", "bee", "ölz"]
MODES = ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"]


def encoded(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def write_folder(folder: Path, each: int = 40, classes: list[str] = CLASSES) -> dict[str, bytes]:
    """Write a folder in ImageNet's layout; return the content by relative path, in the order of the store."""
    contents = {}
    for number in range(each * len(classes)):
        name = classes[number // each]
        path = folder / name / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
        contents[f"{name}/{path.name}"] = path.read_bytes()
    return contents


def read_all(path: Path) -> dict[str, tuple[Any, list[int]]]:
    with ImageStore(path) as store:
        parts = {part: store.read(part, np.arange(store.size(part))) for part in ("train", "validation")}
    return {part: (pictures, labels.tolist()) for part, (pictures, labels) in parts.items()}


def test_a_folder_is_stored_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcdistill.data.images.folder.PIECE_IMAGES", 7)
    contents = write_folder(tmp_path / "in")
    prepare_images([tmp_path / "in"], tmp_path / "data.h5")
    parts = read_all(tmp_path / "data.h5")
    paths = [*contents]
    taken = _by_hash(paths)
    for part, mask in (("train", ~taken), ("validation", taken)):
        chosen = [path for path, is_there in zip(paths, mask, strict=True) if is_there]
        assert chosen
        assert parts[part][0] == [contents[path] for path in chosen]
        assert parts[part][1] == [CLASSES.index(path.split("/")[0]) for path in chosen]
    training = np.stack([decoded(content) for content in parts["train"][0]])
    with ImageStore(tmp_path / "data.h5") as store:
        assert (store.kind.classes, store.kind.shape, store.source) == (CLASSES, (), str(tmp_path / "in"))
        np.testing.assert_allclose(store.kind.mean, training.mean((0, 1, 2)), rtol=1e-9)
        np.testing.assert_allclose(store.kind.deviation, training.std((0, 1, 2)), rtol=1e-9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.h5", "in"]


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float64)


def test_a_picture_stays_in_its_part_when_others_come(tmp_path: Path) -> None:
    contents = write_folder(tmp_path / "in")
    prepare_images([tmp_path / "in"], tmp_path / "few.h5")
    for number in range(50):
        (tmp_path / "in" / "ant" / f"{number}-more.png").write_bytes(encoded(9999))
    prepare_images([tmp_path / "in"], tmp_path / "many.h5")
    few, many = (set(read_all(tmp_path / name)["validation"][0]) for name in ("few.h5", "many.h5"))
    assert few == many & set(contents.values())
    assert few


def test_a_validation_folder_is_that_part(tmp_path: Path) -> None:
    train, validation = write_folder(tmp_path / "in", 5), write_folder(tmp_path / "other", 2, CLASSES[1:])
    prepare_images([tmp_path / "in"], tmp_path / "data.h5", [tmp_path / "other"])
    parts = read_all(tmp_path / "data.h5")
    assert parts["train"] == ([*train.values()], [0] * 5 + [1] * 5 + [2] * 5)
    assert parts["validation"] == ([*validation.values()], [1, 1, 2, 2])


@pytest.mark.parametrize(("wide", "tall"), [(40, 30), (30, 41), (16, 16), (10, 12)])
def test_with_a_size_the_middle_is_stored(tmp_path: Path, wide: int, tall: int) -> None:
    folder, short = tmp_path / "in" / "ant", min(wide, tall)
    write_folder(tmp_path / "in", 1)
    pixels = np.zeros((tall, wide, 3), np.uint8)
    top, left = (tall - short) / 2, (wide - short) / 2
    pixels[int(np.ceil(top)) : int(top + short), int(np.ceil(left)) : int(left + short)] = (200, 100, 50)
    Image.fromarray(pixels).save(folder / "0000.png")
    prepare_images([tmp_path / "in"], tmp_path / "data.h5", [tmp_path / "in"], size=16)
    (image, *_), _ = read_all(tmp_path / "data.h5")["train"]
    assert (image.shape, image.dtype) == ((3, 16, 16), np.uint8)
    np.testing.assert_array_equal(image[:, 1:-1, 1:-1], np.full((3, 14, 14), [[[200]], [[100]], [[50]]]))


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_any_kind_become_rgb(tmp_path: Path, mode: str) -> None:
    write_folder(tmp_path / "in", 1)
    content = encoded(0, mode, (16, 16), "TIFF")
    (tmp_path / "in" / "ant" / "0.tif").write_bytes(content)
    prepare_images([tmp_path / "in"], tmp_path / "data.h5", [tmp_path / "in"], size=16)
    (image, *_), _ = read_all(tmp_path / "data.h5")["train"]
    np.testing.assert_array_equal(image.transpose(1, 2, 0), decoded(content))


def test_files_are_found_at_any_depth_and_others_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents, ant = write_folder(tmp_path / "in", 3), tmp_path / "in" / "ant"
    write_folder(tmp_path / "other", 1)
    (ant / "images").mkdir()
    (ant / "images" / "B.JPEG").write_bytes(encoded(77, form="JPEG"))
    (ant / "images" / "link.png").symlink_to(tmp_path / "other" / "bee" / "0001.png")
    for name in ("boxes.txt", ".hidden.png", "._0000.png"):
        (ant / name).write_text("no picture")
    (ant / "around").symlink_to(tmp_path / "in")
    os.mkfifo(ant / "pipe.png")
    (tmp_path / "in" / ".git").mkdir()
    (tmp_path / "in" / "readme.txt").touch()
    (tmp_path / "in" / "again").symlink_to(tmp_path)
    (tmp_path / "in" / "gone").symlink_to(tmp_path / "nowhere")
    prepare_images([tmp_path / "in"], tmp_path / "data.h5", [tmp_path / "other"])
    assert len(read_all(tmp_path / "data.h5")["train"][0]) == len(contents) + 2
    told = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert told == [
        f"hpcdistill: warning: passed over: hidden: 3 ({tmp_path}/in/.git, {ant}/._0000.png, {ant}/.hidden.png); "
        f"links to parent folders: 1 ({tmp_path}/in/again); dangling links: 1 ({tmp_path}/in/gone); "
        f"beside the folders of the classes: 1 ({tmp_path}/in/readme.txt); links to folders: 1 ({ant}/around); "
        f"without the suffix of an image: 1 ({ant}/boxes.txt); pipes, sockets and devices: 1 ({ant}/pipe.png)"
    ]


def test_names_need_not_be_utf_8(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, name = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), os.fsdecode(b"\xff")
    write_folder(folder, 40, [name, "ant"])
    (folder / name / f"{name}.txt").touch()
    (folder / name / f"{name}.png").write_text("no picture")
    command = ["prepare", "images", "--input", str(folder), "--max-bad=1", "--output", str(folder / f"{name}.h5")]
    assert main(command) == 0
    with ImageStore(folder / f"{name}.h5") as store:
        assert store.kind.classes == ["ant", name]
    assert "without the suffix of an image: 1 (" in capfd.readouterr().err


def test_a_class_may_be_a_link(tmp_path: Path) -> None:
    contents = write_folder(tmp_path / "real", 2)
    (tmp_path / "in").mkdir()
    for name in CLASSES:
        (tmp_path / "in" / name).symlink_to(tmp_path / "real" / name)
    prepare_images([tmp_path / "in"], tmp_path / "data.h5", [tmp_path / "real"])
    assert read_all(tmp_path / "data.h5")["train"] == ([*contents.values()], [0, 0, 1, 1, 2, 2])


def test_bad_pictures_are_passed_over_up_to_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents, folder = write_folder(tmp_path / "in"), tmp_path / "in" / "bee"
    (folder / "aa.jpg").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes(encoded(0, form="JPEG")[:-200])
    (folder / "gone.png").symlink_to("nowhere.png")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "zz.png").write_bytes(encoded(0)[:-2000])
    with pytest.raises(UserError, match=r"(?s)bad images: 7 so far.*aa\.jpg: not an image.*--max-bad=N") as refused:
        prepare_images([tmp_path / "in"], tmp_path / "data.h5", max_bad=6)
    assert "0x" not in str(refused.value), "addresses mean nothing to the user"
    assert not (tmp_path / "data.h5").exists()
    for size in (None, 8):
        prepare_images([tmp_path / "in"], tmp_path / "data.h5", size=size, max_bad=7)
        said = capsys.readouterr().err
        assert "warning: passed over bad images: 7, the first of them" in said
        assert [f"{name}: " in said for name in ("aa.jpg", "cut.jpg", "empty.png", "zz.png")] == [True] * 3 + [False]
        assert sum(len(labels) for _, labels in read_all(tmp_path / "data.h5").values()) == len(contents)


def test_what_is_gone_since_it_was_listed_is_a_bad_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "in")

    def late(files: list[File]) -> Any:
        Path(files[3].path).unlink()
        return cut_into_tasks(files)

    monkeypatch.setattr("hpcdistill.data.images.prepare_images.cut_into_tasks", late)
    with pytest.raises(UserError, match=r"0003.png: \[Errno 2\] No such file"):
        prepare_images([tmp_path / "in"], tmp_path / "data.h5")


@pytest.mark.parametrize("size", [None, 8])
def test_after_a_kill_it_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    monkeypatch.setattr("hpcdistill.data.images.folder.PIECE_BYTES", 20_000)
    write_folder(tmp_path / "in")
    prepare_images([tmp_path / "in"], tmp_path / "whole.h5", size=size, processes=1)
    with monkeypatch.context() as patch:
        patch.setattr("hpcdistill.data.images.prepare_images.write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_images([tmp_path / "in"], tmp_path / "killed.h5", size=size, processes=2)
    pieces = sorted(tmp_path.glob("killed.h5.pieces-*/*.h5"))
    assert len(pieces) > 5
    pieces[1].unlink()
    with monkeypatch.context() as patch:
        patch.setattr("hpcdistill.data.images.prepare_images.make_piece", only_the_second)
        prepare_images([tmp_path / "in"], tmp_path / "killed.h5", size=size, processes=2)
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("hpcdistill.data.images.prepare_images.write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_images([tmp_path / "in"], tmp_path / "killed.h5", size=size)
    (tmp_path / "in" / "ant" / "0001.png").write_bytes(encoded(1234))  # the change makes all pieces unusable
    prepare_images([tmp_path / "in"], tmp_path / "killed.h5", size=size)
    assert (tmp_path / "killed.h5").read_bytes() != (tmp_path / "whole.h5").read_bytes()


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def only_the_second(size: int | None, files: list[File]) -> Any:
    assert not files[0].path.endswith("0000.png"), "a finished piece was made again"
    return make_piece(size, files)


def nothing(folder: Path) -> None:
    folder.mkdir()


def no_class_folders(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(0))


def empty_class(folder: Path) -> None:
    write_folder(folder, 2)
    (folder / "cow").mkdir()


def all_in_validation(folder: Path) -> None:
    write_folder(folder, 40)
    names = [f"cow/{number}.png" for number in range(200)]
    chosen = [name for name, taken in zip(names, _by_hash(names), strict=True) if taken]
    (folder / "cow").mkdir()
    (folder / chosen[0]).write_bytes(encoded(0))


def few_pictures(folder: Path) -> None:
    write_folder(folder, 1, ["ant", "cow"])


def dangling(folder: Path) -> None:
    write_folder(folder, 2)
    (folder / "ant" / "link.png").symlink_to(folder / "nowhere.png")


def layout(*classes: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in classes:
            write_folder(folder, 2, [name])

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "must each be one folder that has a folder for each class, or two IDX files"),
        (nothing, "in has no folders in it; it needs one for each class"),
        (no_class_folders, "in has no folders in it; it needs one for each class"),
        (empty_class, r"in/cow has no pictures in it \(.bmp, .*\); add some, or remove it"),
        (all_in_validation, "all pictures of .*in/cow fall into the validation part.*--validation"),
        (few_pictures, r"too few images for a training and a validation part: {'train': 2, 'validation': 0}"),
        (dangling, r"(?s)bad images: 1 so far.*link.png: .*No such file or directory.*--max-bad=N"),
        (layout("ant"), r"has one class only, 'ant', and needs at least two; add a folder for another one"),
        (layout("a b/ant", "a b/bee"), r"one class only, 'a b', .*; give --input '.*/in/a b'$"),
        (
            layout("x/y/train/ant", "x/y/val/ant"),
            r"only, 'x', .*; give --input \S*/x/y/train --validation \S*/x/y/val$",
        ),
        (layout("train/ant"), r"not parts of the data as 'train'; give --input \S*/in/train, or"),
        (
            layout("test/ant", "train/ant", "val/ant"),
            r"as 'test' and 'train' and 'val'; give --input \S*/in/train --validation \S*/in/val, or",
        ),
        (layout("Training/ant", "Test/ant"), r"give --input \S*/in/Training --validation \S*/in/Test, or"),
        (layout("train", "val"), r"not parts of the data as 'train' and 'val'; give"),
        (layout("ant", "bee", "valid"), r"not parts of the data as 'valid'; take it out of \S*/in, or"),
        (
            layout("one/ant", "one/bee", "two/ant", "two/bee"),
            r"/in have no pictures in them but only folders, as \S*/one/ant; .*, give --input \S*/in/one; if not, put",
        ),
    ],
)
def test_folders_that_cannot_be_are_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        prepare_images([tmp_path / "in"], tmp_path / "data.h5")
    assert not (tmp_path / "data.h5").exists()


def test_a_class_of_the_validation_folder_only_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 2)
    write_folder(tmp_path / "other", 2, ["ant", "been"])
    with pytest.raises(UserError, match=r"has a class 'been', which --input .* does not have \(did you mean 'bee'\?\)"):
        prepare_images([tmp_path / "in"], tmp_path / "data.h5", [tmp_path / "other"])


@pytest.mark.parametrize("classes", [["bus", "train"], ["ant/images", "bee/images"], ["ant/brown", "ant/red", "bee"]])
def test_folders_that_look_alike_are_taken(tmp_path: Path, classes: list[str]) -> None:
    layout(*classes)(tmp_path / "in")
    prepare_images([tmp_path / "in"], tmp_path / "data.h5", [tmp_path / "in"])
    with ImageStore(tmp_path / "data.h5") as store:
        assert store.kind.classes == sorted({name.split("/")[0] for name in classes})


def test_a_class_without_validation_pictures_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "in", 1)
    write_folder(tmp_path / "other", 1, CLASSES[1:2])
    prepare_images([tmp_path / "in"], tmp_path / "data.h5", [tmp_path / "other"])
    assert "other has no pictures of 2 of the 3 classes, such as 'ant'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "--size 0 must be at least 1 pixel"),
        ({"processes": 0}, "--processes 0 must be at least 1"),
        ({"validation": [Path("nowhere")]}, "in and nowhere: --input, and --validation where it is given, must each"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_folder(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        prepare_images([tmp_path / "in"], tmp_path / "data.h5", **options)


def test_without_pillow_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"decoded with Pillow, .*; pip install pillow"):
        prepare_images([tmp_path / "in"], tmp_path / "data.h5")


def test_the_command_tells_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "in")
    output = str(tmp_path / "data.h5")
    assert main(["prepare", "images", "--input", str(tmp_path / "in"), "--size", "8", "--output", output]) == 0
    with ImageStore(tmp_path / "data.h5") as store:
        sizes = f"{store.size('train')} training and {store.size('validation')} validation"
    assert f"{output}: {sizes} images of 3 classes, 3 × 8 × 8" in capsys.readouterr().out


def test_a_bad_picture_ends_the_command(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    (tmp_path / "in" / "ant" / "bad.png").write_text("no picture")
    command = [sys.executable, "-m", "hpcdistill", "prepare", "images", "--input", str(tmp_path / "in")]
    command.append(f"--output={tmp_path / 'data.h5'}")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert refused.returncode != 0
    assert "ant/bad.png: not an image" in refused.stderr
    assert "Traceback" not in refused.stderr
    accepted = subprocess.run([*command, "--max-bad=1"], capture_output=True, text=True, timeout=200)
    assert accepted.returncode == 0
    assert "images of 3 classes, encoded" in accepted.stdout


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcdistill.data.images.folder.PIECE_BYTES", 1 << 20)
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, count in ((few, 10), (many, 200)):
        write_folder(folder, 40)
        for number in range(count):
            (folder / "ant" / f"{number}.png").write_bytes(encoded(0, size=(300, 300)))
    peaks = [peak_of(lambda path=path: prepare_images([path], path.with_suffix(".h5"))) for path in (few, many)]
    more = sum(path.stat().st_size for path in (many / "ant").iterdir())
    assert peaks[1] - peaks[0] < more / 2, f"bytes: {peaks}, for {more} of files"
