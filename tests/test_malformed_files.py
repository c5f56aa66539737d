"Scans, labels and places that cannot be used: each is refused in one line, at once, and nothing is left behind."
import gzip
import os
import re
import resource
import time
import zlib
from typing import Callable, NamedTuple

import nibabel as nib
import numpy as np
import pytest
from malformed import LONGEST, MEGABYTES, listing
from scans import LPS, lopsided, voxels

from cssgan.guard import InputError
from cssgan.scans.files import check_output, made_here, read_label, read_volume, write_label, write_volume
from cssgan.scans.volumes import Volume, to_grid, with_label

SHAPE = (24, 20, 16)
CT = voxels().astype(np.int16)
SECONDS = 5


class Row(NamedTuple):
    "An input that cannot be used."
    name: str  # of the case, and of the file where there is one
    make: Callable  # (an empty folder) → what is to be called
    says: str  # a regular expression that the line must match
    names: str = ""  # what the line must name; empty: the file


def read(change, name):
    "A row's `make`: write the bytes that `change` gives, read the file as a scan and as labels."
    def make(folder):
        (folder / name).write_bytes(change(folder))
        return [lambda: read_volume(folder / name, "CT"), lambda: read_label(folder / name)]
    return make


def refuses(row, folder, capfd):
    "Every call must raise an InputError as it should be."
    calls = row.make(folder)
    before = listing(folder)
    capfd.readouterr()
    for call in calls:
        begun, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InputError) as e: call()
        seconds, grown = time.monotonic() - begun, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1000
        line = str(e.value)
        assert line.isprintable() and len(line) <= LONGEST and re.search(row.says, line), line
        assert (row.names or row.name) in line, f"does not name {row.names or row.name!r}: {line}"
        assert listing(folder) == before and capfd.readouterr() == ("", "")
        assert seconds < SECONDS and grown < MEGABYTES, (seconds, grown)


# NIfTI

def plain(array=CT, affine=LPS, kind=nib.Nifti1Image):
    return kind(array, affine).to_bytes()


def header(edit, array=CT, kind=nib.Nifti1Image, size=348):
    "The bytes of a file whose header `edit` has changed, past nibabel's repairs."
    raw = plain(array, kind=kind)
    head = kind.header_class(raw[:size], check=False)
    edit(head)
    return head.binaryblock + raw[size:]


def field(name, value, at=None):
    def edit(head):
        if at is None: head[name] = value
        else: head[name][at] = value
    return edit


def both(qform, sform=LPS, codes=(1, 1)):
    "A header with two forms."
    def edit(head):
        head.set_sform(sform, codes[1])
        head.set_qform(qform, codes[0])
        head["pixdim"][1:4] = nib.affines.voxel_sizes(sform)
    return edit


def comment(size, start=400, code=6, text=b"cssgan\nread"):
    "A file with one comment whose size may be a lie."
    def change(_):
        raw = plain()
        block = size.to_bytes(4, "little", signed=True) + code.to_bytes(4, "little") + text
        head = nib.Nifti1Header(raw[:348], check=False)
        head["vox_offset"] = start
        return head.binaryblock + b"\1\0\0\0" + block.ljust(start - 352, b"\0") + raw[352:]
    return change


moved = lambda *mm: nib.affines.from_matvec(LPS[:3, :3], LPS[:3, 3] + mm)
turn = lambda degrees: nib.affines.from_matvec(nib.eulerangles.euler2mat(np.radians(degrees)), (0, 0, 0)) @ LPS
slanted = LPS.copy()
slanted[1, 2] = 0.8
AT = {"nan": np.nan, "inf": np.inf, "minus inf": -np.inf, "zero": 0, "negative": -2.5, "huge": 1e30, "tiny": 1e-30,
    "metres": 0.002, "microns": 2500, "five percent off": 2.625}
EDITS = (
    [(f"pixdim {name}", field("pixdim", value, 2), "mm, expected|contradicts") for name, value in AT.items()]
    + [(f"qfac {value}", lambda h, value=value: (both(LPS)(h), h["pixdim"].__setitem__(0, value)),
    "qfac|pixdim begins") for value in (2, 0.5, np.nan, np.inf)]
    + [(f"dim0 {value}", field("dim", value, 0), "its dim is|promises|single slice|frames") for value in (0, -1, 1, 2,
    8, 300, 32767)]
    + [(f"dim1 {value}", field("dim", value, 1), "its dim is|promises|single slice") for value in (0, -3, 1, 23, 25, 12,
    32767)]
    + [(f"dim3 {value}", field("dim", value, 3), "its dim is|promises|single slice") for value in (0, -1, 1, 15, 17, 8)]
    + [("a film that says it is a volume", lambda h: h.__setitem__("dim", [4, 24, 20, 8, 2, 1, 1, 1]), "2 frames")]
    + [("more voxels than can be", lambda h: h.__setitem__("dim", [3, 32767, 32767, 32767, 1, 1, 1, 1]),
    "more than can be read")]
    + [(f"datatype {code}", field("datatype", code), "colours or complex|bits that it says") for code in (0, 1, 2, 8,
    16, 32, 64, 128, 256, 1536, 1792, 2304, 77, -4)]
    + [("int8 over int16", lambda h: (h.__setitem__("datatype", 256), h.__setitem__("bitpix", 8)), "promises")]
    + [("float64 over int16", lambda h: (h.__setitem__("datatype", 64), h.__setitem__("bitpix", 64)), "promises")]
    + [(f"bitpix {bits}", field("bitpix", bits), "bits that it says") for bits in (0, 8, 32, -16)]
    + [(f"vox_offset {start}", field("vox_offset", start), "begin at byte|promises") for start in (0, 4, 100, 348, 351,
    352.5, 353, 368, -352, 1e9, np.nan, np.inf)]
    + [(f"slope {slope}", field("scl_slope", slope), "scaling is no number") for slope in (np.inf, -np.inf)]
    + [(f"intercept {inter}", field("scl_inter", inter), "scaling is no number") for inter in (np.nan, np.inf)]
    + [(f"unit {unit}", field("xyzt_units", unit), "metres|microns|unit") for unit in (1, 3, 9, 11, 5, 7)]
    + [(f"intent {code}", field("intent_code", code), "no scan by its header") for code in (2, 3, 24, 1004, 1005, 1006,
    1007, 1008, 1009, 1010, 2001, 2002, 2003, 2004, 2005, -1)]
    + [(f"{form} code {code}", field(f"{form}_code", code), "no such codes") for form in ("qform",
    "sform") for code in (-1, 6, 200)]
    + [("no forms", lambda h: (h.__setitem__("sform_code", 0), h.__setitem__("qform_code", 0)), "does not say where")]
    + [(f"srow {value}", field("srow_y", value, 1), "mm, expected") for value in (np.nan, np.inf, 0, 1e20)]
    + [(f"srow_x offset {value}", field("srow_x", value, 3), "NaN or infinity") for value in (np.nan, np.inf)]
    + [("flat", lambda h: (h.__setitem__("srow_x", [2, 2, 0, 0]), h.__setitem__("srow_y", [0, 0.0001, 0, 0]),
    h.__setitem__("pixdim", [1, 2, 2, 3, 1, 1, 1, 1])), "singular")]
    + [(f"quaternion {value}", lambda h, value=value: (both(LPS)(h), h.__setitem__("quatern_b", value)),
    "no rotation|mm, expected|contradicts") for value in (1, 30, np.nan, np.inf)]
    + [(f"qform offset {value}", lambda h, value=value: (both(LPS)(h), h.__setitem__("qoffset_x", value)),
    "contradicts|NaN or infinity") for value in (np.nan, np.inf, 41, 1e30)]
    + [(f"qform {name}", both(other), "contradicts itself: its qform and its sform lie up to") for name, other in
       {"mirrored": np.diag([-1, 1, 1, 1]) @ LPS, "30 mm beside": moved(0, 0, 30), "half a voxel beside": moved(1, 0,
       0), "half a degree": turn(0.5), "upside down": np.diag([1, 1, -1, 1]) @ LPS}.items()]
    + [("sform slanted", both(LPS, slanted), "contradicts itself")]
    + [("sform of a registration", both(LPS, turn(3), (1, 4)), "contradicts itself")]
)
NIFTI = [Row(f"{name.replace(' ', '_')}.nii", read(lambda _, edit=edit: header(edit), f"{name.replace(' ', '_')}.nii"),
    says) for name, edit, says in EDITS]
NIFTI += [Row(f"{name}.nii", read(change, f"{name}.nii"), says) for name, change, says in (
    ("tail", lambda _: plain() + b"x", "promises"), ("zeros_behind", lambda _: plain() + bytes(512), "promises"),
    ("cut", lambda _: plain()[:-1], "promises"),
    ("half", lambda _: plain()[:5000], "promises"), ("header_only", lambda _: plain()[:352], "promises"),
    ("in_the_header", lambda _: plain()[:200], "ends within"),
    ("empty", lambda _: b"", "ends within"), ("text", lambda _: b"Dear colleague, " * 99, "begin as NIfTI"), ("png",
    lambda _: b"\x89PNG\r\n\x1a\n" + bytes(900), "begin as NIfTI"),
    ("dicom_like", lambda _: bytes(128) + b"DICX" + bytes(900), "begin as NIfTI"), ("lfs",
    lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "begin as NIfTI"),
    ("html", lambda _: b"<!DOCTYPE html><html>404" * 40, "begin as NIfTI"), ("analyze",
    lambda _: header(lambda h: h.__setitem__("magic", b"")), "begin as NIfTI"),
    ("pair", lambda _: header(lambda h: h.__setitem__("magic", b"ni1")), "begin as NIfTI"), ("swapped",
    lambda _: plain()[:4][::-1] + plain()[4:], "its dim|datatype|bits"),
    ("nifti2_start", lambda _: header(lambda h: h.__setitem__("vox_offset", 352), kind=nib.Nifti2Image, size=540),
    "begin at byte 352"),
    ("nifti2_dim", lambda _: header(lambda h: h["dim"].__setitem__(1, 2**62), kind=nib.Nifti2Image, size=540),
    "more than can be read"),
    ("nifti2_negative", lambda _: header(lambda h: h["dim"].__setitem__(1, -2**62), kind=nib.Nifti2Image, size=540),
    "its dim is"),
    ("comment_too_large", comment(99999), "size of one of its comments"), ("comment_negative", comment(-16),
    "size of one of its comments"), ("comment_of_nothing", comment(0), "size of one of its comments"),
    ("comment_of_four", comment(4), "size of one of its comments"), ("comment_past_the_voxels", comment(64),
    "size of one of its comments"),
    ("centimetres", lambda _: plain(np.resize(CT, (80, 80, 9)), np.diag([0.07, 0.07, 0.1, 1])), "mm large"),
    ("tenths_of_mm", lambda _: plain(np.resize(CT, (300, 20, 9)), np.diag([15, 15, 15, 1.0])), "mm large"))]
NIFTI += [Row(f"{name}.nii.gz", read(change, f"{name}.nii.gz"), says) for name, change, says in (
    ("cut", lambda _: gzip.compress(plain())[:-4], "ends before"), ("stub", lambda _: b"\x1f\x8b", "cannot be read"),
    ("damaged", lambda _: gzip.compress(plain())[:60] + b"\xff" * 300, "cannot be read"),
    ("checksum", lambda _: gzip.compress(plain())[:-8] + bytes(8), "damaged"), ("of_text",
    lambda _: gzip.compress(b"Dear colleague, " * 99), "begin as NIfTI"),
    ("of_nothing", lambda _: gzip.compress(b""), "ends within"), ("bomb",
    lambda _: gzip.compress(plain() + bytes(50_000_000), 9), "unpacks to more|promises"),
    ("bomb_that_says_so", lambda _: gzip.compress(header(lambda h: h.__setitem__("dim", [3, 1000, 1000, 1200, 1, 1, 1,
    1])), 9), "2.4 GB large, and is empty"),
    ("two_files", lambda _: gzip.compress(plain()) * 2, "unpacks to more"), ("garbage_behind",
    lambda _: gzip.compress(plain()) + b"garbage", "damaged"),
    ("twice_packed", lambda _: gzip.compress(gzip.compress(plain())), "begin as NIfTI"))]


# MetaImage and NRRD

META = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "-40 -50 -60", "ElementSpacing": "2 2.5 3", "DimSize": "24 20 16", "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL"}
DATA = CT.tobytes(order="F")
meta = lambda data=DATA, **fields: "".join(f"{k} = {v}\n" for k,
    v in (META | fields).items() if v is not None).encode() + data
NRRD = {"type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "24 20 16",
    "space directions": "(2,0,0) (0,2.5,0) (0,0,3)", "endian": "little", "encoding": "raw",
    "space origin": "(-40,-50,-60)"}
nrrd = lambda data=DATA, first="NRRD0004", **fields: (first + "\n" + "".join(f"{k.replace('_', ' ')}: {v}\n" for k,
    v in (NRRD | {k.replace("_", " "): v for k, v in fields.items()}).items() if v is not None) + "\n").encode() + data
ANY = "cannot be read as"
METAS = (
    [(f"NDims_{v}", dict(NDims=v), f"{ANY}|single slice|frames") for v in ("100", "-1", "1000", "0", "2", "1", "4",
    "99999999999999999999", "x", "", "3 3", "3.5", "nan", None)]
    + [(f"DimSize_{k}", dict(DimSize=v), f"{ANY}|more than|single slice") for k, v in enumerate(("24 20", "24 20 16 1",
    "24 20 -16", "0 20 16", "24 20 15", "24 20 17", "1e9 20 16", "99999 99999 99999", "24 20 1", "24,20,16", "a b c",
    "", None))]
    + [(f"type_{v}", dict(ElementType=v), ANY) for v in ("MET_UCHAR", "MET_NONE", "MET_OTHER", "MET_FLOAT",
    "MET_SHORT_ARRAY", "MET_STRING", "MET_LONG", "", None)]
    + [(f"file_{k}", dict(ElementDataFile=v), f"{ANY}|does not exist") for k, v in enumerate(("/etc/passwd",
    "../../etc/passwd", "../a.raw", "LIST", "LIST 2D", "a%03d.raw 1 16 1", "a%d.raw", "sub/a.raw", ".", "..", "",
    "/dev/zero", "/proc/version", "missing.raw", "\\\\server\\a.raw"))]
    + [(f"spacing_{k}", dict(ElementSpacing=v), f"{ANY}|mm, expected") for k, v in enumerate((None, "", "0 0 0",
    "-2 2.5 3", "2 2.5", "2 2.5 3 1", "nan 2.5 3", "inf 2.5 3", "2,0 2,5 3,0", "0.02 0.025 0.03", "200 250 300",
    "2mm 2.5mm 3mm", "1e400 1 1"))]
    + [(f"offset_{k}", dict(Offset=v), ANY) for k, v in enumerate((None, "", "0 0", "nan 0 0", "inf 0 0", "a b c",
    "1e999 0 0"))]
    + [(f"matrix_{k}", dict(TransformMatrix=v), ANY) for k, v in enumerate((None, "", "1 0 0 0 1 0",
    "0 0 0 0 0 0 0 0 0", "1 0 0 1 0 0 0 0 1", "2 0 0 0 2 0 0 0 2", "nan 0 0 0 1 0 0 0 1", "1 0.3 0 0 1 0 0 0 1",
    "1 0 0 0 1 0 0 0 1 0"))]
    + [(f"second_{k}", {k: v}, ANY) for k, v in {"Position": "0 0 0", "Origin": "0 0 9",
    "Rotation": "-1 0 0 0 1 0 0 0 1", "Orientation": "1 0 0 0 1 0 0 0 1", "ElementSize": "1 1 1",
    "ElementByteOrderMSB": "True"}.items()]
    + [(f"unusual_{k}", {k: v}, ANY) for k, v in {"ObjectType": "Tube", "BinaryData": "False", "HeaderSize": "-1",
    "ElementNumberOfChannels": "3", "DistanceUnits": "cm", "ElementToIntensityFunctionSlope": "10",
                                                  "ElementToIntensityFunctionOffset": "-1024",
                                                  "CompressedData": "maybe", "BinaryDataByteOrderMSB": "?"}.items()]
    + [("compressed_in_words_only", dict(CompressedData="True"), "compression is damaged")]
)
NRRDS = (
    [(f"dimension_{v}", dict(dimension=v), f"{ANY}|single slice|frames") for v in ("2", "4", "0", "-3", "100", "17",
    "x", "", None)]
    + [(f"sizes_{k}", dict(sizes=v), f"{ANY}|more than|single slice") for k, v in enumerate(("24 20", "24 20 15",
    "24 20 17", "24 20 0", "24 20 -16", "99999 99999 99999", "24 20 1", "nan 20 16", "", None))]
    + [(f"type_{k}", dict(type=v), ANY) for k, v in enumerate(("block", "uchar", "float", "string", "complex",
    "short short", "", None))]
    + [(f"space_{k}", dict(space=v), "does not say where") for k, v in enumerate((None, "", "scanner-xyz",
    "3D-right-handed", "left-posterior-superior-time", "somewhere"))]
    + [(f"directions_{k}", dict(space_directions=v), f"{ANY}|mm, expected|singular|layers") for k, v in enumerate((
        None, "", "(2,0,0) (0,2.5,0)", "(2,0,0) (0,2.5,0) none", "(2,0,0) (2,0,0) (0,0,3)", "(0,0,0) (0,2.5,0) (0,0,3)",
        "(nan,0,0) (0,2.5,0) (0,0,3)", "(2,0) (0,2.5) (0,3)", "2 0 0 0 2.5 0 0 0 3",
        "(0.02,0,0) (0,0.025,0) (0,0,0.03)",
        "(2;0;0) (0;2.5;0) (0;0;3)", "(2,0,0) (0,2.5,0) (0,0,3) (0,0,3)"))]
    + [(f"origin_{k}", dict(space_origin=v), ANY) for k, v in enumerate((None, "", "(0,0)", "(nan,0,0)",
    "(0,0,0) (1,1,1)", "0 0 0"))]
    + [(f"units_{k}", dict(space_units=v), "not in mm") for k, v in enumerate(('"cm" "cm" "cm"', '"m" "m" "m"',
    '"mm" "mm" "um"', "mm mm mm"))]
    + [(f"encoding_{k}", dict(encoding=v), ANY) for k, v in enumerate(("ascii", "hex", "bzip2", "gzip", "zrl", "",
    None))]
    + [(f"endian_{k}", dict(endian=v), ANY) for k, v in enumerate(("middle", "", None))]
    + [(f"second_{k}", {k: v}, ANY) for k, v in {"spacings": "1 1 1", "axis mins": "0 0 0", "axis maxs": "9 9 9",
    "byte skip": "-1", "line skip": "3"}.items()]
    + [("layers", dict(kinds="vector domain domain"), "layers"), ("colours", dict(kinds="RGB-color domain domain"),
    "colours")]
    + [(f"file_{k}", {"data file": v}, f"{ANY}|does not exist") for k, v in enumerate(("/etc/passwd", "../a.raw",
    "LIST", "a%03d.raw 1 16 1", "missing.raw"))]
    + [(f"first_{k}", dict(first=v), ANY) for k, v in enumerate(("NRRD0009", "NRRD", "", "nrrd0004"))]
)
TEXTS = [Row(f"meta_{n}.mha", read(lambda _, f=f: meta(**f), f"meta_{n}.mha"), says,
    "missing.raw" if "missing.raw" in f.values() else "") for n, f, says in METAS]
TEXTS += [Row(f"nrrd_{n}.nrrd", read(lambda _, f=f: nrrd(**f), f"nrrd_{n}.nrrd"), says,
    "missing.raw" if "missing.raw" in f.values() else "") for n, f, says in NRRDS]
TEXTS += [Row(name, read(change, name), says) for name, change, says in (
    ("more.mha", lambda _: meta(DATA + b"x"), "promises"), ("less.mha", lambda _: meta(DATA[:-1]), "promises"),
    ("empty.mha", lambda _: b"", "ends within"), ("endless.mha", lambda _: b"A = 1\n" * 300_000, "ends within"),
    ("binary.mha", lambda _: bytes(5000), "ends within"), ("twice.mha", lambda _: b"NDims = 3\n" + meta(), "twice"),
    ("no_field.mha", lambda _: b"Dear colleague\n" + meta(), "no field"),
    ("bomb.mha", lambda _: meta(zlib.compress(bytes(50_000_000)), CompressedData="True"), "promises"),
    ("packed_cut.mha", lambda _: meta(zlib.compress(DATA)[:-9], CompressedData="True"), "unpack|damaged"),
    ("packed_bomb.mha", lambda _: meta(zlib.compress(bytes(5000)), CompressedData="True", DimSize="1000 1000 600"),
    "is empty"),
    ("more.nrrd", lambda _: nrrd(DATA + b"x"), "promises"), ("less.nrrd", lambda _: nrrd(DATA[:-1]), "promises"),
    ("empty.nrrd", lambda _: b"", "ends within|begin"), ("text.nrrd", lambda _: b"no scan", "ends within"),
    ("bomb.nrrd", lambda _: nrrd(gzip.compress(bytes(50_000_000)), encoding="gzip"), "promises|more than"), ("cut.nrrd",
    lambda _: nrrd(gzip.compress(DATA)[:-9], encoding="gzip"), "ends before"),
    ("header.nhdr", lambda _: nrrd(b""), "promises"), ("nul.nrrd", lambda _: nrrd() .replace(b"sizes: 24",
    b"sizes: \0"), ANY))]


# intensities

HU = voxels().astype(np.float32)
GREY = {"offset missing": HU + 1024, "offset twice": HU - 1024, "offset thrice": HU - 2048, "tenths": HU / 10,
    "tenths, whole": np.rint(HU / 10), "tenfold": HU * 10, "thousandths": HU / 1000, "zero to one": (HU + 1000) / 1300,
        "minus one to one": HU / 1000, "bytes": (HU + 1000) / 1300 * 255, "window": HU.clip(-160, 240),
        "upside down": -HU, "an MRI": HU / 3 + 400, "an MRI from 0": (HU + 1000) / 3, "padding only": np.where(HU > 0,
        -3024.0, -2000.0),
        "offset missing, padded": np.where(HU == -1000, -2000, HU + 1024), "no number": np.where(HU > 200, np.nan, HU),
        "infinite": np.where(HU > 200, np.inf, HU), "too large for 32 bits": HU.astype(float) * 1e300,
        "constant": HU * 0 - 1000}


def grey(array, modality="CT"):
    def make(folder):
        nib.Nifti1Image(array, LPS).to_filename(folder / "grey.nii")
        return [lambda: read_volume(folder / "grey.nii", modality)]
    return make


INTENSITIES = [Row(name, grey(v), "not in HU|NaN or infinite|constant", "grey.nii") for name, v in GREY.items()]
INTENSITIES += [Row(f"MRI, {name}", grey(v, "MRI"), "looks like CT|constant|NaN or infinite", "grey.nii") for name,
    v in {"a CT": HU, "a CT twice off": HU - 1024, "a padded CT": np.where(HU == -1000, -3024, HU), "constant": HU * 0,
    "nan": HU * np.nan}.items()]
INTENSITIES += [Row(f"modality {m!r:.20}", lambda folder, m=m: [lambda: read_volume(folder / "a.nii", m)],
    "use CT or MRI", "modality") for m in ("ct", "PET", "", None, 3, ["CT"], "CT\x1b[31m", "x" * 5000)]


# places

def placed(build, name="a.nii"):
    "Something that is no file, to be read and to be written to."
    def make(folder):
        path = build(folder)
        scan = Volume(HU, LPS, "CT")
        return [lambda: read_volume(path, "CT"), lambda: read_label(path), lambda: check_output(path),
            lambda: write_volume(scan, path), lambda: write_label(lopsided(SHAPE), LPS, path)]
    return make


def fifo(folder):
    os.mkfifo(folder / "a.nii")
    return folder / "a.nii"


def link(to):
    def build(folder):
        os.symlink(to, folder / "a.nii")
        return folder / "a.nii"
    return build


def folder_called(name):
    def build(folder):
        (folder / name).mkdir()
        return folder / name
    return build


PLACES = [Row(name, placed(build), says, names) for name, build, says, names in (
    ("fifo", fifo, "is a pipe", "a.nii"), ("link to a device", link("/dev/zero"), "is a device", "a.nii"),
    ("link to the system", link("/proc/version"), "belongs to the system", "a.nii"), ("loop", link("a.nii"),
    "cannot be opened|cannot be written", "a.nii"),
    ("dangling", link("nowhere.nii"), "leads nowhere", "a.nii"), ("NUL", lambda f: str(f / "a\0b.nii"), "null",
    "b.nii"), ("too long", lambda f: f / ("x" * 300 + ".nii"), "too long", "xxx.nii"),
    ("a folder", folder_called("a.nii"), "folder", "a.nii"), ("below a file",
    lambda f: (f / "b").write_bytes(b"") and None or f / "b" / "a.nii", "does not exist|no folder|cannot be opened",
    "a.nii"), ("nowhere", lambda f: f / "none" / "a.nii", "does not exist|no folder", "a.nii"),
    ("very deep", lambda f: f / ("d/" * 3000) / "a.nii", "too long", "…"), ("device", lambda f: "/dev/full",
    "is a device|must end in", "/dev/full"), ("escapes", lambda f: f / "\x1b[31mred" / "a.nii",
    "does not exist|no folder", "a.nii"))]
OUTPUTS = [Row(f"output {name!r}", lambda folder, name=name: [lambda: check_output(folder / name),
    lambda: write_volume(Volume(HU, LPS, "CT"), folder / name)], "must end in", names)
           for name, names in (("a.png", "a.png"), ("a", "a cannot"), ("nii", "nii"), ("a.nii.zip", "a.nii.zip"),
               ("a.nii ", "a.nii"), ("a.gz", "a.gz"), ("a.nhdr", "a.nhdr"), (os.fsdecode(b"M\xfcller"), "M\ufffdller"))]


# volumes, labels and points made by hand

def calls(*what): return lambda folder: [lambda w=w: w(folder) for w in what]


def with_entry(row, column, value):
    affine = LPS.copy()
    affine[row, column] = value
    return affine


AFFINE = {"nan": np.full((4, 4), np.nan), "inf": with_entry(0, 3, np.inf), "singular": with_entry(2, 2, 0),
    "zeros": np.zeros((4, 4)), "3×3": np.eye(3), "3×4": LPS[:3], "words": "LPS", "none": None, "complex": LPS * 1j,
    "objects": np.full((4, 4), None),
          "last row": with_entry(3, 0, 1.0), "ragged": [[1, 2], [3]], "a vector": np.arange(16.0), "flat": with_entry(2,
          2, 1e-9) * [1, 1, 1, 1] + np.outer([0, 1e-3, 0, 0], [0, 0, 3e3, 0])}
MADE = [Row(f"affine, {name}", calls(lambda f, a=a: Volume(HU, a, "CT"), lambda f, a=a: write_label(lopsided(SHAPE), a,
    f / "a.nii"), lambda f, a=a: with_label(Volume(HU, LPS, "CT"), lopsided(SHAPE), a)), "affine|mm, expected",
    "affine") for name, a in AFFINE.items()]
MADE += [Row(f"voxels, {name}", calls(lambda f, v=v: Volume(v, LPS, "CT")), "voxels of", "voxels") for name, v in {
    "complex": HU * 1j, "objects": HU.astype(object), "words": np.full(SHAPE, "a"), "dates": np.zeros(SHAPE, "M8[s]"),
    "records": np.zeros(SHAPE, [("R", "u1")]), "list": HU.tolist(), "none": None, "2D": HU[0], "4D": HU[None],
    "empty": HU[:0], "a number": np.float32(3)}.items()]
MADE += [Row(f"range, {r}", calls(lambda f, r=r: Volume(HU, LPS, "CT", range=r)), "range of", "range") for r in ((0,
    np.nan), (np.inf, 1), (1,), (1, 2, 3), 5)]
MADE += [Row(f"label of a volume, {name}", calls(lambda f, v=v: Volume(HU, LPS, "CT", v)), "uint8 on the same grid",
    "label") for name, v in {"int": lopsided(SHAPE).astype(int), "list": lopsided(SHAPE).tolist(), "small": lopsided((9,
    9, 9)), "text": "heart"}.items()]
MADE += [Row(f"label, {name}", calls(lambda f, v=v: with_label(Volume(HU, LPS, "CT"), v, LPS, "seg.nii")),
    "seg.nii (has|holds|is no label|lies)", "seg.nii") for name, v in {
    "values": np.arange(7680).reshape(SHAPE) * 10**12, "halves": lopsided(SHAPE) / 2, "nan": lopsided(SHAPE) * np.nan,
    "negative": lopsided(SHAPE) * -1.0, "2D": lopsided(SHAPE)[0], "4D": lopsided(SHAPE)[None], "words": np.full(SHAPE,
    "LV"),
    "complex": lopsided(SHAPE) * 1j, "long digits": lopsided(SHAPE) * 0.1234567890123456789, "smaller": lopsided((23,
    20, 16)), "empty": lopsided(SHAPE)[:0]}.items()]
MADE += [Row(f"written label, {name}", calls(lambda f, v=v: write_label(v, LPS, f / "a.nii")), "was not written",
    "a.nii") for name, v in {
    "halves": lopsided(SHAPE) / 2, "nan": lopsided(SHAPE) * np.nan, "256": lopsided(SHAPE) * 256.0,
    "negative": lopsided(SHAPE) * -1.0, "words": np.full(SHAPE, "LV"), "2D": lopsided(SHAPE)[0],
    "4D": lopsided(SHAPE)[None], "empty": lopsided(SHAPE)[:0], "complex": lopsided(SHAPE) * 1j, "none": None}.items()]
MADE += [Row(f"written volume, {name}", calls(lambda f, v=v: write_volume(v, f / "a.nii")), "was not written",
    "a.nii") for name, v in {
    "nan": Volume(HU * np.nan, LPS, "CT"), "infinite": Volume(HU + np.inf, LPS, "MRI"), "scaled": Volume(HU / 1000, LPS,
    "CT", scaled=True), "too long": Volume(np.zeros((40_000, 2, 2), np.float32), LPS, "MRI")}.items()]
MADE += [Row(f"centre, {c!r:.30}", calls(lambda f, c=c: to_grid(Volume(HU, LPS, "CT"), centre=c)), "three numbers",
    "centre") for c in ((np.nan, 0, 0), (0, np.inf, 0), (1, 2), "heart", (1, 2, 3, 4), [[1, 2, 3]], {}, ("a", "b",
    "c"))]
MADE += [Row(f"label file, {name}", lambda folder, v=v: (nib.Nifti1Image(v, LPS,
    dtype=v.dtype).to_filename(folder / "l.nii"), [lambda: read_label(folder / "l.nii")])[1], "no label map",
    "l.nii") for name, v in {
    "halves": lopsided(SHAPE) / 2, "nan": lopsided(SHAPE) * np.nan, "infinite": np.where(lopsided(SHAPE) > 2, np.inf,
    0.0), "1e12": lopsided(SHAPE) * 1e12, "2^31": lopsided(SHAPE).astype(np.uint32) * np.uint32(2**29),
    "2^63": lopsided(SHAPE).astype(np.uint64) * np.uint64(2**60)}.items()]

ROWS = NIFTI + TEXTS + INTENSITIES + PLACES + OUTPUTS + MADE


@pytest.mark.parametrize("row", ROWS, ids=[f"{k}-{ascii(r.name)[1:-1]:.60}" for k, r in enumerate(ROWS)])
def test_what_cannot_be_used_is_refused_in_one_line(row, tmp_path, capfd): refuses(row, tmp_path, capfd)


def test_the_inputs_that_the_tables_spoil_are_fine(tmp_path):
    for name, raw in (("a.nii", plain()), ("b.nii", header(lambda head: None)), ("c.mha", meta()), ("d.nrrd", nrrd()),
        ("e.nii", header(both(LPS))), ("f.nii", comment(32)(None)), ("g.nii", header(lambda head: None,
        kind=nib.Nifti2Image, size=540)),
                      ("h.mha", meta(zlib.compress(DATA), CompressedData="True")), ("i.nrrd", nrrd(gzip.compress(DATA),
                      encoding="gzip"))):
        (tmp_path / name).write_bytes(raw)
        scan = read_volume(tmp_path / name, "CT")
        assert np.array_equal(scan.voxels, CT) and np.allclose(scan.affine, LPS), name
        assert made_here(tmp_path / name) == (name == "f.nii")


def test_a_file_of_holes_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "holes.nii").write_bytes(header(field("dim", [3, 1000, 1000, 1200, 1, 1, 1, 1])))
    os.truncate(tmp_path / "holes.nii", 352 + 2 * 1_200_000_000)
    begun = time.monotonic()
    with pytest.raises(InputError, match="is empty"): read_volume(tmp_path / "holes.nii", "CT")
    assert time.monotonic() - begun < SECONDS


def test_a_description_outside_is_not_followed(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "a.raw").write_bytes(DATA)
    (tmp_path / "scans" / "a.mhd").write_bytes(meta(b"", ElementDataFile="../a.raw"))
    with pytest.raises(InputError, match="not in one file beside it"): read_volume(tmp_path / "scans" / "a.mhd", "CT")
    os.mkfifo(tmp_path / "scans" / "b.raw")
    (tmp_path / "scans" / "b.mhd").write_bytes(meta(b"", ElementDataFile="b.raw"))
    with pytest.raises(InputError, match="b.raw is a pipe"): read_volume(tmp_path / "scans" / "b.mhd", "CT")
