"""How near the limit the joint step is:  python bench/limit.py [--sizes small paper] [--rounds 7]

The step's own convolutions, forward and backward, are recorded and replayed alone, side by side as in the step, in
turn with whole steps."""
import re
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from common import NAMES, fresh, in_turn, ms, options, percent, row, start_ours
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

GOAL = .75  # the convolutions' share of the step
GROUPS = {  # words → pattern of the operation's name; the first that fits
    "convolutions": r"convolution|conv3d|_slow_conv|thnn_conv",
    "layout copies and casts": r"copy_|_to_copy|aten::to$|contiguous|clone|convert|reorder|aten::empty|resize_",
    "ReLU, forward and backward": r"relu|threshold|clamp_min",
    "instance norm": r"batch_?norm|instance_norm|repeat",
    "max-pooling": r"max_pool",
    "concatenation, padding and slicing": r"aten::cat|pad|slice|narrow|chunk|split|select",
    "losses and tanh": r"cross_entropy|softmax|nll_loss|l1_loss|mse|square|pow|aten::abs|sgn|sign|aten::mean|tanh|"
                       r"aten::sum|aten::ne$|aten::div|aten::rsub|aten::sub",
    "sums of gradients": r"aten::add_?$|AccumulateGrad|aten::mul",
    "Adam": r"adam|_foreach",
    "kernels of the doubling": r"aten::mm$|aten::matmul|aten::bmm",
    "filling with zeros": r"aten::fill_|aten::zero",
    "Python, views and bookkeeping between them":
        r"^(Folded|Doubling|Concatenate)|autograd::|Backward\d*$|view|as_strided|permute|movedim|flatten|transpose|"
        r"unfold|expand|squeeze|detach|diagonal|alias|result_type",
}


def by_hand():
    "The counter against arithmetic: one convolution, one transposed, forward and backward, the input's gradient too."
    x = torch.randn(2, 3, 8, 10, 12, requires_grad=True)
    conv, up = torch.nn.Conv3d(3, 5, 3, stride=2, padding=1), torch.nn.ConvTranspose3d(3, 5, 4, stride=2, padding=1)
    outputs, inputs = 2 * 4 * 5 * 6, 2 * 8 * 10 * 12  # voxels over the batch
    for layer, one_way in ((conv, 2 * outputs * 5 * 3 * 27), (up, 2 * inputs * 5 * 3 * 64)):  # 2: multiply, add
        counted = flops(lambda: layer(x).sum().backward())
        assert counted == 3 * one_way, f"{layer}: {counted} counted, {3 * one_way} by hand"


class NoModules(nullcontext):
    "In place of the counter's own tracker of modules, which cannot follow `torch.autograd.grad`."
    parents = {"Global"}


def flops(action):
    "Floating-point operations of one call."
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter: action()
    return counter.get_total_flops()


class Convolutions(TorchDispatchMode):
    "Notes every convolution and every backward pass of one, with tensors as (shape, strides, type)."
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        def like(t): return Like(tuple(t.shape), t.stride(), t.dtype)
        if function in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            assert not kwargs
            self.calls.append((function, tree_map_only(torch.Tensor, like, args)))
        return function(*args, **(kwargs or {}))


class Like(tuple):
    "Shape, strides and type of a tensor."
    def __new__(cls, *facts): return super().__new__(cls, facts)


@contextmanager
def one_core():
    "Nothing side by side: what a thread counts or times is all there is."
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try: yield
    finally: torch.set_num_threads(cores)


def convolutions(action):
    "The convolutions of one step: for each turn those of its two directions, and whether these are computed at once."
    turns = []
    def noting(function, items, at_once, device):
        noted, found = [Convolutions() for _ in items], []
        for calls, item in zip(noted, items):
            with calls: found.append(function(item))
        turns.append(([direction.calls for direction in noted], at_once))
        return found
    with one_core(), patch("cssgan.fast.step.for_both", noting): action()
    return turns


def replay_turns(turns):
    "All turns' convolutions, at once or not as in the step, as a function."
    from cssgan.fast.directions import for_both
    ready = [([replay(calls) for calls in directions], at_once) for directions, at_once in turns]
    def again():
        for directions, at_once in ready: for_both(lambda direction: direction(), directions, at_once)
    return again


def replay(calls):
    "The same calls on random tensors of the same shapes, strides and types, as a function."
    tensors = {}
    def tensor(like, place):
        key = like, place
        if key not in tensors: tensors[key] = torch.empty_strided(like[0], like[1], dtype=like[2]).normal_()
        return tensors[key]
    ready = [(function, [tensor(a, i) if isinstance(a, Like) else a for i, a in enumerate(args)])
             for function, args in calls]
    def again():
        with torch.no_grad():
            for function, args in ready: function(*args)
    return again


def matrix_product(size):
    "A large matrix product in the step's precision, as a function, and its operations."
    from cssgan.fast.networks import has_fast_bfloat16
    dtype = torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return (lambda: a @ b), 2 * size**3


def profile(action, count):
    "Words → share of the time of a step, by the operations' own time."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(count): action()
    group = lambda name: next((words for words, pattern in GROUPS.items() if re.search(pattern, name, re.I)), "other")
    spent, others = {}, {}
    for event in found.key_averages():
        words = group(event.key)
        spent[words] = spent.get(words, 0) + event.self_cpu_time_total
        if words == "other": others[event.key] = event.self_cpu_time_total
    total = sum(spent.values())
    largest = sorted(others, key=others.get, reverse=True)[:5]
    shares = {words: t / total for words, t in sorted(spent.items(), key=lambda s: -s[1])}
    return shares, {name: others[name] / total for name in largest}


def measure(
    size,  # "toy", "small" or "paper"
    rounds=7,  # how many times each
    product=4096,  # side of the matrices
):  # rates in operations a second, shares
    "Everything about one size, in this process."
    from cssgan.training.run import step
    by_hand()
    run, pair = start_ours(size)
    action = lambda: step(run, "joint", pair)
    action()
    noted = convolutions(action)
    with patch("cssgan.fast.layers.in_cpu_autocast", lambda x: False):  # the zeros that fill registers are no work
        with one_core(): total = flops(action)
        needed = convolutions(action)
    alone, (matmul, matmul_flops) = replay_turns(noted), matrix_product(product)
    with one_core(): of_convolutions = flops(replay_turns(needed))
    time = in_turn({"step": action, "convolutions": alone, "product": matmul}, rounds)
    with one_core(): shares, others = profile(action, 3)
    operations = {"step": total, "convolutions": of_convolutions, "product": matmul_flops}
    return {"operations": total, "of_convolutions": of_convolutions,
            "calls": sum(len(calls) for directions, _ in noted for calls in directions),
            "ms": {k: 1000 * t for k, t in time.items()},
            "rate": {name: number / time[name] for name, number in operations.items()},
            "share": time["convolutions"] / time["step"], "profile": shares, "other": others}


def rows_of(size, found):
    "Lines about one size."
    giga = lambda rate: f"{rate / 1e9:,.0f}"
    rate, words = found["rate"], ", ".join(f"{w} {percent(s)}" for w, s in found["profile"].items() if s >= .005)
    of_step = f"{ms(found['ms']['convolutions'] / 1000)} of {ms(found['ms']['step'] / 1000)}"
    goal, met = (f"at least {percent(GOAL)}", found["share"] >= GOAL) if size != "toy" else ("", None)
    rates = ", ".join(giga(rate[name]) for name in ("step", "convolutions", "product"))
    return [row(f"Joint step, {NAMES[size]}, width 8: its convolutions alone take, of its time",
                f"{percent(found['share'])} ({of_step})", goal, met),
            row(f"Joint step, {NAMES[size]}: GFLOP; GFLOP/s of the step, of its convolutions alone, of a large matrix "
                "product", f"{found['operations'] / 1e9:,.1f}; {rates}"),
            row(f"Joint step, {NAMES[size]}: where one core's time goes (under the profiler)", words)]


def main(quick=False, sizes=("small", "paper"), rounds=7):
    if quick: detail = {"toy": fresh("limit.measure", size="toy", rounds=2, product=512)}
    else:
        rounds = {size: min(rounds, 5) if size == "paper" else rounds for size in sizes}
        detail = {size: fresh("limit.measure", size=size, rounds=n) for size, n in rounds.items()}
    return {"rows": [r for size, found in detail.items() for r in rows_of(size, found)], "detail": detail}


if __name__ == "__main__": main(**options(__doc__, sizes=["small", "paper"], rounds=7))
