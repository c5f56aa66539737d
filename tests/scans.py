"Small scans in every orientation, and what a refusal must look like: for the tests of volumes and files."
import nibabel as nib
import numpy as np
import pytest

from cssgan.guard import InputError

LPS = np.array([[-2, 0, 0, 40], [0, -2.5, 0, 50], [0, 0, 3, -60], [0, 0, 0, 1.0]])


def turned(angles, spacing=(2, 2.5, 3), flips=(1, 1, 1), origin=(-30, 12.5, 100)):
    "An oblique affine."
    a, b, c = np.radians(angles)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return nib.affines.from_matvec(z @ y @ x @ np.diag(np.array(spacing) * flips), origin)


AFFINES = {
    "plain": np.diag([2, 2.5, 3, 1.0]), "LPS": LPS, "oblique": turned((20, -10, 35)),
    "oblique, flipped": turned((-15, 12, 5), flips=(-1, -1, 1)),
    "sagittal slices": np.array([[0, 0, 3, -60], [-2, 0, 0, 40], [0, -2.5, 0, 50], [0, 0, 0, 1.0]]),
    "thick slices": turned((5, 4, -7), spacing=(1.2, 1.2, 6)), "left-handed": turned((0, 30, 0), flips=(-1, 1, 1)),
}


def voxels(shape=(24, 20, 16), modality="CT"):
    "A body of 40 HU in air, with a brighter, lopsided heart."
    index = np.moveaxis(np.indices(shape), 0, -1) / np.array(shape)
    v = np.where((((index - 0.5) / 0.42) ** 2).sum(-1) < 1, 40.0, -1000.0)
    v[(((index - (0.6, 0.4, 0.55)) / (0.2, 0.15, 0.2)) ** 2).sum(-1) < 1] = 300
    return v if modality == "CT" else (v + 1000) / 3


def lopsided(shape):
    "Five regions of which none is symmetric."
    label, n = np.zeros(shape, np.uint8), np.array(shape)
    boxes = {1: ((.2, .2, .2), (.5, .45, .5)), 2: ((.5, .25, .25), (.7, .6, .6)), 3: ((.25, .5, .5), (.5, .8, .75)),
             4: ((.55, .62, .4), (.8, .8, .8)), 5: ((.2, .2, .55), (.45, .48, .8))}
    for region, (low, high) in boxes.items():
        a, b = (n * low).astype(int), (n * high).astype(int)
        label[a[0]:b[0], a[1]:b[1], a[2]:b[2]] = region
    return label


def refused(call, *args, says=""):
    "The message of the InputError that the call must raise: one line."
    with pytest.raises(InputError) as e: call(*args)
    message = str(e.value)
    assert "\n" not in message and says in message, message
    return message


def write_slice(file, plane, affine, z=0, **tags):
    "Slice z of the array that `affine` places, as a DICOM file; tags: group and element, as in `t0008_0060`."
    import SimpleITK as sitk
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    image = sitk.GetImageFromArray(np.swapaxes(plane, 0, 1)[None], isVector=plane.ndim == 3)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(axes.ravel().tolist())
    image.SetOrigin((lps @ [0, 0, z, 1])[:3].tolist())
    for key, value in (dict(t0008_0060="CT", t0020_000e="1.2.3", t0008_103e="Heart") | tags).items():
        image.SetMetaData(key[1:].replace("_", "|"), value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(file))
    writer.Execute(image)


def write_dicom(folder, array, affine, **tags):
    "A DICOM series of an array; its files' names run in another order than its slices."
    folder.mkdir(exist_ok=True)
    n = array.shape[2]
    for z in range(n):
        write_slice(folder / f"IM{(7 * z + 3) % n:04}", np.rint(array[:, :, z]).astype(np.int16), affine, z, **tags)
    return folder
