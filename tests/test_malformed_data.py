"Data sets that cannot be used: each is refused before the first step, in one line that names what is wrong."
import json
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import msgspec
import nibabel as nib
import numpy as np
import pytest
from malformed import Bad, refuses

from cssgan.cli.commands import train_main
from cssgan.data.datasets import unpaired
from cssgan.data.finding import find_cases, write_manifest
from cssgan.data.folders import from_folder
from cssgan.data.splits import with_splits
from cssgan.data.writing import write_phantoms
from cssgan.guard import InputError
from cssgan.scans.volumes import IGNORE, Grid
from cssgan.task import HEART

TINY = Grid((24, 24, 16), (7.0, 7.0, 8.0))
IMAGE, LABEL = "CT/phantom_00000_image.nii.gz", "CT/phantom_00000_label.nii.gz"
HEAD = "image,label,modality,split\n"
GOOD = "a.nii,,CT,train\nb.nii,,MRI,train\nc.nii,,CT,valid\nd.nii,,MRI,valid\n"


@cache
def good():
    "A plain folder of tiny phantoms: three CT, three MRI."
    folder = Path(tempfile.mkdtemp())
    write_phantoms(folder, 3, grid=TINY)
    return folder


@pytest.fixture(scope="module", autouse=True)
def tidy():
    yield
    shutil.rmtree(good())
    good.cache_clear()


def check(words):
    "What a command does with a data set before the first step."
    with tempfile.TemporaryDirectory() as kept:
        try: unpaired(with_splits(find_cases(words[0])), TINY, Path(kept) / "cache").prepare()
        except InputError as e: print(f"check: {e}", file=sys.stderr)
        else: return 0
    return 1


# ---- ways to spoil a data set

def named(name): return lambda folder: [name(folder) if callable(name) else name]


def table(text, encoding="utf-8", name="m.csv"):
    "A manifest of this text."
    def make(folder):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return [folder / name]
    return make


def special(how, name="m.csv"):
    "Something in a manifest's place that is no text file."
    def make(folder):
        how(folder / name)
        return [folder / name]
    return make


def sparse(path):
    with open(path, "wb") as f: f.truncate(4 * 2**30)


def folder_of(*files):
    "A folder of empty files."
    def make(folder):
        for file in files:
            (folder / "set" / os.fsdecode(file)).parent.mkdir(parents=True, exist_ok=True)
            (folder / "set" / os.fsdecode(file)).touch()
        return [folder / "set"]
    return make


def both(*ct): return folder_of("MRI/b_image.nii.gz", "MRI/b_label.nii.gz", *ct)


def spoilt(file, how, manifest=False):
    "A good data set, with one file spoilt."
    def make(folder):
        shutil.copytree(good(), folder / "set")
        if manifest: write_manifest(with_splits(from_folder(folder / "set")), folder / "set" / "m.csv")
        how(folder / "set" / file)
        return [folder / "set" / "m.csv" if manifest else folder / "set"]
    return make


def with_task(content):
    "A good data set with a task.json beside it: bytes, what JSON can hold, or fields that the heart's task gets."
    def make(folder):
        shutil.copytree(good(), folder / "set")
        said = msgspec.to_builtins(HEART) | content if isinstance(content, dict) else content
        (folder / "set/task.json").write_bytes(content if isinstance(content, bytes) else json.dumps(said).encode())
        return [folder / "set"]
    return make


def other_task(how):
    "A good data set with something that is no file in the task's place."
    def make(folder):
        shutil.copytree(good(), folder / "set")
        how(folder / "set/task.json")
        return [folder / "set"]
    return make


def of_nnunet(content, *files):
    "A folder in nnU-Net's layout in the CT's place, with this dataset.json."
    def make(folder):
        both(*(f"CT/{file}" for file in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", *files)))(folder)
        (folder / "set/CT/dataset.json").write_bytes(content if isinstance(content, bytes) else
                                                     json.dumps(content).encode())
        return [folder / "set"]
    return make


def instead(make):
    "Something else in a file's place."
    def how(path):
        path.unlink()
        make(path)
    return how


def labelled(change, affine=lambda a: a, kind=np.uint8):
    "A label map, changed."
    def how(path):
        image = nib.load(path)
        nib.Nifti1Image(np.asarray(change(np.asarray(image.dataobj))).astype(kind),
                        affine(image.affine.copy())).to_filename(path)
    return how


def renumbered(**table):
    return labelled(lambda y: np.select([y == int(ours[1:]) for ours in table], list(table.values()), 0))


def shifted(a):
    a[:3, 3] += 5
    return a


def only(value): return labelled(lambda y: np.full_like(y, value))
def written(content): return lambda path: path.write_bytes(content)
def cut(path): path.write_bytes(path.read_bytes()[:-200])
def rows(*lines, head=HEAD): return table(head + "".join(f"{line}\n" for line in lines))
def first(row, **how): return rows(row, *GOOD.splitlines()[1:], **how)


NAMES = [
    Bad("nowhere", named(lambda f: f / "nowhere"), "nowhere", "no data set"),
    Bad("no name", named(""), "empty name", "no data set"),
    Bad("a long name", named("n" * 5000), "nnnn", "no data set"),
    Bad("a NUL", named("a\0b"), "no data set"),
    Bad("many folders", named("a/" * 3000), "a/a", "no data set"),
    Bad("another phantom set", named("phantom-S9"), "phantom-S9", "no data set"),
    Bad("a text file", special(lambda p: p.write_text("x"), "cases.txt"), "cases.txt", "no data set"),
    Bad("a device", named("/dev/zero"), "/dev/zero", "no data set"),
    Bad("terminal escapes", named("\x1b[2J\x07data"), "data", "no data set"),
    Bad("a name of Latin-1 bytes", named(os.fsdecode(b"M\xfcller")), "ller", "no data set"),
    Bad("no manifest there", named(lambda f: f / "gone.csv"), "gone.csv", "not there"),
    Bad("a pipe", special(os.mkfifo), "m.csv", "pipe"),
    Bad("a link to nowhere", special(lambda p: p.symlink_to("gone")), "m.csv", "not there"),
    Bad("a link to itself", special(lambda p: p.symlink_to("m.csv")), "m.csv"),
    Bad("a link to a device", special(lambda p: p.symlink_to("/dev/zero")), "m.csv", "device"),
    Bad("a link into /proc", special(lambda p: p.symlink_to("/proc/self/environ")), "m.csv", "system"),
    Bad("4 GB of nothing", special(sparse), "m.csv", "larger than"),
    Bad("an empty folder of a manifest's name", special(os.mkdir), "m.csv", "no folder CT"),
]

MANIFESTS = [
    Bad("nothing in it", table(""), "m.csv", "lacks the columns"),
    Bad("columns alone", table(HEAD), "m.csv", "no rows"),
    Bad("no label column", table("image,modality,split\na.nii,CT,train\n"), "m.csv", "label"),
    Bad("semicolons", table((HEAD + GOOD).replace(",", ";")), "m.csv", "image,label"),
    Bad("tabs", table((HEAD + GOOD).replace(",", "\t")), "m.csv", "image,label"),
    Bad("no first line", table(GOOD), "m.csv", "lacks the columns"),
    Bad("UTF-16", table(HEAD + GOOD, "utf-16"), "m.csv", "UTF-8"),
    Bad("a picture", table(b"\x89PNG\r\n\x1a\n\0\0"), "m.csv", "UTF-8"),
    Bad("Latin-1 in a path", table(HEAD + "M\xfcller.nii,,CT,train\n" + GOOD, "latin-1"), "row 1", "UTF-8"),
    Bad("Latin-1 in a patient",
        table("patient," + HEAD + "M\xfcller,a.nii,,CT,train\nx,b.nii,,MRI,train\n", "latin-1"), "row 1", "UTF-8"),
    Bad("a NUL in a name", table(HEAD + "a\0.nii,,CT,train\n" + GOOD), "m.csv", "zero bytes"),
    Bad("a bell in a name", first("a\x07.nii,,CT,train"), "m.csv", "control character"),
    Bad("an escape in a patient",
        table("patient," + HEAD + "\x1b[31m,a.nii,,CT,train\nx,b.nii,,MRI,train\n"), "m.csv", "control character"),
    Bad("a new line in a name", first('"a\nb.nii",,CT,train'), "m.csv", "control character"),
    Bad("a quote that never closes", first('"a.nii,,CT,train'), "m.csv"),
    Bad("a quote in the middle", first('"a"b.nii,,CT,train'), "m.csv", "no CSV"),
    Bad("a column twice", table("image,image,label,modality,split\na.nii,z.nii,,CT,train\n"), "m.csv", "image twice"),
    Bad("more fields than columns", first("a.nii,,CT,train,b.nii"), "row 1", "more fields"),
    Bad("a comma in a name", first("a, b.nii,,CT,train"), "row 1", "more fields"),
    Bad("a long line", first("a" * 200_000 + ",,CT,train"), "m.csv", "too long"),
    Bad("a long path", first("a" * 5000 + ",,CT,train"), "row 1", "length"),
    Bad("a long patient", table("patient," + HEAD + "p" * 300 + ",a.nii,,CT,train\n"), "row 1", "length"),
    Bad("thousands of columns", table(",".join(f"c{i}" for i in range(9000)) + "\n" + HEAD), "m.csv", "columns"),
    Bad("too many rows", table(HEAD + "a.nii,,CT,train\n" * 100_002), "m.csv", "more than"),
    Bad("lines without end", table(HEAD + "\n" * 2_000_000), "m.csv", "no rows"),
    Bad("21 MB", table(HEAD + "a" * 21_000_000), "m.csv", "larger than"),
    Bad("no image", first(",,CT,train"), "row 1", "no image"),
    Bad("PET", first("a.nii,,PET,train"), "row 1", "'PET': modality is CT or MRI"),
    Bad("mr", first("a.nii,,mr,train"), "row 1", "CT or MRI"),
    Bad("no modality", first("a.nii,,,train"), "row 1", "CT or MRI"),
    Bad("a space before CT", first("a.nii,, CT,train"), "row 1", "' CT'"),
    Bad("training", first("a.nii,,CT,training"), "row 1", "'training' - at split"),
    Bad("Train", first("a.nii,,CT,Train"), "row 1", "train, valid"),
    Bad("a long modality", first(f"a.nii,,{'x' * 50_000},train"), "row 1"),
    Bad("a table that is not known",
        table("table," + HEAD + "BraTS,a.nii,,CT,train\n,b.nii,,MRI,train\n"), "BraTS", "known are"),
    Bad("a split here and there", first("a.nii,,CT,"), "a.nii", "has no split"),
    Bad("no MRI", rows("a.nii,,CT,train"), "m.csv", "no MRI"),
    Bad("no CT", rows("a.nii,,MRI,train"), "m.csv", "no CT"),
    Bad("no validation", rows("a.nii,,CT,train", "b.nii,,MRI,train"), "valid", "no CT case"),
    Bad("a scan twice", first("c.nii,,CT,train"), "c.nii", "twice"),
    Bad("a scan twice, spelled otherwise", first("./x/../c.nii,,CT,train"), "c.nii", "twice"),
    Bad("an id twice", table("id," + HEAD + "1,a.nii,,CT,train\n1,b.nii,,MRI,train\n"), "m.csv", "case 1 twice"),
    Bad("a patient on both sides",
        table("patient," + HEAD + "1,a.nii,,CT,train\n1,b.nii,,MRI,valid\n"), "patient 1", "one split"),
    Bad("a scan that labels itself", first("a.nii,a.nii,CT,train"), "a.nii", "is a scan"),
    Bad("another scan for a label", first("a.nii,b.nii,CT,train"), "b.nii", "is a scan"),
    Bad("a phantom's name for a label", first("a.nii,phantom:3,CT,train"), "phantom:3", "own labels"),
    Bad("a phantom with a label", first("phantom:4,a.nii,CT,train"), "phantom:4", "own labels"),
    *(Bad(f"phantom:{ascii(seed)}",
        first(f"phantom:{seed},,CT,train"), f"phantom:{seed}"[:11], "is no phantom")
      for seed in ("", "-1", "x", "1.5", "²", "１", "1e3", "0x4", " 4", 10**20, 2**32, "9" * 4000)),
    Bad("an address", first("https://example.org/a.nii,,CT,train"), "example.org", "address"),
    Bad("a bucket", first("s3://bucket/a.nii,,CT,train"), "s3://bucket", "address"),
    Bad("an address of a file", first("file:///data/a.nii,,CT,train"), "file:///", "address"),
    Bad("home", first("~/a.nii,,CT,train"), "~/a.nii", "whole path"),
    Bad("a drive", first(r"C:\scans\a.nii,,CT,train"), r"C:\scans", "Windows"),
    Bad("back slashes", first(r"..\scans\a.nii,,CT,train"), "scans", "Windows"),
    Bad("a share", first(r"\\server\a.nii,,CT,train"), "server", "Windows"),
    Bad("an address for a label", first("a.nii,http://x/y.nii,CT,train"), "http://x/", "address"),
    Bad("scans that are not there", table(HEAD + GOOD), "a.nii", "4 of 4 cases cannot be used"),
    Bad("an absolute path that is not there", first("/nowhere/a.nii,,CT,train"), "/nowhere/a.nii", "does not exist"),
    Bad("a device for a scan", first("/dev/zero,,CT,train"), "/dev/zero", "device"),
    Bad("/proc for a scan", first("/proc/self/mem,,CT,train"), "/proc/self/mem", "cannot be used"),
    Bad("a folder without slices",
        lambda f: ((f / "empty").mkdir(), *first("empty,,CT,train")(f))[1:], "empty", "empty folder"),
]

FOLDERS = [
    Bad("an empty folder", folder_of("x/y"), "set", "no folder CT"),
    Bad("only hidden files", both("CT/._a_image.nii.gz", "CT/._a_label.nii.gz"), "set", "no CT"),
    Bad("other formats", both("CT/a.nrrd", "CT/b.mha"), "a.nrrd", "no CT case"),
    Bad("another spelling", both("CT/a_Image.nii.gz"), "a_Image.nii.gz", "no CT case"),
    Bad("plain names", both("CT/a.nii.gz"), "a.nii.gz", "no CT case"),
    Bad("half a download", both("CT/a_image.nii.gz.part"), "a_image.nii.gz.part", "no CT case"),
    Bad("labels alone", both("CT/a_label.nii.gz"), "a_label.nii.gz", "no CT case"),
    Bad("small letters", both("ct/a_image.nii.gz"), "ct/", "no folder CT"),
    Bad("a folder for each patient", both("CT/1/image.nii.gz"), "1/", "no CT case"),
    Bad("an image without its label", both("CT/a_image.nii.gz", "CT/b_image.nii.gz", "CT/b_label.nii.gz"),
        "a_image.nii.gz", "a_label.nii.gz"),
    Bad("a label of another ending",
        both("CT/a_image.nii.gz", "CT/a_label.nii"), "a_image.nii.gz", "no label beside it"),
    Bad("a file in the folder's place", both("CT"), "set", "no folder CT"),
    Bad("MM-WHS without MR", folder_of("ct_train/a_image.nii.gz", "ct_train/a_label.nii.gz"), "mr_train", "no MRI"),
    Bad("one case in two formats",
        both(*(f"CT/a_{k}.nii{gz}" for k in ("image", "label") for gz in ("", ".gz"))), "CT_a", "twice"),
    Bad("a new line in a name", both("CT/a\nb_image.nii.gz", "CT/a\nb_label.nii.gz"), "set", "control character"),
    Bad("an escape in a name", both("CT/\x1b[2J_image.nii.gz", "CT/\x1b[2J_label.nii.gz"), "set", "control character"),
    Bad("one CT",
        lambda f: [shutil.copytree(good(), f / "set", ignore=lambda d,
                                   names: [n for n in names if n[:13] in ("phantom_00002", "phantom_00004")])], "CT",
        "no CT case in the split"),
]

SCANS = [
    *(Bad(f"{kind}: {what}",
        spoilt(file, how), Path(file).name, says) for kind, file in (("image", IMAGE), ("label", LABEL))
      for what, how, says in (
        ("empty", written(b""), "empty"), ("rubbish", written(b"rubbish" * 100), "cannot be read"),
        ("cut", cut, "cannot be read"), ("a pipe", instead(os.mkfifo), "pipe"),
        ("a device", instead(lambda p: p.symlink_to("/dev/zero")), "device"),
        ("a folder without slices", instead(os.mkdir), "folder"),
        ("a pointer of LFS", written(b"version https://git-lfs.github.com/spec/v1\n"), "cannot be read"))),
    Bad("an image that leads nowhere",
        spoilt(IMAGE, instead(lambda p: p.symlink_to("gone"))), "phantom_00000_image", "link that leads nowhere"),
    Bad("an image linked to itself", spoilt(IMAGE, instead(lambda p: p.symlink_to(p.name))), "phantom_00000_image"),
    Bad("a label that leads nowhere",
        spoilt(LABEL, instead(lambda p: p.symlink_to("gone"))), "phantom_00000_image", "no label beside it"),
    Bad("a scan under two names",
        spoilt(IMAGE, instead(lambda p: p.symlink_to("phantom_00002_image.nii.gz"))), "image.nii.gz", "twice"),
    Bad("a typo in a manifest",
        spoilt("m.csv", lambda p: p.write_text(p.read_text().replace("00001_image", "00001_imgae")), True),
        "phantom_00001_imgae", "1 of "),
    Bad("a label of another scan's size", spoilt(LABEL, labelled(lambda y: y[:-1])), "phantom_00000_label", "own grid"),
    Bad("a label that lies elsewhere",
        spoilt(LABEL, labelled(lambda y: y, shifted)), "phantom_00000_label", "elsewhere"),
    Bad("an interpolated label",
        spoilt(LABEL, labelled(lambda y: y * .5, kind=np.float32)), "phantom_00000_label", "no label map"),
    Bad("a value of no structure",
        spoilt(LABEL, labelled(lambda y: np.where(y == 2, 7, y))), "phantom_00000_label", r"\[7\]"),
    Bad("a value that is negative",
        spoilt(LABEL, labelled(lambda y: np.where(y == 2, -1, y.astype(int)), kind=np.int16)), "phantom_00000_label",
        r"\[-1\]"),
    Bad("thousands of values",
        spoilt(LABEL, labelled(lambda y: np.arange(y.size).reshape(y.shape), kind=np.int32)), "phantom_00000_label",
        "label values"),
    Bad("MM-WHS numbers in a plain folder",
        spoilt(LABEL, labelled(lambda y: np.array([0, 500, 600, 420, 550, 205])[y], kind=np.int16)),
        "phantom_00000_label", "205"),
    *(Bad(f"label all {value}",
        spoilt(LABEL, only(value)), "phantom_00000_label", "cannot be a heart") for value in (0, 1, 2, 3, 4, 5,
                                                                                              IGNORE)),
    Bad("foreground that nobody annotated",
        spoilt(LABEL, labelled(lambda y: np.where(y > 0, IGNORE, 0))), "phantom_00000_label", "cannot be a heart"),
    Bad("numbers of ACDC", spoilt(LABEL, renumbered(y2=1, y5=2, y1=3)), "phantom_00000_label", "1 LV, 2 RV"),
    Bad("numbers of M&Ms", spoilt(LABEL, renumbered(y1=1, y5=2, y2=3)), "phantom_00000_label", "1 LV, 2 RV"),
    Bad("numbers of TotalSegmentator",
        spoilt(LABEL, renumbered(y5=1, y3=2, y1=3, y4=4, y2=5)), "phantom_00000_label", "1 LV, 2 RV"),
    Bad("numbers of HVSMR", spoilt(LABEL, renumbered(y1=1, y2=2, y3=3, y4=4)), "phantom_00000_label", "1 LV, 2 RV"),
    Bad("a mask of the heart", spoilt(LABEL, labelled(lambda y: y > 0)), "phantom_00000_label", "1 LV"),
    Bad("LV and myocardium exchanged",
        spoilt(LABEL, renumbered(y1=5, y2=2, y3=3, y4=4, y5=1)), "phantom_00000_label", "cannot be a heart"),
    Bad("one voxel",
        spoilt(LABEL, labelled(lambda y: np.where(np.arange(y.size).reshape(y.shape) == 4808, 1, 0))),
        "phantom_00000_label", "cannot be a heart"),
    Bad("a heart in hundredths of mm",
        spoilt(LABEL, labelled(lambda y: y, lambda a: a @ np.diag([.1, .1, .1, 1]))), "phantom_00000_label"),
    Bad("a constant image", spoilt(IMAGE, labelled(lambda v: v * 0, kind=np.int16)), "phantom_00000_image"),
    Bad("an image of NaN", spoilt(IMAGE, labelled(lambda v: v * np.nan, kind=np.float32)), "phantom_00000_image",
        "NaN"),
    Bad("an MRI among the CT", spoilt(IMAGE, labelled(lambda v: v + 1024, kind=np.int16)), "phantom_00000_image", "HU"),
]

A, B = ({"name": name, "percentiles": [1, 99]} for name in "AB")


def two(**first): return {"domains": [A | first, B], "table_of": {}}


TASKS = [
    *(Bad(f"a task: {name}", with_task(content), "task.json", says) for name, content, says in (
        ("nothing in it", b"", "no JSON"), ("cut", b'{"name": "x", "domains": [', "no JSON"),
        ("a picture", b"\x89PNG\r\n\x1a\n\0\0", "no JSON"), ("Latin-1", b'{"name": "M\xfcller"}', "no JSON"),
        ("brackets", b"[" * 100_000, "task.json"), ("a list", [], "Expected `?object"), ("a number", 5, "Expected"),
        ("two tasks", b"{} {}", "no JSON"), ("comments alone", b"// a draft\n", "no JSON"),
        ("2 MB", b" " * 2_000_000, "larger than"), ("no field", b"{}", "missing required field"),
        ("a field of another task", {"organ": "liver"}, "unknown field"),
        ("a name that leads away", {"name": "../x"}, "name"),
        ("one domain", {"domains": [A]}, "length 2"), ("three domains", {"domains": [A, B, A]}, "length 2"),
        ("one name for both", {"domains": [A, A | {"name": "a"}]}, "both domains are called"),
        ("a domain's name with a slash", two(name="A/B"), "domains\\[0\\].name"),
        ("a domain's name with a blank at its end", two(name="A "), "domains\\[0\\].name"),
        ("a domain without a name", two(name=""), "domains\\[0\\].name"),
        ("window and percentiles", two(window=[0, 1]), "one of window"),
        ("no window", {"domains": [{"name": "A"}, B], "table_of": {}}, "one of window"),
        ("a window that falls", two(window=[5, 1], percentiles=None), "does not rise"),
        ("a window of words", two(window=["low", "high"], percentiles=None), "Expected `?float"),
        ("NaN", two(nothing=float("nan"), window=[float("nan"), 1], percentiles=None), "Expected `?float"),
        ("percentiles above 100", two(percentiles=[1, 101]), "<= 100"),
        ("corners that fall", two(percentiles=None, knots=[[0, -1], [5, 0.5], [4, 1]]), "does not rise"),
        ("no regions", {"regions": []}, "regions"), ("no background", {"regions": ["LV", "RV"]}, "'background'"),
        ("a region twice", {"regions": ["background", "LV", "LV"]}, "same name"),
        ("a region called ignore", {"regions": ["background", "ignore"]}, "ignore"),
        ("63 regions", {"regions": ["background", *(f"r{k}" for k in range(62))], "tables": {}, "table_of": {}},
         "<= 62"),
        ("one colour", {"colours": ["#ff0000"]}, "1 colours for 5 regions"),
        ("a colour's name", {"colours": ["red"] * 5}, "colours"), ("a grid of nothing", {"grid": {}}, "grid"),
        ("a grid of zeros", {"grid": {"shape": [0, 8, 8], "spacing": [1, 1, 1]}}, "grid.shape"),
        ("a grid for nobody", {"grid": {"shape": [4096, 8, 8], "spacing": [1, 1, 1]}}, "<= 1024"),
        ("pieces of another kind", {"pieces": "one"}, "'one'"),
        ("a centre by hand", {"centre": {"rule": "hand"}}, "'hand'"),
        ("a table of a domain that is not there", {"table_of": {"PET": "cssgan"}}, "no domain is called PET"),
        ("a table that is not there", {"table_of": {"CT": "BraTS"}}, "no table is called BraTS"),
        ("a table with a region that is not there", {"tables": {"t": {"1": "liver"}}, "table_of": {}},
         "called 'liver'"),
        ("a table that draws what is not there", {"tables": {"t": {"1": "LV", "draws": ["liver"]}}, "table_of": {}},
         "called 'liver'"),
        ("a table of words", {"tables": {"t": {"one": "LV"}}, "table_of": {}}, "'one' is no label value"),
        ("a table that reads nothing", {"tables": {"t": {"1": "background"}}, "table_of": {}}, "reads no region"))),
    Bad("a task: a folder", other_task(os.mkdir), "task.json", "folder"),
    Bad("a task: a pipe", other_task(os.mkfifo), "task.json", "pipe"),
    Bad("a task: a link to nowhere", other_task(lambda p: p.symlink_to("gone")), "task.json", "leads nowhere"),
    Bad("a task: a link to a device", other_task(lambda p: p.symlink_to("/dev/zero")), "task.json", "device"),
    Bad("a task: of other domains", with_task(two()), "no A case", "CT/, MRI/"),
    Bad("a task: of other regions",
        with_task({"regions": ["background", "LV"], "tables": {}, "table_of": {}}), "label values", "task.json"),
    Bad("a task: a table without a value",
        with_task({"tables": {"t": {"1": "LV", "5": "myocardium"}}, "table_of": {"CT": "t", "MRI": "t"}}),
        "[2, 3, 4]", "add them to it in task.json"),
    *(Bad(f"dataset.json: {name}", of_nnunet(content, *files), names, says) for name, content, names, says, *files in (
        ("no JSON", b"{", "dataset.json", "no JSON"), ("a list", [], "dataset.json", "does not fit"),
        ("labels in a list", {"labels": ["liver"]}, "dataset.json", "labels"),
        ("channels in a list", {"channel_names": ["CT"]}, "dataset.json", "channel_names"),
        ("11 MB", b" " * 11_000_000, "dataset.json", "larger than"),
        ("numbers that are none", {"labels": {"LV": [1, "x"]}}, "dataset.json", "no number of a label"),
        ("another kind of file", {"file_ending": ".png"}, "dataset.json", "file_ending .png, which is not read"),
        ("other channels", {"channel_names": {"0": "T1", "1": "T2"}}, "channels T1, T2", "none is called CT"),
        ("another ending", {"file_ending": ".mha"}, "imagesTr", "no CT case"),
        ("a label is gone", {}, "b_0000.nii.gz", "no label beside it", "imagesTr/b_0000.nii.gz"))),
    Bad("dataset.json: one domain for both",
        lambda f: [of_nnunet({"channel_names": {"0": "CT"}})(f)[0] / "CT"], "one domain of nnU-Net", "CT and MRI"),
]

TABLE = NAMES + MANIFESTS + FOLDERS + SCANS + TASKS
# the command refuses these as words: test_malformed_commands.py
NO_NAMES = "no name", "a long name", "a NUL", "many folders"
# what is refused before a scan is looked at
COMMAND = [bad for bad in NAMES + MANIFESTS[:60] + FOLDERS + TASKS[:-12] if bad.name not in NO_NAMES]


@pytest.mark.filterwarnings("ignore::cssgan.guard.InputWarning")
@pytest.mark.parametrize("bad", TABLE, ids=[b.name[:60] for b in TABLE])
def test_a_data_set_that_cannot_be_used(bad, tmp_path, capfd):
    good()
    refuses(check, bad, tmp_path, capfd)


@pytest.mark.filterwarnings("ignore::cssgan.guard.InputWarning")
@pytest.mark.parametrize("bad", COMMAND, ids=[b.name[:60] for b in COMMAND])
def test_a_data_set_that_cssgan_train_refuses(bad, tmp_path, capfd):
    def train(words):
        return train_main([*("--data", words[0]), "--out", str(tmp_path / "run"), "--preset", "smoke", "--quiet",
                           "--cache", str(tmp_path / "cache")])
    refuses(train, bad, tmp_path, capfd)
