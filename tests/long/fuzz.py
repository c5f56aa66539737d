"""Inputs that no test was written for: `make fuzz` (pytest tests/long/fuzz.py; FUZZ=N examples a target, default 400).

Each target spoils something that was right, byte by byte, field by field or word by word, and asks the same of the
answer: it is read, or refused in one short line that names the file; at once; and what was read means the same to an
independent reader.
"""
import json
import os
import struct
import time
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import LPS, voxels, write_dicom
from tiny import SHORT, noise

from cssgan.data.finding import find_cases
from cssgan.guard import LONGEST, InputError
from cssgan.models import Networks
from cssgan.scans.dicom import read_dicom
from cssgan.scans.files import read_volume
from cssgan.scans.volumes import Grid
from cssgan.training.checkpoints import load_checkpoint, save_checkpoint
from cssgan.training.saving import resume_run
from cssgan.training.schema import about_networks
from cssgan.training.trainer import fit

N = int(os.environ.get("FUZZ", 400))
fuzz = settings(max_examples=N, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


def answered(call, name, seconds=10):
    "What the call gives, or None where it refused as it should."
    begun = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except InputError as e:
        message = str(e)
        assert message.isprintable() and len(message) <= LONGEST and str(name)[:40] in message, message
    finally: assert time.monotonic() - begun < seconds, "took too long"


@pytest.fixture(scope="module")
def top(tmp_path_factory): return tmp_path_factory.mktemp("fuzz")


# ---- NIfTI: what is accepted, ITK places and reads alike

@pytest.fixture(scope="module")
def nifti(top):
    image = nib.Nifti1Image(voxels().astype(np.int16), LPS)
    image.header.set_qform(LPS, 1), image.header.set_sform(LPS, 1)
    image.to_filename(top / "scan.nii")
    return (top / "scan.nii").read_bytes()


FIELDS = {"sizeof_hdr": (0, "i"), "dim": (40, "8h"), "intent": (68, "h"), "datatype": (70, "h"), "bitpix": (72, "h"),
          "pixdim": (76, "8f"), "vox_offset": (108, "f"), "scl": (112, "2f"), "xyzt": (123, "b"),
          "codes": (252, "2h"), "quatern": (256, "6f"), "srow": (280, "12f"), "magic": (344, "i"),
          "extension": (348, "i")}
NUMBERS = (st.sampled_from([0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 255, 256, 352, 1000, 32767, -32768])
           | st.integers(-32768, 32767))
REALS = (st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 352.0, 348.0, 1e-30, 1e30, np.nan, np.inf, -np.inf])
         | st.floats(width=32))


@pytest.mark.parametrize("field", FIELDS)
def test_a_header_field_of_nifti(nifti, top, field):
    at, code = FIELDS[field]
    one, size = code[-1], struct.calcsize(code[-1])
    @fuzz
    @given(st.integers(0, int(code[:-1] or 1) - 1), REALS if one == "f" else NUMBERS)
    def spoil(i, value):
        if one == "b": value = int(value) % 128
        raw = bytearray(nifti)
        struct.pack_into("<" + one, raw, at + i * size, value)
        both_read_alike(top, bytes(raw))
    spoil()


def test_bytes_of_nifti(nifti, top):
    @fuzz
    @given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
    def spoil(changes):
        raw = bytearray(nifti)
        for at, value in changes: raw[at] = value
        both_read_alike(top, bytes(raw))
    spoil()


def both_read_alike(top, raw):
    """Refused, or where ITK reads it, placed where ITK places it: within a tenth of a voxel, and the hundredth of its
    length by which pixdim may be rounded."""
    import SimpleITK as sitk
    (path := top / "spoilt.nii").write_bytes(raw)
    volume = answered(lambda: read_volume(path, "CT"), path)
    if volume is None: return
    try: image = sitk.ReadImage(str(path))
    except RuntimeError: return
    axes = np.diag([-1, -1, 1]) @ np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    far = np.array(volume.shape) - 1
    ours = volume.affine[:3, :3] @ far + volume.affine[:3, 3]
    itk = axes @ far + np.array(image.GetOrigin()) * (-1, -1, 1)
    near = 0.1 * min(volume.spacing) + 0.01 * np.linalg.norm(volume.affine[:3, :3] * far)
    assert np.abs(ours - itk).max() < near, (volume.affine, axes, image.GetOrigin())


# ---- DICOM: no slice is lost

@pytest.fixture(scope="module")
def series(top): return write_dicom(top / "series", voxels()[:, :, :5], LPS)


def test_bytes_of_a_slice(series, top):
    name = sorted(p.name for p in series.iterdir())[0]
    good = (series / name).read_bytes()
    @fuzz
    @given(st.lists(st.tuples(st.integers(0, len(good) - 1 if len(good) < 1500 else 1500), st.integers(0, 255)),
                    min_size=1, max_size=3))
    def spoil(changes):
        raw = bytearray(good)
        for at, value in changes: raw[at] = value
        (series / name).write_bytes(bytes(raw))
        read = answered(lambda: read_dicom(series, "CT"), series)
        if read is not None: assert read[0].shape[2] == 5, "a slice was lost"
    try: spoil()
    finally: (series / name).write_bytes(good)


# ---- MetaImage and NRRD headers

META = {"NDims": "3", "DimSize": "24 20 16", "ElementSpacing": "2 2.5 3", "Offset": "-40 -50 -60",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1", "ElementType": "MET_SHORT",
        "BinaryData": "True", "BinaryDataByteOrderMSB": "False", "CompressedData": "False",
        "ElementNumberOfChannels": "1", "HeaderSize": "0", "ElementDataFile": "LOCAL"}
WORDS = st.sampled_from([
    "", "0", "-1", "1", "2", "3", "4", "100", "1000", "1e9", "nan", "inf", "1 0", "1 0 0", "True", "LIST", "LOCAL",
    "/etc/passwd", "../scan.raw", "%d", "MET_FLOAT", "MET_LONG_LONG_ARRAY", "x" * 300, "9" * 40, "24 20 17", "24 20 15",
    "0 0 0", "1 0 0 0 1 0 0 0 0", "2 2,5 3", "raw", "gzip", "left-posterior-superior", "scanner-xyz", "(1,0,0) (0,1,0)",
    "(0,0,0)", '"cm" "cm" "cm"']) | st.text(max_size=12)


def test_words_of_a_metaimage_header(top):
    data = voxels().astype("<i2").tobytes(order="F")
    @fuzz
    @given(st.dictionaries(st.sampled_from([*META]), WORDS | st.none(), min_size=1, max_size=2))
    def spoil(changes):
        said = {k: v for k, v in (META | changes).items() if v is not None}
        header = "".join(f"{k} = {v}\n" for k, v in said.items()).encode("utf-8", "surrogatepass")
        (path := top / "spoilt.mha").write_bytes(header + data)
        answered(lambda: read_volume(path, "CT"), path)
    spoil()


NRRD = {"type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "24 20 16",
        "space directions": "(2,0,0) (0,2.5,0) (0,0,3)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space origin": "(-40,-50,-60)"}


def test_words_of_an_nrrd_header(top):
    data = voxels().astype("<i2").tobytes(order="F")
    @fuzz
    @given(st.dictionaries(st.sampled_from([*NRRD, "spacings", "space units", "data file", "line skip", "byte skip"]),
                           WORDS | st.none(), min_size=1, max_size=2))
    def spoil(changes):
        said = {k: v for k, v in (NRRD | changes).items() if v is not None}
        header = "\n".join(["NRRD0004", *(f"{k}: {v}" for k, v in said.items()), "\n"]).encode("utf-8", "surrogatepass")
        (path := top / "spoilt.nrrd").write_bytes(header + data)
        answered(lambda: read_volume(path, "CT"), path)
    spoil()


# ---- checkpoints, and runs to resume

ANYTHING = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
            | st.sampled_from([2**70, -1, 0, 1e-300, [], {}, [[]], "x" * 5000, [1] * 1000, {"a": None}]))


def places(value, path=()):
    "Every place of a JSON document."
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def with_other(value, path, new):
    "The document with something else at a place; DROP: with nothing there."
    if not path: return new
    value = json.loads(json.dumps(value))
    inner = value
    for key in path[:-1]: inner = inner[key]
    inner[path[-1]] = new
    return value


@pytest.mark.parametrize("part", ["best", "last"])
def test_a_field_of_a_checkpoint(top, part):
    fit(noise(), SHORT, run := top / f"run-{part}", progress=False)
    file = run / part / "checkpoint.json"
    good = file.read_text()
    about = json.loads(good)
    about.pop("checksum", None)
    for old in (run / part).glob("*previous*"): old.unlink()
    def read():
        if part == "best": return load_checkpoint(run / part)
        return resume_run(SHORT, run / part, noise())
    @fuzz
    @given(st.sampled_from(list(places(about))), ANYTHING)
    def spoil(path, new):
        file.write_text(json.dumps(with_other(about, path, new)))
        answered(read, run, 20)
    spoil()
    file.write_text(good)


def test_bytes_of_a_checkpoint(top):
    grid = Grid((24, 24, 16), (7.0, 7.0, 8.0))
    save_checkpoint(top / "bytes", nets := Networks(width=4, patch_layers=1),
                    about_networks(nets, grid, {"CT": (-1000.0, 1000.0), "MRI": (10.0, 600.0)}))
    files = sorted((top / "bytes").glob("*.*"))
    @fuzz
    @given(st.sampled_from(files), st.integers(0, 2000), st.integers(0, 255))
    def spoil(file, at, value):
        good = file.read_bytes()
        raw = bytearray(good)
        raw[at % len(raw)] = value
        file.write_bytes(bytes(raw))
        try: answered(lambda: load_checkpoint(top / "bytes"), top / "bytes", 20)
        finally: file.write_bytes(good)
    spoil()


# ---- manifests and grids

def test_cells_of_a_manifest(top):
    rows = [["image", "label", "modality", "split", "patient", "id", "table"]]
    for i in range(8):
        rows.append([f"phantom:{i}", "", ("CT", "MRI")[i % 2], ("train", "valid")[i // 4], str(i), f"c{i}", "cssgan"])
    @fuzz
    @given(st.integers(0, 8), st.integers(0, 6),
           st.text(max_size=20) | st.sampled_from(["phantom:-1", "phantom:" + "9" * 30, "phantom:²", "/dev/zero", "\0",
                                                   "cssgan", "train", '"', "\n", "=1+1"]))
    def spoil(i, j, word):
        said = [list(r) for r in rows]
        said[i][j] = word
        (path := top / "cases.csv").write_bytes("\n".join(",".join(r) for r in said).encode("utf-8", "surrogatepass"))
        answered(lambda: find_cases(path), path)
    spoil()


def test_a_grid_of_a_sweep(top):
    from test_sweeps import CELLS, notebook

    from cssgan.experiments.sweeps import read_grid
    notebook(top / "toy.ipynb", *CELLS)
    good = {"notebook": "toy.ipynb", "out": "runs", "parameters": {"mode": "ok"}, "grid": {"x": [1, 2], "rate": [0.1]}}
    @fuzz
    @given(st.sampled_from(list(places(good))), ANYTHING)
    def spoil(path, new):
        (file := top / "grid.yaml").write_text(json.dumps(with_other(good, path, new)))
        answered(lambda: read_grid(file), "")
    spoil()


def test_text_that_should_be_a_grid(top):
    from cssgan.experiments.sweeps import read_grid
    @fuzz
    @given(st.text(alphabet="abn:&*{}[]-?!#'\"|>% \n0", max_size=60))
    def spoil(text):
        (file := top / "grid.yaml").write_text(text)
        answered(lambda: read_grid(file), "")
    spoil()
