"""Tables of images: layouts that people have, what labels mean, and what is refused."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densenet_jax.data.sources import by_name, splits, subsets, tables
from densenet_jax.data.sources.source import DataError
from densenet_jax.data.sources.tables import Columns

NAN = math.nan


def write(folder, text, *images, name="t.csv", encoding="utf-8"):
    """Writes a table and empty image files, and returns the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(image.encode())
    (folder / name).write_bytes(text.encode(encoding))
    return str(folder / name)


def both(path, task="classification", holdout=0.5, **columns):
    """Returns the examples of both splits, {path: label}, and the training split."""
    found = {}
    for split in ("train", "validation"):
        source = by_name.load("table", split, path, holdout, task=task, columns=Columns(**columns))
        found |= dict(zip(source.examples.paths, source.examples.labels.tolist(), strict=True))
        if split == "train":
            train = source
    return found, train


def fails(match, path, task="classification", **columns):
    with pytest.raises(DataError, match=match) as caught:
        by_name.load("table", "train", path, task=task, columns=Columns(**columns))
    return str(caught.value)


ABC = [f"{c}.jpg" for c in "abcdefgh"]


def test_classes_are_sorted_and_numbers_by_size(tmp_path):
    rows = "".join(f"{n},{['10', '9', '2'][i % 3]}\n" for i, n in enumerate(ABC))
    found, train = both(write(tmp_path, "path,label\n" + rows, *ABC))
    assert train.class_names == ("2", "9", "10")
    assert found["a.jpg"] == 2
    assert found["c.jpg"] == 0
    assert len(found) == 8
    assert isinstance(train.examples.labels, np.ndarray)
    example = train.examples[0]
    assert example["image"] == train.examples.paths[0].encode()
    assert isinstance(example["label"], int)
    assert train.describe(0) == str(tmp_path / train.examples.paths[0])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_separators_and_encodings(tmp_path, separator, encoding):
    rows = [["path", "label", "note"]]
    rows += [[n, "Café" if i % 2 else "a b", '"two\nlines"'] for i, n in enumerate(ABC)]
    text = "\r\n".join(separator.join(row) for row in rows)
    found, train = both(write(tmp_path, text, *ABC, encoding=encoding))
    assert train.class_names == ("Café", "a b")
    assert len(found) == 8
    assert any("Latin-1" in note for note in train.notes) == (encoding == "latin-1")


def test_an_ambiguous_separator_is_refused_unless_the_columns_decide(tmp_path):
    path = write(tmp_path, "path,a;label,b\n", name="x.csv")
    fails("separator may be a comma or a semicolon", path)
    path = write(
        tmp_path, "path,label,b;c\n" + "".join(f"{n},{n[0] < 'd'},1;2\n" for n in ABC), *ABC
    )
    assert len(both(path)[0]) == 8


def test_chest_xray14(tmp_path):
    """Kaggle's layout: file names, images in numbered folders, lists of labels."""
    images = [f"images_{i:03}/images/{i:08}_000.png" for i in range(1, 9)]
    cells = ["No Finding", "Mass|Nodule", "Nodule", "Mass"] * 2
    rows = "".join(
        f"{name.split('/')[-1]},{cell},{i // 2}\n"
        for i, (name, cell) in enumerate(zip(images, cells, strict=True))
    )
    path = write(tmp_path, "Image Index,Finding Labels,Patient ID\n" + rows, *images)
    options = {"path_column": "Image Index", "label_columns": ("Finding Labels",)}
    found, train = both(path, "multilabel", **options, group_column="Patient ID")
    assert train.class_names == ("Mass", "Nodule")
    assert [found[name] for name in images[:4]] == [[0, 0], [1, 1], [0, 1], [1, 0]]
    assert train.task == "multilabel"
    assert train.examples[0]["label"].dtype == np.float32
    assert any("8 files are found below" in note for note in train.notes)
    fails(r"list of labels 'Mass\|Nodule'.*--config.task=multilabel", path, **options)


def test_padchest_and_google(tmp_path):
    """Lists as Python writes them; YES and NO."""
    cells = ["['normal']", "['mass', \"stent'\"]", "[]", "['mass']"] * 2
    rows = [
        f'{n},"{c.replace(chr(34), 2 * chr(34))}",{"YES" if i % 2 else "NO"}\n'
        for i, (n, c) in enumerate(zip(ABC, cells, strict=True))
    ]
    path = write(tmp_path, "path,Labels,Fracture\n" + "".join(rows), *ABC)
    found, train = both(path, "multilabel", label_columns=("Labels",))
    assert train.class_names == ("mass", "normal", "stent'")
    assert [found[n] for n in ABC[:4]] == [[0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0]]
    found, _ = both(path, "multilabel", label_columns=("Fracture",))
    assert [found[n] for n in ABC[:4]] == [[0], [1], [0], [1]]


def test_chexpert(tmp_path):
    """The table lies inside the folder with which its paths begin; 1, 0, -1 and blank."""
    images = [f"train/patient{i:05}/study1/view1_frontal.jpg" for i in range(8)]
    cells = [("1.0", ""), ("0.0", "-1.0"), ("", "1.0"), ("-1.0", "0.0")] * 2
    rows = "".join(
        f"CheXpert-v1.0-small/{name},{'Male' if i % 2 else 'Female'},{a},{b}\n"
        for i, (name, (a, b)) in enumerate(zip(images, cells, strict=True))
    )
    path = write(tmp_path, "Path,Sex,Edema,Fracture\n" + rows, *images, name="train.csv")
    options = {"path_column": "Path", "label_columns": ("Edema", "Fracture")}
    expected = {"ignore": NAN, "zero": 0, "one": 1}
    for uncertain, u in expected.items():
        found, train = both(path, "multilabel", **options, uncertain=uncertain)
        values = [found[name] for name in images[:4]]
        np.testing.assert_array_equal(values, [[1, u], [0, u], [u, 1], [u, 0]])
        assert any("8 of 16 labels" in note and "-1 or blank" in note for note in train.notes)
    assert any("without their first folder, CheXpert-v1.0-small/" in n for n in train.notes)
    assert set(train.columns["Sex"]) <= {"Male", "Female"}
    assert len(train.columns["Sex"]) == len(train)
    fails("config.task=classification takes one.*--config.task=multilabel", path, **options)
    fails(
        "'Female'; a label is 1",
        path,
        "multilabel",
        path_column="Path",
        label_columns=("Edema", "Sex"),
    )
    fails("data.uncertain is 'maybe'", path, "multilabel", **options, uncertain="maybe")


def test_ham10000(tmp_path):
    """Names without suffix, images in two folders, several images of a lesion."""
    images = [f"HAM10000_images_part_{1 + i % 2}/ISIC_{i:07}.jpg" for i in range(12)]
    rows = "".join(
        f"HAM_{i // 3},{name.split('/')[-1][:-4]},{'mel' if i % 4 else 'nv'}\n"
        for i, name in enumerate(images)
    )
    path = write(tmp_path, "lesion_id,image_id,dx\n" + rows, *images)
    options = {"path_column": "image_id", "label_columns": ("dx",), "group_column": "lesion_id"}
    found, train = both(path, **options)
    assert set(found) == set(images)
    assert train.class_names == ("mel", "nv")
    assert set(train.groups) <= {f"HAM_{i}" for i in range(4)}
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "ISIC_0000000.png").touch()
    fails("'ISIC_0000000' may be .*; write the whole path", path, **options)


def test_a_single_folder_of_images(tmp_path):
    """COCO's layout: one folder, file names in the table."""
    rows = "".join(f"{n},{n[0] < 'd'}\n" for n in ABC)
    path = write(tmp_path, "file_name,label\n" + rows, *(f"train2017/{n}" for n in ABC))
    assert set(both(path, path_column="file_name")[0]) == {f"train2017/{n}" for n in ABC}


def test_regression(tmp_path):
    rows = "".join(f"{n},{30.5 + i},{'' if i else -1}\n" for i, n in enumerate(ABC))
    path = write(tmp_path, "path,age,score\n" + rows, *ABC)
    found, train = both(path, "regression", label_columns=("age", "score"))
    assert train.class_names == ("age", "score")
    assert found["a.jpg"] == [30.5, -1]
    assert found["b.jpg"][0] == 31.5
    assert math.isnan(found["b.jpg"][1])
    fails(
        "numbers with fractions, such as 30.5.*--config.task=regression",
        path,
        label_columns=("age",),
    )
    fails("takes one.*--config.task=regression", path, label_columns=("age", "score"))
    (tmp_path / "x.csv").write_text("path,age\na.jpg,3\nb.jpg,old\n")
    fails(
        "row 3: the column 'age' has 'old'",
        str(tmp_path / "x.csv"),
        "regression",
        label_columns="age",
    )
    (tmp_path / "x.csv").write_text("path,age\na.jpg,3\nb.jpg,inf\n")
    fails(
        "row 3: the column 'age' has 'inf'",
        str(tmp_path / "x.csv"),
        "regression",
        label_columns="age",
    )


def test_parquet_is_read_as_csv_is(tmp_path):
    columns = {
        "path": ABC,
        "label": pa.array([1, 0, None, 1, 0, 1, 0, 1]),
        "age": [1.5, None, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
        "tags": [["x", "y"], [], ["x"], None, ["y"], [], [], []],
        "embedding": pa.array([{"a": 1}] * 8),
    }
    write(tmp_path, "", *ABC)
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table(columns), path)
    found, _ = both(path, "multilabel", label_columns=("label",))
    np.testing.assert_array_equal([found[n] for n in ABC[:4]], [[1], [0], [NAN], [1]])
    found, train = both(path, "multilabel", label_columns=("tags",), uncertain="zero")
    assert train.class_names == ("x", "y")
    assert found["a.jpg"] == [1, 1]
    assert both(path, "regression", label_columns=("age",))[0]["c.jpg"] == [3.0]
    fails("'embedding' is a struct.*needs text or numbers", path, label_columns=("embedding",))
    fails("no column 'lable'.*did you mean 'label'", path, label_columns=("lable",))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    fails("not a readable Parquet file", str(tmp_path / "bad.parquet"))


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    fails("pip install pyarrow", write(tmp_path, "", name="t.parquet"))


def test_records_give_the_same_source_as_a_file(tmp_path):
    rows = [{"path": n, "label": i % 2, "patient": f"p{i // 2}"} for i, n in enumerate(ABC)]
    text = "".join(f"{r['path']},{r['label']},{r['patient']}\n" for r in rows)
    columns = Columns(group_column="patient")
    file = tables.table_source(
        write(tmp_path, "path,label,patient\n" + text, *ABC), "train", columns
    )
    records = tables.from_records(rows, tmp_path, "train", columns)
    assert list(records.examples.paths) == list(file.examples.paths)
    np.testing.assert_array_equal(records.examples.labels, file.examples.labels)
    assert list(records.groups) == list(file.groups)
    with pytest.raises(DataError, match="record 1 has 'lable'"):
        tables.from_records([rows[0], {"lable": 1}], tmp_path)
    with pytest.raises(DataError, match="empty"):
        tables.from_records([], tmp_path)
    lists = [{"path": n, "label": ["x", "y"][: i % 3]} for i, n in enumerate(ABC)]
    source = tables.from_records(
        lists, tmp_path, columns=Columns(uncertain="zero"), task="multilabel"
    )
    assert source.class_names == ("x", "y")


def test_columns_name_the_splits(tmp_path):
    names = ["Train"] * 4 + ["VAL"] * 2 + ["test", ""]
    text = "".join(f"{n},{i % 2},{s}\n" for i, (n, s) in enumerate(zip(ABC, names, strict=True)))
    path = write(tmp_path, "path,label,fold\n" + text, *ABC)
    columns = Columns(split_column="fold")
    sizes = {
        split: len(tables.table_source(path, split, columns))
        for split in ("train", "validation", "val", "test")
    }
    assert sizes == {"train": 4, "validation": 2, "val": 2, "test": 1}
    notes = tables.table_source(path, "validation", columns).notes
    assert any("1 rows of" in note and "in no split" in note for note in notes)
    assert any("val chooses the best checkpoint; test is for" in note for note in notes)
    with pytest.raises(DataError, match="no split 'x'; it has train, val, test"):
        tables.table_source(path, "x", columns)
    with pytest.raises(DataError, match="both divide the table"):
        tables.table_source(path, "train", columns, splits.Division(folds=3))


def test_a_group_in_two_splits_is_refused(tmp_path):
    text = "".join(
        f"{n},{i % 2},{'train' if i < 5 else 'val'},p{i // 2}\n" for i, n in enumerate(ABC)
    )
    path = write(tmp_path, "path,label,split,patient\n" + text, *ABC)
    columns = {"split_column": "split", "group_column": "patient"}
    fails(r"group 'p2' is in two splits, train and val \(1 groups", path, **columns)


def test_a_class_without_training_examples_is_refused(tmp_path):
    path = write(tmp_path, "path,label,split\na.jpg,x,train\nb.jpg,y,train\nc.jpg,z,val\n", *ABC)
    with pytest.raises(DataError, match="val has the class 'z', which train lacks"):
        tables.table_source(path, "validation", Columns(split_column="split"))


def test_rows_that_repeat_a_path(tmp_path):
    good = "path,label\na.jpg,1\nb.jpg,0\n./a.jpg,1\nc.jpg,0\n"
    found, train = both(write(tmp_path, good, *ABC), holdout=0.6)
    assert found == {"a.jpg": 1, "b.jpg": 0, "c.jpg": 0}
    assert any("1 rows repeat an earlier row" in note for note in train.notes)
    fails(
        "row 4: 'a.jpg' is the file of row 2 too, with other labels",
        write(tmp_path, "path,label\na.jpg,1\n\na.jpg,0\n", *ABC),
    )


@pytest.mark.parametrize(
    "cell", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "C:\\x.jpg", "http://x/y.jpg", "..", "."]
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, cell):
    (tmp_path / "x.jpg").touch()
    path = write(tmp_path / "inner", f"path,label\na.jpg,1\n{cell},0\n", *ABC)
    fails("row 3: .* leads out of the folder", path)


def test_paths_inside_the_folder_in_other_forms(tmp_path):
    text = f"path,label\n{tmp_path / 'a.jpg'},1\nsub\\..\\b.jpg,0\n./c.jpg,1\nsub//d.jpg,0\n"
    path = write(tmp_path, text, "a.jpg", "b.jpg", "c.jpg", "sub/d.jpg")
    assert set(both(path, holdout=0.6)[0]) == {"a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty; it needs a header"),
        ("path,label\n", "has a header but no rows"),
        ("path,label\na.jpg,1,2\n", "row 2 has 3 cells, but the header has 2"),
        ("path,label\na.jpg,1\n\nb.jpg\n", "row 4 has 1 cells"),
        ("file,label\na.jpg,1\n", "no column 'path'.*it has file, label.*data.path_column"),
        ("path,Label\na.jpg,1\n", "no column 'label' .did you mean 'Label'"),
        ("path,label,label\na.jpg,1,1\n", "column 'label' twice"),
        ('path,label\na.jpg,"1\nb.jpg,2\n', "quotes of this row"),
        ("path,label\na.jpg,1\n,2\n", "row 3: the path is blank"),
        ("path,label\na.jpg,1\nb.jpg,1\n", "has 1 classes"),
        ("path,label\na.jpg,1\nb.jpg,1.0\n", "one number in two ways, '1' and '1.0'"),
        (
            "path,label\na.jpg,1\nx.jpg,0\ny.jpg,0\nw,1\nz.jpg,1\n",
            "4 of 5 files are missing in .*: x.jpg, y.jpg",
        ),
        ("path,label\na.jpg,1\nb.jpg,\0\n", "no text: it is another kind of file"),
        (
            "path,label\na.jpg,x\nb.jpg,\nc.jpg,y\n",
            "row 3: the class in the column 'label' is blank",
        ),
    ],
)
def test_tables_that_are_refused(tmp_path, text, match):
    path = write(tmp_path, text, *ABC)
    with pytest.raises(DataError, match=match):
        by_name.load("table", "train", path, 0.01)


def test_columns_that_are_refused(tmp_path):
    text = "".join(f"{n},{i % 2},{'' if i == 3 else 'p'},\n" for i, n in enumerate(ABC))
    path = write(tmp_path, "path,label,patient,none\n" + text, *ABC)
    fails("row 5: the group in the column 'patient' is blank", path, group_column="patient")
    text_nan = "".join(f"{n},{i % 2},{'NaN' if i == 3 else 'p'}\n" for i, n in enumerate(ABC))
    unknown = write(tmp_path, "path,label,patient\n" + text_nan, *ABC, name="n.csv")
    fails(r"row 5: the group .* is blank \(NaN\)", unknown, group_column="patient")
    fails("no known value of 'none'", path, "multilabel", label_columns=("label", "none"))
    fails(
        r"several are written .*\('label', 'none'\)",
        path,
        "multilabel",
        label_columns=("label,none",),
    )
    fails("both name 'label'", path, path_column="label")
    fails("each once", path, "multilabel", label_columns=("label", "label"))
    fails("ends in .csv, .tsv, .parquet", str(tmp_path))
    fails("does not exist", str(tmp_path / "x.csv"))
    with pytest.raises(DataError, match=r"data\.split_column=.x. is for tables"):
        by_name.load("digits", "train", columns=Columns(split_column="x"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_wide_text_without_its_mark_is_refused(tmp_path, encoding):
    text = "path,label\n" + "".join(f"{n},{i % 2}\n" for i, n in enumerate(ABC))
    fails("no text: .* Save it as UTF-8", write(tmp_path, text, *ABC, encoding=encoding))


def test_a_line_without_end_is_refused(tmp_path):
    fails("has a line of", write(tmp_path, "path,label\n" + "a" * 2**22))


def test_columns_with_many_values_are_not_kept(tmp_path):
    names = [f"{i}.jpg" for i in range(1100)]
    text = "".join(f"{n},{i % 2},text {i},{i % 7}\n" for i, n in enumerate(names))
    _, train = both(write(tmp_path, "path,label,report,ward\n" + text, *names))
    assert list(train.columns) == ["ward"]


def test_classes_of_a_multilabel_table_choose_labels(tmp_path):
    text = "".join(f"{n},{i % 2},{i % 3 == 0:d},\n" for i, n in enumerate(ABC))
    path = write(tmp_path, "path,a,b,c\n" + text, *ABC)
    whole = by_name.load(
        "table", "train", path, task="multilabel", columns=Columns(label_columns=("a", "b"))
    )
    part = subsets.choose(whole, ("b",))
    assert part.class_names == ("b",)
    np.testing.assert_array_equal(part.examples.labels, whole.examples.labels[:, 1:])
    with pytest.raises(DataError, match="needs one class for each example"):
        subsets.choose(whole, per_class=1)
