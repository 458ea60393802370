"""Train small nets of the authors' earlier code on CIFAR-10.

Each until its error falls under a threshold.

    python cifar.py FOLDER RESULTS [minutes]

FOLDER: an image folder of CIFAR-10 (train/CLASS/…, val/CLASS/…), or cifar10. RESULTS: a
folder of results with its protocol.md; jobs whose rows are in RESULTS/metrics.jsonl are
not run again, and none is begun after so many minutes.
"""

import hashlib
import json
import math
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import intervals
import torch
from torch.nn import functional as F

from alexnet_nb.base.rng import make_generator
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.launch import has_native_bfloat16
from alexnet_nb.relu import CifarNet
from alexnet_nb.training import train_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AT_ONCE = dict(cuda=8, cpu=2)
PROCESSES = AT_ONCE[DEVICE]
FAST = "bfloat16" if DEVICE == "cuda" or has_native_bfloat16() else "float32"
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
    False  # float32 means float32
)
torch.backends.cudnn.benchmark = True

GAINS = {"relu": 2**0.5, "tanh": 5 / 3}


def three_convolutions(activation, start, seed, pixels):
    """The net of layers-19pct.cfg: 89,578 parameters.

    `start`: '2012', or 'gain', calibrated for inputs with deviation `pixels`.
    """
    net = CifarNet(activation, seed=seed)
    for p in net.parameters():
        if start == "gain" and p.dim() > 1:
            std, fan_in = (
                (1e-4, 75 * pixels**2)
                if p is net.features[0].weight
                else (0.01, p[0].numel())
            )
            p.data.mul_(GAINS[activation] / math.sqrt(fan_in) / std)
    return net


@cache
def pixels(folder, split="train"):
    """Return images less the mean image of the training split, and labels.

    Pixels are on the scale 0 to 255.
    """
    data = load_dataset(folder, 32)
    x, mean = (
        torch.tensor(part.images).float() for part in (getattr(data, split), data.train)
    )
    return (x - mean.mean(0)).contiguous(memory_format=torch.channels_last).to(
        DEVICE
    ), torch.tensor(getattr(data, split).labels, device=DEVICE)


def autocast(precision):
    return torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bfloat16")


def autocast_loss(precision, model, images, labels, masks=None):
    """Run the network in a precision; return the loss, in float32, and the logits."""
    with autocast(precision):
        logits = model(images) if masks is None else model(images, masks)
    return F.cross_entropy(logits.float(), labels), logits


@torch.no_grad()
def outputs(net, x, precision="bfloat16"):
    """Logits with the weights held still and dropout off, in float32."""
    training = net.training
    net.eval()
    with autocast(precision):
        logits = torch.cat([net(part).float() for part in x.split(1000)])
    net.train(training)
    return logits


def error(logits, y):
    return (logits.argmax(1) != y).sum().item() / len(y)


def steps(
    net,
    x,
    y,
    lr,
    seed,
    epochs,
    decay=None,
    drop=None,
    transform=lambda x, epoch, places: x,
    precision="bfloat16",
    batch=128,
):
    """Train; four times an epoch, yield the epoch and the loss of the last batch.

    The epoch is fractional. `decay`: parameter name → weight decay; `drop`: the epoch
    at which the rate is divided by ten; `transform`: makes what the net sees of a
    batch.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)  # dropout
    groups = [
        dict(
            params=[p],
            lr=lr if p.dim() > 1 else 2 * lr,
            weight_decay=(decay or {}).get(name, 0.0),
        )
        for name, p in net.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, fused=True)
    compute_loss = partial(autocast_loss, precision)
    updates = math.ceil(len(x) / batch)
    marks = {round(updates * q / 4) for q in range(1, 5)}
    for epoch in range(epochs):
        if epoch == drop:
            for group in optimizer.param_groups:
                group["lr"] /= 10
        order = torch.randperm(len(x), generator=make_generator(seed, epoch)).to(DEVICE)
        for i, places in enumerate(order.split(batch), 1):
            images = transform(x[places], epoch, places)
            loss, _ = train_step(net, optimizer, images, y[places], compute_loss)
            if i in marks:
                yield round(epoch + i / updates, 4), loss.item()


def train(folder, activation, start, lr, seed, epochs, under=0.0, precision="bfloat16"):
    """Train until the error is under a threshold twice, or chance for want of numbers.

    Return rows (epoch, error on 10,000 training images).
    """
    x, y = pixels(folder)
    net, rows = (
        three_convolutions(activation, start, seed, x.std().item()).to(
            DEVICE, memory_format=torch.channels_last
        ),
        [],
    )
    for epoch, loss in steps(net, x, y, lr, seed, epochs, precision=precision):
        rows.append(
            (
                epoch,
                error(outputs(net, x[:10_000], precision), y[:10_000])
                if math.isfinite(loss)
                else 0.9,
            )
        )
        if not math.isfinite(loss) or sum(e < under for _, e in rows[-2:]) == 2:
            break
    return dict(rows=rows)


def crossing(rows, under=0.25, start=0.9):
    """Return the fractional epoch at which an error falls under a threshold.

    It lies between two measurements, of which the first, `start`, is at epoch 0. None:
    the error did not fall that far.
    """
    before = (0.0, start)
    for epoch, error in rows:
        if error < under:
            return before[0] + (epoch - before[0]) * (before[1] - under) / (
                before[1] - error
            )
        before = epoch, error


def run(jobs, folder, results, minutes=math.inf, work=None):
    """Run the jobs that are not in the results yet, some at a time.

    A job is a dict of arguments of `work`. What a job gives is appended as it ends.
    Return False where the minutes are over before all have begun.
    """
    begin, path = time.monotonic(), results / "metrics.jsonl"
    done = [line["job"] for line in lines(results)] if path.exists() else []
    waiting = [job for job in jobs if job not in done]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        running = {}
        while waiting or running:
            while (
                waiting
                and len(running) < PROCESSES
                and time.monotonic() - begin < 60 * minutes
            ):
                job = waiting.pop(0)
                running[pool.submit(work or train, folder, **job)] = (
                    job,
                    time.monotonic(),
                )
            if not running:
                return False
            ended = next(as_completed(running))
            job, since = running.pop(ended)
            row = (
                dict(job=job)
                | ended.result()
                | dict(device=DEVICE, seconds=round(time.monotonic() - since, 1))
            )
            with open(path, "a") as f:
                f.write(json.dumps(row) + "\n")
            print(
                f"{len(waiting)} waiting;", job, f"{row['seconds']:.0f} s", flush=True
            )
    return True


def record(results, command):
    """Write env.json: the command.

    The hash of the protocol, and those it had until it was amended; the machine, and
    those of earlier runs.
    """
    before = (
        json.loads((results / "env.json").read_text())
        if (results / "env.json").exists()
        else {}
    )
    protocol, amended, earlier = (
        hashlib.sha256((results / "protocol.md").read_bytes()).hexdigest(),
        before.pop("amended", []),
        before.pop("earlier", []),
    )
    machine = dict(
        python=platform.python_version(),
        torch=torch.__version__,
        system=f"{platform.system()} {platform.machine()}",
        processes=PROCESSES,
        threads=1,
    )
    if DEVICE == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    then = {k: v for k, v in before.items() if k not in ("command", "protocol")}
    if before.get("protocol", protocol) != protocol:
        amended.append(before["protocol"])
    if before and then != machine:
        earlier.append(then)
    more = {k: v for k, v in dict(amended=amended, earlier=earlier).items() if v}
    (results / "env.json").write_text(
        json.dumps(dict(command=command, protocol=protocol) | machine | more, indent=1)
        + "\n"
    )


def lines(results):
    """The runs of an experiment: job, rows, seconds."""
    return [
        json.loads(line)
        for line in (results / "metrics.jsonl").read_text().splitlines()
    ]


def cost(results):
    """Count runs, the core-hours of those on a processor, and the minutes of a GPU.

    The runs on a GPU shared it.
    """
    rows = lines(results)
    hours = {
        d: sum(r["seconds"] for r in rows if r.get("device", "cpu") == d) / 3600
        for d in AT_ONCE
    }
    gpu = (
        f"{60 * hours['cuda'] / AT_ONCE['cuda']:.1f} minutes of a GPU and "
        if hours["cuda"]
        else ""
    )
    return f"{len(rows)} runs, {gpu}{hours['cpu']:.1f} core-hours"


def read(results):
    """(job, rows) of every run."""
    return [(line["job"], line["rows"]) for line in lines(results)]


RATES = (1e-05, 3e-05, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
GRID = {
    ("relu", "2012"): (0.001, 0.003, 0.01),
    ("tanh", "2012"): (0.003, 0.01, 0.03, 0.1),
    ("relu", "gain"): (0.0003, 0.001, 0.003),
    ("tanh", "gain"): (0.003, 0.01, 0.03),
}


def sweep(grid):
    return [
        dict(activation=a, start=s, lr=lr, seed=seed, epochs=3)
        for (a, s), rates in grid.items()
        for lr in rates
        for seed in (100, 101)
    ]


def choose(grid, jobs, best, run):
    """Run the jobs of a grid, arm → rates, and return the best rate of every arm.

    The grid is widened until every best rate lies inside. None where `run` did not come
    to its end.
    """
    wider = grid
    while wider:
        if not run(jobs(grid)):
            return None
        rates, wider = best(), {}
        for arm, lr in rates.items():
            beyond = {grid[arm][0]: -1, grid[arm][-1]: 1}.get(lr)
            if beyond:
                wider[arm] = tuple(
                    sorted((*grid[arm], RATES[RATES.index(lr) + beyond]))
                )
        grid = grid | wider
    return rates


def best(results):
    """Return the best rate of every arm after the sweep's three epochs.

    It has the lowest error, mean of two seeds; a diverged run counts as 0.9.
    """
    final = {}
    for job, rows in read(results):
        if job["epochs"] == 3 and job["seed"] >= 100:
            final.setdefault((job["activation"], job["start"]), {}).setdefault(
                job["lr"], []
            ).append(rows[-1][1])
    return {
        arm: min(rates, key=lambda lr: sum(rates[lr]) / len(rates[lr]))
        for arm, rates in final.items()
    }


def epochs(results, activation, start, cap=60.0):
    """Epochs to 25 % of an arm's runs.

    A run that did not get there counts as the cap.
    """
    return [
        crossing(rows) or cap
        for job, rows in read(results)
        if (job["activation"], job["start"], job["epochs"]) == (activation, start, cap)
    ]


def summarize(results):
    """Geometric means of the arms, and the ratios between them.

    With Welch's interval, and with the bootstrap that the protocol names.
    """
    arms = {
        (a, s): epochs(results, a, s)
        for a in ("relu", "tanh")
        for s in ("2012", "gain")
    }
    means = [
        intervals.row(
            f"{a}, {s}: epochs to 25 %",
            *map(math.exp, intervals.mean([math.log(e) for e in n])),
            str(len(n)),
        )
        for (a, s), n in arms.items()
    ]
    pairs = [(("tanh", s), ("relu", s)) for s in ("2012", "gain")] + [
        ((a, "gain"), (a, "2012")) for a in ("relu", "tanh")
    ]
    ratios = []
    for interval, words in (
        (intervals.ratio, ""),
        (intervals.bootstrap_ratio, ", bootstrap"),
    ):
        for a, b in pairs:
            what = f"{', '.join(a)} over {', '.join(b)}{words}"
            ratios.append(
                intervals.row(
                    what, *interval(arms[a], arms[b]), f"{len(arms[a])}, {len(arms[b])}"
                )
            )
    return means + ratios


def figure1(folder, results, minutes):
    """All of Figure 1.

    Parity of the precisions, the sweep, then six seeds an arm at its best rate.
    """
    record(results, "python nbs/evidence/experiments/cifar.py cifar10 results/figure1")
    begin = time.monotonic()

    def go(jobs):
        return run(jobs, folder, results, minutes - (time.monotonic() - begin) / 60)

    parity = [
        dict(
            activation="relu", start="2012", lr=0.003, seed=seed, epochs=2, precision=p
        )
        for seed in (200, 201)
        for p in ("float32", "bfloat16")
    ]
    rates = choose(GRID, lambda grid: parity + sweep(grid), lambda: best(results), go)
    main = [
        dict(activation=a, start=s, lr=rates[a, s], seed=seed, epochs=60, under=0.25)
        for a, s in rates or ()
        for seed in range(6)
    ]
    if main and go(main):
        intervals.write(results / "summary.tsv", summarize(results))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    figure1(sys.argv[1], Path(sys.argv[2]), float((sys.argv[3:] or ["inf"])[0]))
