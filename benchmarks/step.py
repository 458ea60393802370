"""Time the training step of AlexNets: forward pass, backward pass, update.

They take turns. Writes results/benchmarks/step-DEVICE.{json,md}.

    python benchmarks/step.py [cpu | cuda] [pictures in a batch …]
"""

import statistics
import sys

import torch
import torchvision
from timing import in_turns, save, spread, start
from torch import nn
from torch.nn import functional as F

from alexnet_nb.base.table import MarkdownTable
from alexnet_nb.learning import make_optimizer
from alexnet_nb.lrn import LRN
from alexnet_nb.model import AlexNet, layer_specs
from alexnet_nb.recipes import no_lrn, paper, source2012
from alexnet_nb.recipes import torchvision as theirs
from alexnet_nb.training import train_step


def naive():
    """AlexNet as it is usually written.

    Grouped convolutions, torch's normalization over all kernel maps, dropout layers.
    """

    def norm():
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    return nn.Sequential(
        nn.ZeroPad2d((0, 3, 0, 3)),
        nn.Conv2d(3, 96, 11, 4),
        nn.ReLU(),
        norm(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(),
        norm(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(9216, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 1000),
    )


def torchs(net, **options):
    return torch.optim.SGD(
        net.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4, **options
    )


def compiled_norms(net):
    for module in net.modules():
        if isinstance(module, LRN):
            module.compile(dynamic=False)
    return net


best = dict(memory_format=torch.channels_last)


def ours(recipe):
    return lambda: AlexNet(recipe)


def whole(net):
    return torch.compile(net, dynamic=False)


# name → (makes the net, how its optimizer is made, what is done to the net)
NETS = {
    "torchvision's, the ordinary way": (
        torchvision.models.alexnet,
        torchs,
        lambda net: net,
    ),
    "torchvision's, the best way": (
        torchvision.models.alexnet,
        lambda net: torchs(net, fused=True),
        lambda net: net.to(**best),
    ),
    "naive AlexNet": (naive, torchs, lambda net: net),
    "ours, paper": (
        ours(paper),
        lambda net: make_optimizer(net, paper),
        lambda net: net,
    ),
    "ours, paper, LRN compiled": (
        ours(paper),
        lambda net: make_optimizer(net, paper),
        compiled_norms,
    ),
    "ours, paper, compiled": (
        ours(paper),
        lambda net: make_optimizer(net, paper),
        whole,
    ),
    "ours, paper without LRN": (
        ours(no_lrn),
        lambda net: make_optimizer(net, paper),
        lambda net: net,
    ),
    "ours, source2012": (
        ours(source2012),
        lambda net: make_optimizer(net, source2012),
        lambda net: net,
    ),
    "ours, source2012, compiled": (
        ours(source2012),
        lambda net: make_optimizer(net, source2012),
        whole,
    ),
}
PRECISIONS = {
    "float32": (False, False),
    "tf32": (False, True),
    "bfloat16": (True, False),
}  # autocast, tf32


def stepper(name, device, batch, autocast):
    """The net's training step, and its optimizer."""
    make, optimizer, prepare = NETS[name]
    net = make().to(device).train()
    optimizer, run = optimizer(net), prepare(net)
    x, y = (
        torch.randn(batch, 3, 224, 224, device=device) * 60,
        torch.randint(1000, (batch,), device=device),
    )
    if "best" in name:
        x = x.to(**best)

    def compute_loss(model, images, labels):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels), logits

    def step():
        train_step(run, optimizer, x, y, compute_loss)

    return step, optimizer


def operations(name):
    """Of one picture, forward and backward, in the layers alone.

    Two a multiply-add, and conv1 needs no gradient of its input.
    """
    layers = layer_specs(theirs if name.startswith("torchvision") else paper)
    return 2 * (
        3 * sum(layer.multiply_adds for layer in layers) - layers[0].multiply_adds
    )


def dropout(device, batch, autocast):
    """Both dropout layers of the paper, forward and backward."""
    x = torch.randn(
        batch,
        4096,
        device=device,
        dtype=torch.bfloat16 if autocast else torch.float32,
        requires_grad=True,
    )

    def step():
        for _ in range(2):
            torch.autograd.grad(x * torch.empty_like(x).bernoulli_(0.5), x, x.detach())

    return step


def measure(device, batch, precision):
    """Time every net's step, a large matrix product and the parts, all in turn.

    Return the seconds.
    """
    autocast, tf32 = PRECISIONS[precision]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch._dynamo.reset()
    made = {name: stepper(name, device, batch, autocast) for name in NETS}
    steps, update = (
        {name: step for name, (step, _) in made.items()},
        made["ours, paper"][1].step,
    )
    size = 4096 if device == "cpu" else 8192
    a = torch.randn(
        size, size, device=device, dtype=torch.bfloat16 if autocast else torch.float32
    )
    parts = {
        "matrix product": lambda: a @ a,
        "update": update,
        "dropout": dropout(device, batch, autocast),
    }
    seconds = in_turns(
        steps | parts,
        repeats=1 if device == "cpu" else 20,
        done=torch.cuda.synchronize if device == "cuda" else lambda: None,
    )
    return dict(
        batch=batch,
        precision=precision,
        flops={n: batch * operations(n) for n in NETS}
        | {"matrix product": 2 * size**3},
        seconds=seconds,
    )


def table(results):
    rows, notes = (
        [],
        [
            f"The layers of each network take {operations('paper') / 1e9:.2f} GFLOP an"
            f" image, torchvision's {operations('torchvision') / 1e9:.2f}."
        ],
    )
    best_way = "torchvision's, the best way"
    for r in results:
        median = {name: statistics.median(s) for name, s in r["seconds"].items()}
        rate = {name: r["flops"][name] / median[name] / 1e9 for name in r["flops"]}
        for name in NETS:
            pairs = zip(r["seconds"][name], r["seconds"][best_way], strict=True)
            against = [best / own for own, best in pairs]
            rows.append(
                (
                    f"{r['precision']}, {r['batch']}",
                    name,
                    spread([r["batch"] / s for s in r["seconds"][name]]),
                    f"{statistics.median(against):.2f}",
                    f"{rate[name] / rate['matrix product']:.0%}",
                )
            )
        lrn = median["ours, paper"] - median["ours, paper without LRN"]
        share = (lrn + median["dropout"] + median["update"]) / median["ours, paper"]
        notes.append(
            f"{r['precision']}, batch {r['batch']}: a matrix product of"
            f" {rate['matrix product']:,.0f} GFLOP/s; LRN, dropout and the change of"
            " the weights take "
            f"{share:.1%} of the paper's step ({1e3 * lrn:.0f},"
            f" {1e3 * median['dropout']:.0f} and {1e3 * median['update']:.0f} of"
            f" {1e3 * median['ours, paper']:.0f} ms)."
        )
    return MarkdownTable(
        [
            "precision, batch",
            "network",
            "images a second",
            "torchvision's best = 1",
            "of a matrix product's speed",
        ],
        rows,
        "\n\n".join(notes),
    )


if __name__ == "__main__":
    start()
    device, *batches = sys.argv[1:] or ["cpu"]
    kinds = [p for p in PRECISIONS if p != "tf32" or device == "cuda"]
    results = [measure(device, int(b), p) for b in batches or ["32"] for p in kinds]
    save(f"step-{device}", dict(rounds=results), table(results))
