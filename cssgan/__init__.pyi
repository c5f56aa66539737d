from .scans.volumes import Volume as Volume
from .scans.files import read_label as read_label, read_volume as read_volume, write_label as write_label, write_volume as write_volume
from .pictures import plot_curves as plot_curves, show_translation as show_translation, show_volume as show_volume, show_volumes as show_volumes
from .phantoms.scanners import phantom as phantom
from .data.cases import find_cases as find_cases, phantom_cases as phantom_cases
from .data.prepared import load_case as load_case
from .data.datasets import unpaired as unpaired
from .metrics import dice_scores as dice_scores, s_score as s_score
from .models import Networks as Networks
from .training.schedule import preset as preset
from .training.run import fit as fit
from .inference.apply import segment as segment, translate as translate
from .viewers.explorer import explore as explore
from .viewers.comparison import compare as compare
from .viewers.depth import view3d as view3d
from .viewers.monitor import Monitor as Monitor
