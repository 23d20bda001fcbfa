"""Labels: the classes of images come from folders or from a table, or an error names the images."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

import tinygan
from tinygan import data

NAMES = ["cat/1.png", "cat/in/2.png", "dog/1.png"]


def build(root, names=NAMES):
    """Return a folder of one-coloured pictures."""
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * index, 0, 0)).save(root / name)
    return root


def found(images):
    """Return the name of each image's class."""
    assert images.num_classes == len(images.classes)
    assert images.labels.dtype == torch.int64
    return {name: images.classes[label] for name, label in zip(images.names, images.labels)}


def test_sub_folders_are_classes(tmp_path):
    """The first folder of each name, sorted; images come with labels, packed or not."""
    root = build(tmp_path / "pets")
    images = data.image_folder(root, 8, labels="folders")
    packed = data.pack(root, tmp_path / "pets.npy", 8, labels="folders", workers=0)
    for each in (images, packed, data.open_packed(tmp_path / "pets.npy")):
        assert each.classes == ["cat", "dog"]
        assert each.labels.tolist() == [0, 0, 1]
        assert each.configuration == images.configuration
        image, label = each[2]
        assert (image.shape, label) == ((3, 8, 8), torch.tensor(1))
    assert images.configuration != data.image_folder(root, 8).configuration
    for workers in (0, 1):
        loader = data.Loader(images, 2, workers=workers)
        for (one, labels), (other, same) in zip(loader, data.Loader(packed, 2), strict=True):
            assert torch.equal(one, other)
            assert torch.equal(labels, same)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_folder_around_all_others_is_no_class(tmp_path, kind):
    """As archives have it; links to folders are classes as well."""
    root = build(tmp_path / "around" / "pets").parent
    archive = shutil.make_archive(root, kind, root)
    for each in (root, archive):
        assert data.image_folder(each, labels="folders").classes == ["cat", "dog"]
    assert data.image_folder(
        root / "pets" / "cat", labels={"1.png": "a", "in/2.png": "b"}
    ).num_classes
    (tmp_path / "linked").mkdir()
    for name in ("10", "9"):
        (tmp_path / "linked" / name).symlink_to(root / "pets" / "cat")
    images = data.image_folder(tmp_path / "linked", labels="folders")
    assert images.classes == ["9", "10"]  # in the order of numbers
    assert found(images)["10/in/2.png"] == "10"


TABLES = {
    "names.csv": "file,class\ncat/1.png,cat\ncat/in/2.png,cat\ndog/1.png,dog\n",
    "bom.csv": "\ufeffcat/1.png,cat\r\n\r\ncat/in/2.png, cat \r\ndog/1.png,dog,more\r\n",
    "names.json": json.dumps({"cat/1.png": "cat", "2.png": "cat", "dog/1.png": "dog"}),
    "pairs.json": json.dumps({"labels": [[name, name[:3]] for name in NAMES]}),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("inside", [False, True])
def test_tables_name_classes(tmp_path, name, inside):
    """CSV or JSON, as a file of its own or inside of what holds the images."""
    root = build(tmp_path / "pets")
    table = (root if inside else tmp_path) / name
    table.write_text(TABLES[name])
    expected = {name: name[:3] for name in NAMES}
    if inside:
        for each in (
            root,
            shutil.make_archive(root, "zip", root),
            shutil.make_archive(root, "tar", root),
        ):
            assert found(data.image_folder(each, labels=name)) == expected
    else:
        assert found(data.image_folder(root, labels=table)) == expected


def test_stylegans_dataset_json_is_read(tmp_path):
    """Numbers are the classes themselves; null means no labels."""
    root = build(tmp_path / "set", ["00000/img1.png", "00000/img2.png"])
    table = root / "dataset.json"
    table.write_text(json.dumps({"labels": [["00000/img1.png", 3], ["00000/img2.png", 0]]}))
    images = data.image_folder(root, labels="dataset.json")
    assert images.labels.tolist() == [3, 0]
    assert (images.num_classes, images.classes) == (4, ["0", "1", "2", "3"])
    table.write_text('{"labels": null}')
    images = data.image_folder(root, labels="dataset.json")
    assert (images.labels, images.num_classes) == (None, None)


def test_bad_images_need_no_label_and_a_table_may_name_others(tmp_path):
    """Only what can be an image counts."""
    root = build(tmp_path / "pets")
    (root / "empty.png").touch()
    table = {name: name[:3] for name in [*NAMES, "empty.png", "gone.png"]}
    assert data.image_folder(root, labels=table).labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("folders", "1 of 4 images in .* have no class in labels: 'top.png'"),
        (
            {"top.png": 0},
            "3 of 4 images .* no class in labels: 'cat/1.png', 'cat/in/2.png', 'dog/1.png';",
        ),
        (
            dict.fromkeys(["1.png", "2.png", "top.png"], 0),
            "2 of 4 .*: 'cat/1.png', 'dog/1.png';",
        ),
        ({**dict.fromkeys(NAMES, 0), "top.png": -1}, "from 0 to 1048575, got -1 for 'top.png'"),
        ({**dict.fromkeys(NAMES, 0), "top.png": 2**40}, "got 1099511627776 for 'top.png'"),
        ({**dict.fromkeys(NAMES, "a"), "top.png": 0}, "labels must all be names, or all numbers"),
        ({**dict.fromkeys(NAMES, 0), "top.png": [0.5]}, r"got \[0.5\] for 'top.png'"),
        (
            "nowhere.csv",
            r'labels must be None, "folders", a mapping, .* got nowhere.csv \(',
        ),
        ("top.png", r"got top.png \(UnicodeDecodeError\("),
        ("short.csv", r"got short.csv \(IndexError"),
        ("list.json", r"got list.json \("),
        ("broken.json", r"got broken.json \(JSONDecodeError"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, labels, sentence):
    """With the first images that lack one, or with what is wrong with the table."""
    root = build(tmp_path / "pets", [*NAMES, "top.png"])
    (root / "short.csv").write_text("top.png\n")
    (root / "list.json").write_text("[1, 2]")
    (root / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=sentence):
        data.image_folder(root, labels=labels)


def test_labels_train_nets_with_classes(tmp_path):
    """``num_classes`` builds the nets, and the loader gives what they ask for."""
    packed = data.pack(build(tmp_path / "pets"), tmp_path / "p.npy", 8, labels="folders", workers=0)
    trainer = tinygan.GANTrainer(
        tinygan.DCGANGenerator(8, base_channels=4, num_classes=packed.num_classes),
        tinygan.DCGANDiscriminator(8, base_channels=4, num_classes=packed.num_classes),
    )
    trainer.fit(data.Loader(packed, 3), epochs=1)
    assert trainer.sample(2, labels=1).shape == (2, 3, 8, 8)


def test_a_bare_name_that_a_bad_file_shares_is_no_name(tmp_path):
    """Or an image would get the class of a file that was left out."""
    root = build(tmp_path / "pets", ["x/1.png", "2.png"])
    (root / "1.png").touch()  # empty
    with pytest.raises(ValueError, match=r"1 of 2 images in .* have no class in labels: 'x/1.png'"):
        data.pack(
            root, tmp_path / "pets.npy", 8, labels={"1.png": "cat", "2.png": "dog"}, workers=0
        )


def test_a_table_that_names_a_file_twice_is_refused(tmp_path):
    """Which class is meant nobody knows."""
    root = build(tmp_path / "pets")
    table = tmp_path / "classes.csv"
    table.write_text("".join(f"{name},a\n" for name in [*NAMES, NAMES[0]]))
    with pytest.raises(ValueError, match="it names a file twice"):
        data.image_folder(root, 8, labels=table)
