"DICOM folders that cannot be used: each is refused in one line that names the file or the folder."
import bz2
import gzip
import io
import lzma
import os
import shutil
import socket
import zipfile

import numpy as np
import pydicom
import pytest
from dicoms import as_bytes, jpeg_series, series, slice_of
from malformed import Bad, refuses

from cssgan.cli.parsing import attempt
from cssgan.scans.files import read_volume

ODD = (1, 3, 5)
CT_SMALL = slice_of(3)


def read_main(words): return attempt("read", lambda: read_volume(words[0], "MRI" if words[1:] else "CT"))


# one entry of a good series is something else

def one(content, name="IM3.dcm"):
    "A series in which one file holds something else: bytes, or what a function makes of the slice."
    def make(folder):
        place = series(folder)
        raw = as_bytes(CT_SMALL)
        (place / name).write_bytes(content(raw) if callable(content) else content)
        return [place]
    return make


def entry(put, name="IM3.dcm", whole=False):
    "A series in which one entry is no plain file of its own; `put` makes it. whole: beside all the slices."
    def make(folder):
        place = series(folder)
        if not whole: (place / name).unlink()
        put(place / name)
        return [place]
    return make


def all_of(content):
    "A folder in which every slice is spoiled."
    def make(folder):
        place = series(folder)
        for path in place.iterdir(): path.write_bytes(content(path.read_bytes()))
        return [place]
    return make


def some_of(content, which):
    def make(folder):
        place = series(folder)
        for z in which: (place / f"IM{z}.dcm").write_bytes(content((place / f"IM{z}.dcm").read_bytes()))
        return [place]
    return make


def zipped(raw):
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as z: z.writestr("IM3.dcm", raw)
    return packed.getvalue()


def socket_at(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name must be short
    try: socket.socket(socket.AF_UNIX).bind(path.name)
    finally: os.chdir(here)


def sparse(path):
    with open(path, "wb") as f:
        f.write(bytes(128) + b"DICM")
        f.truncate(5 * 10**9)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9000\n"
ANNEX = b"/annex/objects/SHA256E-s9000--0.dcm\n"
NIFTI = b"\x5c\1" + bytes(342) + b"n+1\0" + bytes(99)
NOISE = np.random.default_rng(0).integers(0, 256, 900, np.uint8).tobytes()
NESTED = b"\x30\0\x10\0SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"  # a sequence and its first item
ENTRIES = [
    Bad("empty", one(b""), "IM3.dcm", "is empty"),
    Bad("empty first", one(b"", "IM0.dcm"), "IM0.dcm", "is empty"),
    Bad("empty last", one(b"", "IM5.dcm"), "IM5.dcm", "is empty"),
    Bad("one empty more", one(b"", "IM6.dcm"), "IM6.dcm", "is empty"),
    Bad("empty without name", one(b"", "x"), "/x", "is empty"),
    Bad("every second empty", some_of(lambda raw: b"", ODD), "IM1.dcm", "is empty"),
    Bad("the upper half empty", some_of(lambda raw: b"", (3, 4, 5)), "IM3.dcm", "is empty"),
    Bad("all empty", all_of(lambda raw: b""), "series", "without DICOM files, and IM0.dcm is empty"),
    Bad("gzip", one(gzip.compress), "IM3.dcm", "is packed"),
    Bad("gzip beside", one(gzip.compress, "IM6.dcm.gz"), "IM6.dcm.gz", "is packed"),
    Bad("gzip of a letter", one(gzip.compress(b"Dear colleague"), "letter.gz"), "letter.gz", "is packed"),
    Bad("stub of gzip", one(b"\x1f\x8b", "x.gz"), "x.gz", "is packed"),
    Bad("damaged gzip", one(b"\x1f\x8b" + NOISE, "x.gz"), "x.gz", "is packed"),
    Bad("all gzip", all_of(gzip.compress), "series", "without DICOM files, and IM0.dcm is packed"),
    Bad("bzip2", one(bz2.compress), "IM3.dcm", "is packed"),
    Bad("xz", one(lzma.compress), "IM3.dcm", "is packed"),
    Bad("zip", one(zipped), "IM3.dcm", "is packed"),
    Bad("zip beside", one(zipped, "rest.zip"), "rest.zip", "is packed"),
    Bad("7z", one(b"7z\xbc\xaf\x27\x1c\0\4", "rest.7z"), "rest.7z", "is packed"),
    Bad("zstandard", one(b"\x28\xb5\x2f\xfd\0\0", "IM6.dcm.zst"), "IM6.dcm.zst", "is packed"),
    Bad("git-lfs pointer", one(LFS), "IM3.dcm", "git lfs pull"),
    Bad("git-lfs pointer of another name", one(LFS, "rest.txt"), "rest.txt", "git lfs pull"),
    Bad("every second a git-lfs pointer", some_of(lambda raw: LFS, ODD), "IM1.dcm", "git lfs pull"),
    Bad("all git-lfs pointers", all_of(lambda raw: LFS), "series", "IM0.dcm is a pointer"),
    Bad("git-annex pointer", one(ANNEX), "IM3.dcm", "git annex get"),
    Bad("dangling link", entry(lambda p: p.symlink_to("../annex/x")), "IM3.dcm", "leads nowhere"),
    Bad("dangling link beside", entry(lambda p: p.symlink_to("../annex/x"), "x", whole=True), "/x", "leads nowhere"),
    Bad("link to itself", entry(lambda p: p.symlink_to("IM3.dcm")), "IM3.dcm", "leads nowhere"),
    Bad("link to a device", entry(lambda p: p.symlink_to("/dev/zero")), "IM3.dcm", "is a device"),
    Bad("link to the system", entry(lambda p: p.symlink_to("/proc/self/status")), "IM3.dcm", "belongs to the system"),
    Bad("pipe", entry(os.mkfifo), "IM3.dcm", "is a pipe"),
    Bad("pipe beside", entry(os.mkfifo, "x", whole=True), "/x", "is a pipe"),
    Bad("socket", entry(socket_at), "IM3.dcm", "is a socket"),
    Bad("a server's page", one(b"<html><body>404 not found</body></html>"), "IM3.dcm",
        "called like the slices, but is a text"),
    Bad("a server's complaint", one(b'{"error": "expired"}', "IM6.dcm"), "IM6.dcm",
        "called like the slices, but is a text"),
    Bad("PDF called like a slice", one(b"%PDF-1.7"), "IM3.dcm", "but is a PDF"),
    Bad("picture called like a slice", one(b"\x89PNG\r\n\x1a\n\0"), "IM3.dcm", "but is a picture"),
    Bad("NIfTI called like a slice", one(NIFTI), "IM3.dcm", "but is a NIfTI file"),
    Bad("packed NIfTI called like a slice", one(gzip.compress(NIFTI)), "IM3.dcm", "but is a NIfTI file"),
    Bad("zeros", one(bytes(900)), "IM3.dcm", "is damaged, or no slice"),
    Bad("zeros from the start", one(lambda raw: bytes(512) + raw[512:]), "IM3.dcm", "is damaged, or no slice"),
    Bad("noise", one(NOISE), "IM3.dcm", "is damaged, or no slice"),
    Bad("noise beside", one(NOISE, "notes.dat"), "notes.dat", "is damaged, or no slice"),
    Bad("cut after 100 bytes", one(lambda raw: raw[:100]), "IM3.dcm", "is damaged"),
    Bad("cut after the preamble", one(lambda raw: raw[:132]), "IM3.dcm", "is damaged"),
    Bad("cut in the meta information", one(lambda raw: raw[:150]), "IM3.dcm", "is damaged"),
    Bad("cut in the header", one(lambda raw: raw[:600]), "IM3.dcm", "is damaged"),
    Bad("cut before the pixels", one(lambda raw: raw[:-448 - 12]), "IM3.dcm", "it ends before its pixels"),
    Bad("cut at the pixels", one(lambda raw: raw[:-448]), "IM3.dcm", "it ends within its pixels"),
    Bad("cut in the pixels", one(lambda raw: raw[:-200]), "IM3.dcm", "it ends within its pixels"),
    Bad("cut by a byte", one(lambda raw: raw[:-1]), "IM3.dcm", "it ends within its pixels"),
    Bad("last slice cut", some_of(lambda raw: raw[:-200], [5]), "IM5.dcm", "it ends within its pixels"),
    Bad("all cut", all_of(lambda raw: raw[:-200]), "IM0.dcm", "it ends within its pixels"),
    Bad("preamble and noise", one(bytes(128) + b"DICM" + NOISE), "IM3.dcm", "is damaged"),
    Bad("preamble and text", one(bytes(128) + b"DICM" + b"Dear colleague, " * 30), "IM3.dcm", "is damaged"),
    Bad("no preamble, cut", one(lambda raw: as_bytes(CT_SMALL, bare=True)[:-200]), "IM3.dcm",
        "it ends within its pixels"),
    Bad("no preamble, noise", one(b"\x08\0\5\0CS\x0a\0" + NOISE), "IM3.dcm", "is damaged"),
    Bad("half a download", one(lambda raw: raw[:500], "IM6.dcm.part"), "IM6.dcm.part", "is damaged"),
    Bad("half a copy, hidden", one(lambda raw: raw[:500], ".IM6.dcm.x8s2"), ".IM6.dcm.x8s2", "is damaged"),
    Bad("larger than a slice", entry(sparse), "IM3.dcm", "larger than a slice can be"),
    Bad("no image", one(as_bytes(slice_of(3, PixelData=None))), "IM3.dcm", "is damaged, or no image"),
    Bad("a copy", one(as_bytes(slice_of(2)), "IM2 (1).dcm"), "IM2 (1).dcm and IM2.dcm", "several images of one place"),
    Bad("a hard link", entry(lambda p: os.link(p.parent / "IM2.dcm", p), "again", whole=True), "IM2.dcm and again",
        "several images of one place"),
    Bad("a link within", entry(lambda p: p.symlink_to("IM2.dcm"), "again", whole=True), "IM2.dcm and again",
        "several images of one place"),
    Bad("a lost slice", entry(lambda p: None), "series", "is one missing"),
    Bad("nested thousands deep", one(lambda raw: raw[:-460] + NESTED * 20000), "IM3.dcm", "is damaged"),
]


@pytest.mark.parametrize("bad", ENTRIES, ids=[b.name for b in ENTRIES])
def test_an_entry_that_may_be_a_slice_is_not_left_out(bad, tmp_path, capfd): refuses(read_main, bad, tmp_path, capfd)


# tags that decide

def says(which=range(6), **tags):
    "A series of which the slices in `which` say something else."
    return lambda folder: [series(folder, which, **tags)]


def rows(keyword, values, message, names="IM0.dcm", which=range(6)):
    "A row for each value of a tag."
    return [Bad(f"{keyword} {str(value)[:30]!r}", says(which, **{keyword: value}), names, message) for value in values]


LACKING = "does not say where it lies|which must be [236] plain numbers"
NO_ROTATION = "no pair of directions at right angles"
TAGS = [
    *rows("ImagePositionPatient", [None, "", " ", "0", "0\\0", "0\\0\\0\\0", "nan\\0\\0", "0\\inf\\0", "0,5\\0\\0",
                                   "0mm\\0\\0", "1e9\\0\\0", "9\\" * 500 + "9", "a\\b\\c", "0\\\\0",
                                   "0x10\\0\\0", "1_0\\0\\0", "0 0 0", "0;0;0", "0/0/0", "1e999\\0\\0", "--1\\0\\0",
                                   "0\\0\\1e", "\x1b[31m\\0\\0", np.zeros(3).tobytes()], LACKING),
    *rows("ImagePositionPatient", ["0\\0", "nan\\0\\0"], LACKING, "IM5.dcm", [5]),
    *rows("ImageOrientationPatient", [None, "", "-1\\0\\0", "1\\0\\0\\0\\1", "1\\0\\0\\0\\1\\0\\0",
                                      "1\\0\\0\\0\\1\\0\\0\\0\\1", "nan\\0\\0\\0\\1\\0", "1,0\\0\\0\\0\\1,0\\0", "L\\P",
                                      "9\\" * 3000 + "9",
                                      "1\\0\\0\\0\\1\\nan", "one\\0\\0\\0\\1\\0"], LACKING),
    *rows("ImageOrientationPatient", ["-1\\0\\0\\-1\\0\\0", "0\\0\\0\\0\\0\\0", "1\\0\\0\\1\\0\\0", "2\\0\\0\\0\\2\\0",
                                      "1\\0\\0\\0.1\\1\\0", "1\\0\\0\\0\\0\\0", "1\\0\\0\\0\\0.9\\0",
                                      "9\\9\\9\\9\\9\\9",
                                      "0.83\\0.30\\0.47\\-0.53\\0.68\\0.51", "99999\\0\\0\\0\\99999\\0",
                                      "0.7\\0.7\\0\\-0.7\\0.7\\0"], NO_ROTATION),
    *rows("ImageOrientationPatient", ["-1\\0\\0\\-1\\0\\0"], NO_ROTATION, "IM5.dcm", [5]),
    *rows("PixelSpacing", [None, "", "6", "3\\3\\3", "3,0\\3,0", "3.0mm\\3.0mm", "nan\\nan", "inf\\inf", "3/3", "3;3",
                           "3\\", "\\3", "3x3", "9\\" * 400 + "9"], LACKING),
    *rows("PixelSpacing", ["0\\0", "-6\\-6", "3\\0", "-0\\3"], "more than 0 mm"),
    *rows("PixelSpacing", ["1e-9\\1e-9", "1e-300\\1e-300", "500\\500"], "mm, expected|singular|aslant|uneven|different",
          "series"),
    *rows("Modality", [None, "", "CT\\MR", "US", "PT", "OT", "ct", "CTMR", "SEG", "\x1b[31mCT"],
          "give a series of CT or MR"),
    *rows("Modality", ["US"], "give a series of CT or MR", "IM5.dcm", [5]),
    *rows("Modality", ["MR"], "holds CT and MR", "series", [5]),
    *rows("Modality", ["MR"], "is MR by its DICOM tag, not CT", "series"),
    *rows("Rows", [None, b"", b"16", b"\x0e\0\0\0", b"\x0e\0\x0e\0"], "does not say its rows|bytes of pixels|rows and"),
    *rows("Rows", [b"\0\0", b"\xff\xff"], "rows and"),
    *rows("Rows", [b"\x0d\0", b"\x0f\0", b"\x07\0", b"\x1c\0"], "bytes of pixels where"),
    *rows("Rows", [b"\x0d\0"], "bytes of pixels where", "IM5.dcm", [5]),
    *rows("Columns", [b"\0\0", b"\x0f\0", b"\x11\0", None], "does not say its columns|bytes of pixels|rows and"),
    *rows("BitsAllocated", [None, b"\0\0", b"\x0c\0", b"\x40\0", b"\1\0"],
          "bits allocated|stores its pixels strangely"),
    *rows("BitsAllocated", [b"\x20\0"], "bytes of pixels where"),
    *rows("BitsStored", [None, b"\0\0", b"\x11\0", b"\x0c\0"], "bits stored|stores its pixels strangely"),
    *rows("HighBit", [None, b"\7\0"], "high bit|stores its pixels strangely"),
    *rows("PixelRepresentation", [None, b"\2\0"], "pixel representation|stores its pixels strangely"),
    *rows("SamplesPerPixel", [None, b"\3\0", b"\0\0"], "samples per pixel|holds colours"),
    *rows("PhotometricInterpretation", [None, "", "RGB", "PALETTE COLOR", "YBR_FULL", "monochrome2", "MONOCHROME1",
                                        "MONOCHROME2\\RGB"],
                                        "photometric interpretation|holds colours|black and white"),
    *rows("NumberOfFrames", ["2", "0", "-1", "24", "1.5"], "frames in one file"),
    *rows("NumberOfFrames", ["nan", "", "1\\1", "many"], "number of frames"),
    *rows("RescaleSlope", [None, "", "nan", "inf", "1,5", "1\\1", "x", "1e400", "1e-400x"], "rescale slope"),
    *rows("RescaleSlope", ["0", "0.0", "-0", "0e5"], "would make all voxels alike"),
    *rows("RescaleIntercept", [None, "", "nan", "-inf", "-1024,0", "-1024 HU", "1e7"], "rescale intercept"),
    *rows("RescaleIntercept", ["nan"], "rescale intercept", "IM5.dcm", [5]),
    *rows("RescaleType", ["MGML", "Z_EFF"], "not in HU"),
    *rows("PixelData", [b"", bytes(200), bytes(446), bytes(450), bytes(896)], "bytes of pixels where|damaged"),
    *rows("PixelData", [b"", bytes(200)], "bytes of pixels where|damaged", "IM5.dcm", [5]),
    *rows("SeriesInstanceUID", [None, "", "1.2.9"], "holds 2 series", "series", [5]),
    *rows("SeriesDescription", ["\x1b]0;owned\x07", "x" * 9000, "Sch\udce4del".encode("utf-8", "surrogateescape")],
          "holds 2 series", "series", [5]),
    *rows("FrameOfReferenceUID", [None, "1.2.9"], "frames of reference", "series", [5]),
    Bad("positions rounded to nothing", says(ImagePositionPatient="0\\0\\0"), "series", "several images of one place"),
    Bad("positions rounded to 10 mm", says(ImagePositionPatient=lambda z: f"0\\0\\{round(3 * z, -1)}"), "series",
        "several images of one place"),
    Bad("positions rounded to 2 mm", says(ImagePositionPatient=lambda z: f"0\\0\\{round(3 * z / 2 + 0.1) * 2}"),
        "series", "uneven"),
    Bad("positions along a row", says(ImagePositionPatient=lambda z: f"{3 * z}\\0\\0"), "series",
        "several images of one place"),
    Bad("positions aslant", says(ImagePositionPatient=lambda z: f"{3 * z}\\0\\{3 * z}"), "series", "45 degrees aslant"),
    Bad("one position elsewhere", says([5], ImagePositionPatient="0\\0\\15"), "series", "uneven"),
    Bad("two positions exchanged for others", says([4, 5], ImagePositionPatient=lambda z: f"-15\\-17.5\\{3 * z + 2}"),
        "series", "uneven"),
    Bad("one direction flipped", says([5], ImageOrientationPatient="-1\\0\\0\\0\\-1\\0"), "series",
        "different sizes or directions"),
    Bad("one spacing differs", says([5], PixelSpacing="2.4\\2"), "series", "different sizes or directions"),
]


@pytest.mark.parametrize("bad", TAGS, ids=[b.name for b in TAGS])
def test_what_decides_the_geometry_is_not_guessed(bad, tmp_path, capfd): refuses(read_main, bad, tmp_path, capfd)


# compression

def packed(change, syntax=None, which=(5,)):
    "A series of which some slices are compressed, and then changed: the one fragment, or the data set."
    def make(folder):
        place = series(folder)
        for z in which: _pack(place / f"IM{z}.dcm", change, syntax)
        return [place]
    return make


def _pack(path, change, syntax):
    (data := pydicom.dcmread(path)).compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    fragment = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1))
    if isinstance(new := change(fragment, data), bytes): data.PixelData = pydicom.encaps.encapsulate([new])
    data["PixelData"].is_undefined_length = True
    if syntax: data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path)


def raw_packed(change):
    "The same, with the file's bytes changed."
    def make(folder):
        (place,) = packed(lambda fragment, data: None)(folder)
        (place / "IM5.dcm").write_bytes(change((place / "IM5.dcm").read_bytes()))
        return [place]
    return make


def huge(raw):
    "The last fragment claims two gigabytes."
    begin = raw.rindex(b"\xfe\xff\0\xe0")
    return raw[:begin + 4] + b"\xff\xff\xff\x7f" + raw[begin + 8:]


def jpeg(name, change=lambda stream: stream, **tags):
    "Slices of a JPEG of 64 × 64 voxels that is changed, or of which the tags say something else."
    def make(folder):
        place = jpeg_series(folder, name, **tags)
        data = pydicom.dcmread(place / "IM0.dcm")
        stream = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1))
        data.PixelData = pydicom.encaps.encapsulate([change(stream)])
        data["PixelData"].is_undefined_length = True
        data.save_as(place / "IM0.dcm")
        return [place, "MRI"]
    return make


JPEGS = "RLE", "jpeg_ls_lossless", "jp2klossless"
ONE_BYTE = dict(BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0)


def native(syntax): return lambda folder: [_with_syntax(series(folder), syntax)]


def _with_syntax(place, syntax):
    (place / "IM5.dcm").write_bytes(as_bytes(slice_of(5), syntax=syntax))
    return place


COMPRESSED = [
    Bad("a fragment cut short", packed(lambda fragment, data: fragment[:len(fragment) // 4 * 2]), "IM5.dcm",
        "cannot be decoded"),
    Bad("a fragment of noise", packed(lambda fragment, data: NOISE), "IM5.dcm", "cannot be decoded"),
    Bad("an empty fragment", packed(lambda fragment, data: b"\0\0"), "IM5.dcm", "cannot be decoded"),
    Bad("noise for JPEG 2000", packed(lambda fragment, data: NOISE, "1.2.840.10008.1.2.4.90"), "IM5.dcm",
        "cannot be decoded"),
    Bad("noise for JPEG", packed(lambda fragment, data: NOISE, "1.2.840.10008.1.2.4.70"), "IM5.dcm",
        "cannot be decoded"),
    Bad("noise for JPEG-LS", packed(lambda fragment, data: NOISE, "1.2.840.10008.1.2.4.80"), "IM5.dcm",
        "cannot be decoded"),
    Bad("the file cut in its fragment", raw_packed(lambda raw: raw[:-60]), "IM5.dcm", "is damaged"),
    Bad("the file cut at its end's mark", raw_packed(lambda raw: raw[:-8]), "IM5.dcm", "is damaged"),
    Bad("a fragment that says a huge length", raw_packed(huge), "IM5.dcm", "damaged"),
    Bad("compressed, but says it is not", raw_packed(lambda raw: raw.replace(b"10008.1.2.5\0", b"10008.1.2.1\0")),
        "IM5.dcm", "contradicts itself"),
    Bad("not compressed, but says it is", native("1.2.840.10008.1.2.4.90"), "IM5.dcm", "contradicts itself"),
    Bad("an unknown syntax", native("1.2.3.4.5"), "IM5.dcm", "contradicts itself"),
    Bad("compressed with an unknown syntax", packed(lambda fragment, data: fragment, "1.2.3.4.5"), "IM5.dcm",
        "cannot be decoded"),
    Bad("packed as a whole", native("1.2.840.10008.1.2.1.99"), "IM5.dcm", "deflated"),
    *[Bad(f"{name}: half the rows", jpeg(name, Rows=32), "IM0.dcm", "decoded|damaged") for name in JPEGS],
    *[Bad(f"{name}: twice the rows", jpeg(name, Rows=128), "IM0.dcm", "decoded|damaged") for name in JPEGS],
    *[Bad(f"{name}: half the columns", jpeg(name, Columns=32), "IM0.dcm", "decoded|damaged") for name in JPEGS],
    *[Bad(f"{name}: the same number in another shape", jpeg(name, Rows=32, Columns=128), "IM0.dcm",
          "decoded|damaged") for name in JPEGS[1:]],
    *[Bad(f"{name}: half the bits", jpeg(name, **ONE_BYTE), "IM0.dcm", "decoded|damaged") for name in JPEGS[:2]],
    *[Bad(f"{name}: cut short", jpeg(name, lambda stream: stream[:len(stream) // 4 * 2]), "IM0.dcm",
          "decoded|damaged") for name in JPEGS],
    *[Bad(f"{name}: cut by a little", jpeg(name, lambda stream: stream[:-20]), "IM0.dcm",
          "decoded|damaged") for name in JPEGS],
    *[Bad(f"{name}: zeros", jpeg(name, lambda stream: bytes(len(stream) // 2 * 2)), "IM0.dcm",
          "decoded|damaged") for name in JPEGS],
    Bad("fewer rows than were compressed", packed(lambda fragment, data: setattr(data, "Rows", 7), which=range(6)),
        "IM0.dcm", "decoded|damaged"),
    Bad("more rows than were compressed", packed(lambda fragment, data: setattr(data, "Rows", 28), which=range(6)),
        "IM0.dcm", "decoded|damaged"),
    Bad("more columns than were compressed", packed(lambda fragment, data: setattr(data, "Columns", 4096),
                                                    which=range(6)), "IM0.dcm", "decoded|damaged"),
]


@pytest.mark.parametrize("bad", COMPRESSED, ids=[b.name for b in COMPRESSED])
def test_compressed_pixels_are_whole_or_refused(bad, tmp_path, capfd):
    pytest.importorskip("SimpleITK")
    refuses(read_main, bad, tmp_path, capfd)


# folders

def letter(folder):
    (folder / "a").mkdir()
    (folder / "a" / "letter.txt").write_bytes(b"Dear colleague")
    return [folder / "a"]


def deeper(folder):
    (folder / "a").mkdir()
    shutil.move(series(folder), folder / "a")
    return [folder / "a"]


def single(folder):
    for path in list((place := series(folder)).iterdir())[1:]: path.unlink()
    return [place]


def dirt(folder):
    place = series(folder, [5], SeriesInstanceUID="1.2.9", SeriesDescription="\x1b[2J" * 99)
    return [place.rename(folder / "a\x1b[31m\nb")]


def empty(folder):
    (folder / "a").mkdir()
    return [folder / "a"]


FOLDERS = [
    Bad("empty", empty, "/a", "without DICOM files"),
    Bad("a letter", letter, "/a", "without DICOM files"),
    Bad("slices one folder deeper", deeper, "/a", "without DICOM files"),
    Bad("a single slice", single, "series", "single slice"),
    Bad("a slice instead of its folder", lambda folder: [series(folder) / "IM3.dcm"], "IM3.dcm", "name the folder"),
    Bad("escapes in its name", dirt, "a\\x1b[31m b", "holds 2 series"),
    Bad("a slice without preamble", lambda folder: [series(folder, bare=True) / "IM3.dcm"], "IM3.dcm",
        "name the folder"),
]


@pytest.mark.parametrize("bad", FOLDERS, ids=[b.name for b in FOLDERS])
def test_a_folder_that_is_no_series(bad, tmp_path, capfd): refuses(read_main, bad, tmp_path, capfd)
