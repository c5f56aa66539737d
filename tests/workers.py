"What the tests of several processes do in each of them."
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from tiny import AVERAGED, noise

from cssgan.fast import networks
from cssgan.fast import processes as parallel
from cssgan.training import run as training
from cssgan.training import saving
from cssgan.training.schedule import Phase
from cssgan.training.trainer import fit, train_worker

torch.set_num_threads(1)

JOINT = replace(AVERAGED, phases=(Phase("joint", 1),)) # in each process: one volume of each domain in a step


def pairs():
    "Three steps for two processes, with labels that are unequally unknown."
    return noise(6, 4, missing=0.8)


def alike(folder, batch_size):
    "A run in single precision, the same however its volumes are shared."
    with mock.patch.object(networks, "has_fast_bfloat16", lambda device: False):
        return fit(pairs(), replace(JOINT, batch_size=batch_size), folder, progress=False, save_every=0)


def follows(folder):
    "Three joint steps, with batches, pools and labels that are shared; what each process wrote, and what it shares."
    parallel.join()
    written, save = [], saving.save_checkpoint
    saving.save_checkpoint = lambda place, *rest: (written.append(str(place)), save(place, *rest))
    run = alike(folder / "run", 1)
    rank = parallel.rank()
    report = {
        "written": written,
        "processes": parallel.processes(),
        "gathered": parallel.gather(torch.full((1, 2), float(rank))).tolist(),
        "share": parallel.part_of_this_process(torch.arange(4)).tolist(),
        "agree": [parallel.any_process(rank == 1), parallel.any_process(False), parallel.any_process(True)],
        "first": parallel.from_first(lambda: f"rank {rank}"),
        "history": run.history,
        "phase": run.phase,
    }
    mean = [torch.tensor([float(rank), 4.0]), torch.tensor(float(rank))]
    parallel.average(mean)
    (folder / f"{rank}.json").write_text(json.dumps(report | {"mean": [m.tolist() for m in mean]}))


def stops(folder, after):
    "The second process is asked to stop after so many steps."
    parallel.join()
    step, steps = training.step, []
    def asked(*args):
        losses = step(*args)
        steps.append(1)
        if len(steps) == after and parallel.rank() == 1: os.kill(os.getpid(), 15)
        return losses
    training.step = asked
    train_worker(pairs(), JOINT, folder, None, None, False, False, 1e9)


def hears_late(folder):
    "The request to stop, passed on by who started the processes, comes when they have saved already."
    stops(folder, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def fails(rank, message, folder):
    "One process cannot go on; the other waits for it."
    parallel.join()
    step, steps = training.step, []
    def breaks(*args):
        steps.append(1)
        if len(steps) == 2 and parallel.rank() == rank:
            if message is None: os.kill(os.getpid(), 9)
            raise ValueError(message)
        return step(*args)
    training.step = breaks
    train_worker(pairs(), JOINT, folder, None, None, False, False, 1e9)


def sleeps(folder):
    "One process waits for the other, which never comes; neither listens to signals."
    parallel.join()
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(how, signal.SIG_IGN)
    Path(folder, f"{parallel.rank()}.here").touch()
    if parallel.rank() == 0: parallel.any_process(True)
    else: time.sleep(1e6)


if __name__ == "__main__": # for torchrun
    parallel.join()
    alike(sys.argv[1], 1)
    torch.distributed.destroy_process_group()
