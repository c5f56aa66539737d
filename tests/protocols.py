"Which study stands behind a record: as its notebook opens it, so that the digits of its protocol can be made again."
import json
from dataclasses import replace

from conftest import ROOT


def longer(study, times):
    "The same, with phases so many times as long."
    more = lambda p: replace(p, epochs=times * p.epochs, decay=times * p.decay)
    return replace(study, config=replace(study.config, phases=tuple(map(more, study.config.phases))))


def improved(row, folder):
    "By the cells of the notebook themselves."
    cells = json.loads((ROOT / "nbs/experiments/improvements.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {name: row[name] for name in ("data", "preset", "scarce", "augment")}
    names |= {"seed": 0, "shared": folder, "improvements": []}
    for wanted in ("from dataclasses", "IMPROVEMENTS =", "def study_with"):
        exec(next(cell for cell in code if wanted in cell), names)
    return names["study_with"](**names["IMPROVEMENTS"][row["improvement"]][0])


AVERAGES = {"keep": "last", "averaging": .995}  # what the figures test


def of_populations(row, folder):
    "Patients that are chosen, and no others."
    from cssgan.experiments.populations import population_cases
    from cssgan.experiments.studies import Study
    from cssgan.training.schedule import preset
    apart, config = {"CT": ["dilated"], "MRI": ["normal"]}, replace(preset(row["preset"]), **AVERAGES)
    config = replace(config, phases=tuple(replace(phase, patience=None) for phase in config.phases))
    return Study(population_cases(row["counts"], apart, apart), config, folder)


def study_of(notebook, row, folder):
    "Of a record with the parameters of its run; a seed says nothing of a protocol."
    from cssgan.data.splits import select
    from cssgan.experiments.studies import open_study
    if notebook == "improvements": return improved(row, folder)
    if notebook == "populations": return of_populations(row, folder)
    known, changes = notebook == "convergence", {}
    changes["augment"] = {"none": False, "": False, "all": True}.get(row["augment"], row["augment"])
    if known: changes["keep"] = "last"
    if notebook in ("fig7_real_fraction", "fig7_synthetic_fraction", "fig8_gap"): changes |= AVERAGES
    scarce = "labels" if known else row.get("scarce", "images")
    study = open_study(row["data"], row["preset"], 0, folder, scarce, **changes)
    if notebook == "fig7_synthetic_fraction": study = replace(study, pairs=len(select(study.cases, "MRI", "train")))
    return longer(study, row.get("longer", 1))
