"Tiny DICOM series in which every tag can be said, also as it must not be."
import io
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SHAPE, STEP = (16, 14, 6), (2.0, 2.5, 3.0)  # voxels, mm
ENCODINGS = {"explicit": ExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian, "big endian": ExplicitVRBigEndian}


def hu(shape=SHAPE):
    "A body of 40 HU in air with a brighter corner: (X, Y, Z)."
    index = np.moveaxis(np.indices(shape), 0, -1) / np.array(shape)
    v = np.where((((index[..., :2] - 0.5) / 0.45) ** 2).sum(-1) < 1, 40, -1000)
    v[(((index - (0.6, 0.4, 0.5)) / 0.2) ** 2).sum(-1) < 1] = 300
    return v


def slice_of(z, plane=None, encoding="explicit", **tags):
    """Slice z as a data set. Tags by keyword: a text or bytes as they shall stand in the file, None for none."""
    plane = hu()[:, :, z] + 1024 if plane is None else plane
    order = ">" if encoding == "big endian" else "<"
    two = lambda n: np.array(n, order + "u2").tobytes()
    said = dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", SOPInstanceUID=f"1.2.3.4.{z + 1}", Modality="CT",
                SeriesDescription="Heart", StudyInstanceUID="1.2.3",
                SeriesInstanceUID="1.2.3.4", FrameOfReferenceUID="1.2.3.5",
                ImagePositionPatient=f"-15\\-17.5\\{z * STEP[2]:g}", ImageOrientationPatient="1\\0\\0\\0\\1\\0",
                PixelSpacing="2.5\\2", Rows=two(plane.shape[1]), Columns=two(plane.shape[0]), SamplesPerPixel=two(1),
                PhotometricInterpretation="MONOCHROME2",
                BitsAllocated=two(16), BitsStored=two(16), HighBit=two(15), PixelRepresentation=two(0),
                RescaleSlope="1", RescaleIntercept="-1024",
                PixelData=plane.T.astype(order + "u2").tobytes()) | tags
    data = pydicom.Dataset()
    data.set_original_encoding(encoding == "implicit", encoding != "big endian", "iso8859")
    for keyword, value in said.items():
        if value is not None: data[keyword] = _element(keyword, value, encoding)
    return data


def _element(keyword, value, encoding):
    "A tag as it stands, padded to an even length."
    tag, vr = Tag(keyword), dictionary_VR(keyword).split(" ")[-1]
    raw = value if isinstance(value, bytes) else value.encode()
    raw += (b"\0" if vr in ("UI", "OW") else b" ") * (len(raw) % 2)
    return RawDataElement(tag, None if encoding == "implicit" else vr, len(raw), raw, 0, encoding == "implicit",
                          encoding != "big endian")


def as_bytes(data, encoding="explicit", bare=False, syntax=None):
    "The file: as today (Part 10), or bare, as before."
    how = dict(implicit_vr=encoding == "implicit", little_endian=encoding != "big endian")
    if bare:
        pydicom.dcmwrite(out := io.BytesIO(), data, **how)
        return out.getvalue()
    pydicom.dcmwrite(body := io.BytesIO(), data, **how)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax or ENCODINGS[encoding]
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.1"
    meta.ImplementationClassUID = "1.2.3.99"
    pydicom.filewriter.write_file_meta_info(head := io.BytesIO(), meta)
    return bytes(128) + b"DICM" + head.getvalue() + body.getvalue()


def series(folder, which=range(SHAPE[2]), encoding="explicit", bare=False, **tags):
    "A series IM0.dcm to IM5.dcm in `folder`/series; the tags are those of the slices in `which`."
    (place := Path(folder) / "series").mkdir(parents=True, exist_ok=True)
    for z in range(SHAPE[2]):
        said = {k: v(z) if callable(v) else v for k, v in tags.items()} if z in which else {}
        (place / f"IM{z}.dcm").write_bytes(as_bytes(slice_of(z, encoding=encoding, **said), encoding, bare))
    return place


def jpeg_series(folder, name, **tags):
    "Three slices of pydicom's own MR in 64 × 64 voxels, as `name` compresses them; the tags are changed in each."
    (place := Path(folder) / "series").mkdir(parents=True, exist_ok=True)
    for z in range(3):
        data = pydicom.dcmread(pydicom.data.get_testdata_file(f"MR_small_{name}.dcm", download=False))
        data.ImagePositionPatient = [0, 0, 2 * z]
        for keyword, value in tags.items(): setattr(data, keyword, value)
        data.save_as(place / f"IM{z}.dcm")
    return place
