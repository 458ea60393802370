"""Whole runs of the trainer on a GPU: their rate, their start, and their end."""

import statistics
import threading
import time
from pathlib import Path

from gpu_data import config, dataset_path, make_trainer, metrics_rows, settled
from gpu_timing import show

from alexnet_nb.data.packed import open_packed
from alexnet_nb.engine.launch import train
from alexnet_nb.evaluation import evaluate

IMAGENET, EPOCHS = 1_281_167, 90
EPOCHS_OF_A_RUN = 60


def run_to_the_end(bench, name, batch, epochs, compiled=None, end=True):
    """Train a run, and note its start, its rate, and the time to result.json."""
    settings = config(
        bench,
        recipe="source2012",
        epochs=epochs,
        batch_size=batch,
        precision="bfloat16",
        compile=None if bench.tiny else compiled,
        out_dir=str(bench.scratch / name.replace(" ", "-")),
    )
    watch = FirstLine(settings.out_dir)
    begin = time.perf_counter()
    folder = train(settings)
    trained = time.perf_counter() - begin
    if end:
        evaluate(folder, open_packed(settings.data), bench.device)
    whole = time.perf_counter() - begin
    rows = [row for row in metrics_rows(folder) if row["split"] == "train"]
    result = dict(batch=batch, epochs=epochs, compiled=compiled)
    result |= dict(train_seconds=trained, seconds=whole if end else None)
    start = watch.seconds() - rows[0]["seconds"]  # the line is written after its steps
    result |= rates_of(rows) | dict(seconds_to_first_step=start)
    bench.add("runs", name, result)


class FirstLine:
    """Notes when the first line of a run's metrics has been written."""

    def __init__(self, folder):
        self.path = Path(folder) / "metrics.jsonl"
        self.begin = time.perf_counter()
        self.found = None
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        while not self.path.exists() or not self.path.stat().st_size:
            time.sleep(0.05)
        self.found = time.perf_counter()

    def seconds(self):
        """Seconds from the start of the run to that line."""
        self.thread.join(10)
        return self.found - self.begin


def rates_of(rows):
    """Images a second of each epoch but the first, and the share spent waiting."""
    epochs = {}
    for row in rows:
        epochs.setdefault(row["epoch"], []).append(row)
    later = [epochs[e] for e in sorted(epochs)[1:]] or list(epochs.values())
    rates, waiting = [], []
    for lines in later:
        seconds = sum(row["seconds"] for row in lines)
        rates.append(sum(row["images"] for row in lines) / max(seconds, 1e-9))
        waiting.append(sum(row["data_seconds"] for row in lines) / max(seconds, 1e-9))
    return dict(images_per_second=rates, waiting=statistics.median(waiting))


def bare_step(bench, batch):
    """Images a second of the trainer's step alone, in the same process of the bench."""
    with settled("bfloat16"):
        trainer = make_trainer(bench, "source2012", batch, "bfloat16")
        stored, taken = trainer.stored_batch(), 0

        def step():
            nonlocal taken
            trainer.take_step(stored)
            taken += 1
            if taken % 20 == 0:
                trainer.trainer.read_metrics()

        seconds = bench.time(step)
    bench.add("bare step", str(batch), [batch / s for s in seconds])


def headline(bench):
    """Minutes of 90 epochs of ImageNet at each measured rate, and the formula."""
    rows = []
    for name, run in bench.results["parts"].get("runs", {}).items():
        rate = statistics.median(run["images_per_second"])
        minutes = EPOCHS * IMAGENET / rate / 60
        steps = len(run["images_per_second"])
        bench.add("headline", name, dict(rate=rate, minutes=minutes, epochs=steps))
        rows.append((name, f"{rate:,.0f}", f"{minutes:,.0f}"))
    columns = ["run", "images a second", "minutes for 90 × 1,281,167 images"]
    show("Headline: dollars = minutes / 60 × price of an hour", columns, rows)


def run(bench):
    dataset_path(bench)  # packed before any run's clock is started
    large, small = bench.size((1024, 128), (16, 8))
    epochs = bench.size(EPOCHS_OF_A_RUN, 2)
    if not bench.tiny and bench.left() < 100:
        epochs = 20  # scaled down where time is short, and the record says so
    bench.guard("bare step", bare_step, large)
    bench.guard("bare step", bare_step, small)
    name = f"{epochs} epochs, batch {small}"
    bench.guard(name, run_to_the_end, name, small, epochs)
    fewer = bench.size(20, 2)
    name = f"{fewer} epochs, batch {large}"
    bench.guard(name, run_to_the_end, name, large, fewer, False, False)
    name = f"{fewer} epochs, batch {large}, compiled"
    bench.guard(name, run_to_the_end, name, large, fewer, True, False)
    rows = []
    for name, r in bench.results["parts"].get("runs", {}).items():
        bare = bench.results["parts"].get("bare step", {}).get(str(r["batch"]))
        rate = statistics.median(r["images_per_second"])
        comparable = bare and not r["compiled"]  # the bare step is not compiled
        share = f"{rate / statistics.median(bare):.2f}" if comparable else ""
        start, end = r["seconds_to_first_step"], r["seconds"]
        cells = (f"{rate:,.0f}", share, f"{r['waiting']:.0%}", f"{start:.1f}")
        rows.append((name, *cells, f"{end:.0f}" if end else ""))
    columns = ["run", "images a second", "of the bare step", "waiting for data"]
    show("Runs", [*columns, "s to the first step", "s to result.json"], rows)
    headline(bench)
