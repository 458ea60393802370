"""Loss curves of the precisions, equal bits, and what they cost."""

import statistics

import torch
from gpu_data import make_trainer, settled
from gpu_timing import show, spread

from alexnet_nb.engine.checkpoint import (
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

PRECISIONS = ("float32", "bfloat16", "float16")


def curve(bench, precision, steps, batch):
    """The loss of every step, from the same weights, images and masks."""
    with settled(precision):
        trainer = make_trainer(bench, "paper", batch, precision)
        losses = trainer.steps(0, steps)
    bench.add("loss", precision, losses)
    return losses


def weights_after(bench, steps, batch, resume_at=None):
    """The weights after so many steps; with `resume_at`, from a checkpoint there."""
    with settled("bfloat16"):
        trainer = make_trainer(bench, "paper", batch, "bfloat16")
        first = 0
        if resume_at:
            trainer.steps(0, resume_at)
            save_checkpoint(trainer.trainer)
            trainer = make_trainer(bench, "paper", batch, "bfloat16")
            load_checkpoint(trainer.trainer, last_checkpoint(trainer.trainer))
            first = resume_at
        trainer.steps(first, steps)
        state = trainer.trainer.model.state_dict()
        return {name: tensor.clone() for name, tensor in state.items()}


def same_bits(bench, batch):
    """Two runs, and a resumed one, compared bit by bit."""
    steps = bench.size(30, 3)
    first = weights_after(bench, steps, batch)
    for name, resume_at in (("again", None), ("resumed", steps // 2)):
        other = weights_after(bench, steps, batch, resume_at)
        equal = all(torch.equal(first[key], other[key]) for key in first)
        bench.add("same bits", name, equal)
    show(
        "Same bits", ["run", "equal"], list(bench.results["parts"]["same bits"].items())
    )


def cost(bench, batch):
    """Images a second of the step with and without torch's deterministic algorithms."""
    for name, deterministic in (("deterministic", True), ("not", False)):
        with settled("bfloat16", deterministic):
            trainer = make_trainer(bench, "paper", batch, "bfloat16")
            stored = trainer.stored_batch()
            seconds = bench.time(lambda t=trainer, s=stored: t.take_step(s))
            trainer.trainer.read_metrics()
        bench.add("cost of determinism", name, [batch / s for s in seconds])
    rates = bench.results["parts"]["cost of determinism"]
    rows = [(name, spread(values)) for name, values in rates.items()]
    show("Cost of determinism", ["algorithms", "images a second"], rows)


def run(bench):
    batch = bench.size(128, 8)
    steps = bench.size(500, 6)
    bench.add("loss", "images", bench.data or "generated")
    for precision in PRECISIONS:
        bench.guard(f"loss {precision}", curve, precision, steps, batch)
    bench.guard("same bits", same_bits, batch)
    bench.guard("cost of determinism", cost, batch)
    rows = []
    for precision in PRECISIONS:
        losses = bench.results["parts"]["loss"].get(precision, [])
        if losses:
            last = statistics.mean(losses[-50:])
            rows.append((precision, f"{losses[0]:.3f}", f"{last:.3f}", len(losses)))
    show("Loss", ["precision", "first step", "mean of the last 50", "steps"], rows)
