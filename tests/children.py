"""What the tests of safety do in processes of their own, so that these can be killed.

Imported once, by the server that forks them."""
import errno
import os
import resource
import signal
import stat
import time
from dataclasses import replace

import lightning_fabric  # noqa: F401 (here, and not in every child)
import monai.metrics  # noqa: F401
import torch
from tiny import SHORT, TINY, noise

from cssgan.data.datasets import unpaired
from cssgan.data.folders import from_folder
from cssgan.training import run as training
from cssgan.training import trainer
from cssgan.training.schedule import Phase
from cssgan.training.trainer import fit

torch.set_num_threads(1)
RUN = replace(SHORT, phases=(Phase("segmentors", 2), Phase("generators", 2), Phase("joint", 2, 2)))
STEPS = 24 # of 8 epochs with 3 pairs


def train(say, folder, trouble=None, config=RUN, save_every=0.0, data=None):
    "Begin a run or resume it, and tell how it ends."
    if trouble: trouble()
    step, first = training.step, []
    def telling(*args):
        if not first:
            first.append(time.monotonic())
            say.send("begun")
        return step(*args)
    training.step = telling
    try: fit(data() if data else noise(), config, folder, resume=True, progress=False, save_every=save_every)
    except BaseException as e: say.send((type(e).__name__, str(e)))
    else: say.send(("finished", time.monotonic() - first[0] if first else 0.0))


# ---- troubles; the child that has one ends with it, so that nothing needs to be put right again

def before_each(names, happens):
    "Call `happens(name, its arguments)` before each call of these functions of `os` on a file that is there."
    for name in names:
        def instead(*args, name=name, original=getattr(os, name), **how):
            there = stat.S_ISREG(os.fstat(args[0]).st_mode) if name == "fsync" else os.path.lexists(args[0])
            if there: happens(name, args)
            return original(*args, **how)
        setattr(os, name, instead)


def killed_in_writing(moment):
    """SIGKILL just before the moment-th time that a checkpoint's writing touches the disk.
    A file that is being written loses its end."""
    times = []
    def happens(name, args):
        times.append(name)
        if len(times) < moment: return
        if name == "fsync": os.truncate(args[0], os.fstat(args[0]).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    before_each(("fsync", "replace", "unlink"), happens)


def disk_is_full(moment):
    "From the moment-th file on, the disk has no room."
    times = []
    def happens(*_):
        times.append(1)
        if len(times) >= moment: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    before_each(["fsync"], happens)


def files_stay_small(checkpoints, largest):
    "After so many checkpoints no file can grow beyond `largest` bytes: the kernel refuses in the middle of a write."
    save_run, times = trainer.save_run, []
    def saves(*args, **how):
        times.append(1)
        if len(times) > checkpoints: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        save_run(*args, **how)
    trainer.save_run = saves


def slow(seconds):
    "Every step takes so long."
    step = training.step
    def slowly(*args):
        losses = step(*args)
        time.sleep(seconds)
        return losses
    training.step = slowly


def scans(folder, cache): return unpaired(from_folder(folder), TINY, cache)
