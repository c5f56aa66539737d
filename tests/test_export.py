"Networks that leave the toolkit answer as they do here, and what leaves is whole, named and not replaced unawares."
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import cssgan
from cssgan.cli.export import export_main
from cssgan.cli.scans import segment_main
from cssgan.fast import networks as fast
from cssgan.fast.networks import accelerate
from cssgan.guard import InputError
from cssgan.inference import apply, steps
from cssgan.inference import export as exporting
from cssgan.inference.bundle import bundle_files, network_source, steps_source
from cssgan.inference.closer import look_closer
from cssgan.inference.export import Compared, export, network_files, sample_volume
from cssgan.inference.location import segment_until_stable
from cssgan.inference.windows import labels_in_scan, prepare_scan
from cssgan.models import Networks
from cssgan.phantoms.clinic import clinical_phantom
from cssgan.phantoms.scanners import phantom
from cssgan.phantoms.shapes import shapes
from cssgan.scans.files import read_label, write_volume
from cssgan.scans.volumes import Grid, grid_centre
from cssgan.task import HEART, as_task
from cssgan.training.checkpoints import load_checkpoint
from cssgan.training.schema import about_networks

GRID = Grid((24, 24, 17), (7.0, 7.0, 8.0))
ODD = as_task({ # percentiles, a curve, pieces of each region, a grid around one of them
    "name": "two shapes", "regions": ["background", "left kidney", "liver"], "pieces": "each",
    "domains": [{"name": "MR", "percentiles": [2, 98], "nothing": 0},
                {"name": "CBCT", "knots": [[-500, -1], [0, 0.5], [900, 1]], "nothing": -700}],
    "grid": {"shape": [24, 24, 16], "spacing": [7, 7, 8]}, "centre": {"rule": "image", "on": ["liver"]}})


def about_of(nets, task=HEART, ranges=None):
    "What a checkpoint would say of fresh networks."
    ranges = ranges or {domain.name: domain.ends or (10.0, 600.0) for domain in task.domains}
    return json.loads(json.dumps(about_networks(nets, GRID, ranges, task)))


# ---- ONNX and programs

@pytest.mark.parametrize("form, resnet", [("onnx", False), ("torch", True)], ids=["ONNX", "torch.export, ResNet"])
def test_exports_answer_as_their_networks_do(form, resnet):
    if form == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"): pytest.importorskip(name)
    nets = Networks(width=4, patch_layers=1, resnet=resnet, seed=3).eval()
    files, compared = network_files(nets, about_of(nets), form)
    assert sorted(files) == [f"{name}.{'onnx' if form == 'onnx' else 'pt2'}" for name in ("G_A", "G_B", "S_A", "S_B")]
    assert all(c.difference < 1e-3 and (c.labels or 0) <= 1e-4 for c in compared.values())


def test_an_export_that_answers_otherwise_is_not_written(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "answers_of", lambda content, ending, x: 2 * torch.rand(1, 6, *x.shape[2:]))
    with pytest.raises(InputError, match="answers otherwise than its network"): export(checkpoint, tmp_path, "torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("found, equal", [
    (Compared(0.5, 1e-4), True), (Compared(1e-6, 2e-4), False), (Compared(0.009), True), (Compared(0.02), False),
    (Compared(float("nan")), False)])
def test_what_counts_as_equal(found, equal): assert found.equal is equal


def test_quick_networks_are_exported_as_plain_ones(checkpoint, tmp_path, monkeypatch):
    load = exporting.load_checkpoint
    def quick(folder):
        found = load(folder)
        return found._replace(nets=accelerate(found.nets.half().float()))
    monkeypatch.setattr(exporting, "load_checkpoint", quick)
    assert set(export(checkpoint, tmp_path / "out", "torch")) == {"G_A.pt2", "G_B.pt2", "S_A.pt2", "S_B.pt2"}


def test_a_program_is_loaded_without_cssgan(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out", "torch")
    nets, about, _ = load_checkpoint(checkpoint)
    x = sample_volume(about["grid"]["shape"], 5)
    torch.save(x, tmp_path / "x.pt")
    code = ("import sys, json, torch; said = {'cssgan.json': ''}; "
            "p = torch.export.load('out/S_A.pt2', extra_files=said); "
            "torch.save(p.module()(torch.load('x.pt')).detach(), 'y.pt'); "
            "assert 'cssgan' not in sys.modules; print(said['cssgan.json'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["purpose"].startswith("segments CT: logits of background, LV") and said["cssgan"] == cssgan.__version__
    assert json.loads(said["ranges"]) == about["ranges"] and json.loads(said["grid"]) == about["grid"]
    with torch.no_grad(): assert torch.allclose(torch.load(tmp_path / "y.pt"), nets.S_A(x), atol=1e-5)


shipped = pytest.mark.skipif(not (apply.PRETRAINED / "checkpoint.json").is_file(), reason="there is no model")


def patient(modality):
    "A scan as a clinic has it, small."
    return clinical_phantom(100, modality, Grid((80, 68, 60), (3.0, 3.0, 3.0)))


@shipped
@pytest.mark.parametrize("modality", HEART.names)
def test_the_shipped_segmentors_as_onnx_give_the_same_labels_of_a_patient(modality):
    for name in ("onnx", "onnxscript", "onnxruntime"): pytest.importorskip(name)
    nets, about, _ = load_checkpoint(apply.PRETRAINED)
    net, grid = getattr(nets, f"S_{HEART.side(modality)}"), Grid(*map(tuple, about["grid"].values()))
    scan = replace(patient(modality), label=None)
    seen = prepare_scan(scan, grid, about["ranges"][modality], grid_centre(scan), grid)
    x = torch.from_numpy(seen.voxels)[None, None]
    with exporting.quietly(): made = exporting.as_onnx(net, x, {})
    assert exporting.compare(net, made, ".onnx", x).labels <= 1e-4
    with torch.no_grad(): assert len(net(x).argmax(1).unique()) == len(HEART.regions)


# ---- what was written, and the command

def test_the_command_writes_says_and_does_not_replace_unawares(checkpoint, tmp_path, capsys):
    words = [str(checkpoint), "--torch", "--out", str(tmp_path / "out")]
    assert export_main(words) == 0
    assert capsys.readouterr().out.count("largest difference") == 4
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    sums = json.loads((tmp_path / "out/export.json").read_text())["files"]
    assert sums == {f.name: hashlib.sha256(c).hexdigest() for f, c in before.items() if f.name != "export.json"}
    assert export_main(words) == 1 and "exists" in capsys.readouterr().err
    (tmp_path / "out/S_A.pt2").write_bytes(b"mine")
    assert export_main([*words, "--force"]) == 1 and "was not made by cssgan" in capsys.readouterr().err
    assert (tmp_path / "out/S_A.pt2").read_bytes() == b"mine"
    (tmp_path / "out/S_A.pt2").unlink()
    assert export_main([*words, "--force"]) == 0


def test_two_forms_share_a_folder(checkpoint, tmp_path):
    export(checkpoint, tmp_path, "bundle")
    export(checkpoint, tmp_path, "torch")
    files = json.loads((tmp_path / "export.json").read_text())["files"]
    assert {"G_A.pt2", "heart_CT_segmentation/models/model.pt", "heart_MRI_segmentation/docs/README.md"} <= files.keys()
    load_checkpoint(checkpoint)


@pytest.mark.parametrize("words, says", [
    (["nowhere", "--onnx", "--out", "x"], "nowhere holds no checkpoint.json"),
    (["{}", "--torch", "--out", "{}/checkpoint.json"], "cannot be made")])
def test_what_cannot_be_exported_is_one_line(words, says, checkpoint, capsys):
    assert export_main([word.format(checkpoint) for word in words]) == 1
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--onnx"], ["--onnx", "--torch", "--out", "x"]])
def test_one_form_and_a_folder_are_asked_for(words, capsys):
    with pytest.raises(SystemExit): export_main(words)
    assert capsys.readouterr().err.startswith("cssgan_export: ")


def test_without_a_model_or_a_library_it_is_said(tmp_path, monkeypatch, checkpoint, capsys):
    from cssgan.inference import apply
    monkeypatch.setattr(apply, "PRETRAINED", tmp_path / "none")
    assert export_main(["--torch", "--out", str(tmp_path / "a")]) == 1
    assert "comes without a trained model" in capsys.readouterr().err
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    assert export_main([str(checkpoint), "--onnx", "--out", str(tmp_path / "a")]) == 1
    assert 'pip install "cssgan[export]"' in capsys.readouterr().err and not (tmp_path / "a").exists()


# ---- MONAI bundles

def image_of(scan):
    "A scan as MONAI has one."
    from monai.data import MetaTensor
    return MetaTensor(torch.from_numpy(scan.voxels)[None], affine=torch.from_numpy(scan.affine))


def tilted(scan, angle=0.3):
    "The same voxels in a patient who lies askew, one axis turned about."
    turn = np.array([[np.cos(angle), -np.sin(angle), 0, 5], [np.sin(angle), np.cos(angle), 0, -9], [0, 0, 1, 3],
                     [0, 0, 0, 1]])
    return replace(scan, affine=turn @ scan.affine @ np.diag([-1.0, 1, 1, 1]), label=None)


@pytest.mark.parametrize("modality", HEART.names)
def test_the_presumed_centre_is_ours(modality):
    for scan in (phantom(4, modality, Grid((60, 56, 40), (4.0, 4.0, 4.0))), tilted(phantom(6, modality, GRID))):
        scan, task = replace(scan, label=None), scan.task
        extent = np.array(task.grid.shape) * task.grid.spacing
        found = steps.presumed_centre(image_of(scan), extent, task.centre.rule, task.centre.offset, scan.domain.body)
        assert np.allclose(found, grid_centre(scan), atol=1e-6)


def run_bundle(files, name, folder, scan, **words):
    "What MONAI makes of a scan, in its own process, without cssgan in reach."
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    write_volume(scan, folder / "scan.nii.gz")
    code = ("import sys; sys.modules['cssgan'] = None\nfrom monai.bundle import ConfigWorkflow\n"
            "w = ConfigWorkflow('configs/inference.json', 'configs/metadata.json', logging_file=False, "
            f"workflow_type='infer', scan='../scan.nii.gz', output_dir='../out', **{words!r})\n"
            "w.initialize()\nw.run()")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder / name, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return read_label(folder / "out/scan_seg.nii.gz")


@pytest.mark.parametrize("modality, centre, augmented", [
    ("MR", None, False), ("MR", None, True), ("CBCT", (11.0, -5.0, 8.0), True)])
def test_a_bundle_gives_our_labels(modality, centre, augmented, tmp_path):
    "Nothing is doubtful in a task without a known shape: ours looks as often as the bundle."
    pytest.importorskip("ignite")
    nets = Networks(width=4, patch_layers=1, classes=3, seed=2).eval()
    about, scan = about_of(nets, ODD) | {"config": {"augment": augmented}}, shapes(3, modality, ODD)
    scan = replace(scan, label=None)
    centre = tuple(grid_centre(scan)) if centre is None else centre
    how = getattr(nets, f"S_{ODD.side(modality)}"), scan, GRID, about["ranges"][modality]
    ours = segment_until_stable(*how, centre)
    nearer = look_closer(*how, ours)
    assert nearer is not ours
    if augmented: ours = nearer
    labels = labels_in_scan(ours.probabilities, ours.seen.affine, scan)
    found = run_bundle(bundle_files(nets, about), f"two_shapes_{modality}_segmentation", tmp_path, scan,
                       centre=[float(c) for c in centre])
    assert labels.any() and np.allclose(found.affine, scan.affine, atol=1e-4)
    assert (found.values != labels).mean() <= 1e-3


@shipped
@pytest.mark.parametrize("modality", HEART.names)
def test_the_shipped_model_as_a_bundle_run_as_its_readme_says_gives_our_labels(tmp_path, monkeypatch, modality):
    "In float32 to the voxel; in mixed precision, which the command takes where it pays, but for voxels at edges."
    pytest.importorskip("ignite")
    monkeypatch.chdir(tmp_path)
    write_volume(replace(patient(modality), label=None), "scan.nii.gz")
    assert export_main(["pretrained", "--bundle", "--out", "bundles"]) == 0
    assert segment_main(["scan.nii.gz", "--modality", modality, "--out", "mixed.nii.gz"]) == 0
    monkeypatch.setattr(fast, "has_fast_bfloat16", lambda device: False)
    assert segment_main(["scan.nii.gz", "--modality", modality, "--out", "full.nii.gz"]) == 0
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
               "--scan", "../../scan.nii.gz", "--output_dir", "../../eval"]
    done = subprocess.run(command, cwd=f"bundles/heart_{modality}_segmentation", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found, full, mixed = (read_label(name).values for name in ("eval/scan_seg.nii.gz", "full.nii.gz", "mixed.nii.gz"))
    assert set(range(6)) <= set(np.unique(full))
    assert (found != full).mean() <= 1e-5  # none where it was measured; another library may round one otherwise
    assert (found != mixed).mean() <= 3e-4  # 0.6 to 2.7 of ten thousand in three patients of each modality


def test_what_is_outside_and_what_is_seen_are_ours():
    from monai.data import MetaTensor
    from monai.transforms import ResampleToMatchd
    for scan in (phantom(4, "CT", GRID), tilted(phantom(5, "MRI", GRID)), shapes(3, "CBCT", ODD), shapes(4, "MR", ODD)):
        domain, image, centre = scan.domain, image_of(scan), grid_centre(replace(scan, label=None)) + (55, 3.3, -20)
        resample = ResampleToMatchd(("image", "inside"), "box", mode=(1, 0), padding_mode=("nearest", "grid-constant"),
                                    dtype=np.float64)
        known = {"knots": domain.knots} if domain.knots else {"window": domain.window} if domain.window else \
            {"percentiles": domain.percentiles}
        data = {"image": image, "scan": image, "box": steps.empty_box(GRID.shape, GRID.spacing, centre),
                "inside": MetaTensor(torch.ones(image.shape), affine=image.affine)}
        data = steps.Levelsd(nothing=domain.nothing, **known)(resample(data))
        ours = prepare_scan(scan, GRID, domain.ends or (0, 1), centre, GRID)
        assert np.abs(steps.as_array(data["image"]) - ours.voxels).max() < 1e-5, scan.modality


def test_a_bundle_says_what_monai_asks_for():
    nets = Networks(width=4, patch_layers=1, seed=0)
    files = bundle_files(nets, about_of(nets))
    said = json.loads(files["heart_MRI_segmentation/configs/metadata.json"])
    required = {"version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
                "description", "authors", "copyright", "network_data_format"}
    assert required <= said.keys()
    shape = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def"}
    given, made = said["network_data_format"]["inputs"]["image"], said["network_data_format"]["outputs"]["pred"]
    assert shape <= given.keys() and shape <= made.keys() and given["modality"] == "MR"
    assert made["channel_def"] == {str(k): region for k, region in enumerate(HEART.regions)}
    config = json.loads(files["heart_CT_segmentation/configs/inference.json"])
    assert {"bundle_root", "network_def", "inferer", "preprocessing", "postprocessing", "run"} <= config.keys()


def test_what_is_copied_into_a_bundle_needs_no_cssgan():
    for source in (network_source(), steps_source()):
        compile(source, "copied", "exec")
        assert not [line for line in source.splitlines() if "import" in line and "cssgan" in line]
        assert "AUTOGENERATED" not in source and not any(len(line) > 120 for line in source.splitlines())
    assert Path(steps.__file__).read_text(encoding="utf-8").count("cssgan") == 1 # its docstring
