"""A training step in pieces is the step of the whole batch, with less memory."""

import pytest
import torch

from alexnet_nb.augmentation import sample_augment_params
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.config import Config, parse_parameters, resolve
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.run_dir import open_run, validate
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.learning import learning_rates
from alexnet_nb.training import piece_rows, train_step
from helpers.images import noise_images
from helpers.runs import metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Parameters of a run with batches of eight and a short one of six images."""
    folder = tmp_path_factory.mktemp("asked")
    settings = dict(width_mult=1 / 16, image_size=48, crop_size=40, batch_size=8)
    settings |= dict(data=str(noise_images(folder / "in")), precision="float64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_NB_CACHE", str(folder / "cache"))
        (folder / "cache").mkdir()
        yield settings | dict(epochs=2)


def make(folder, settings):
    config = validate(Config(out_dir=str(folder), **settings))
    run_dir = open_run(config, plan_placement(1, num_devices=0))
    run_dir.close()
    data = load_dataset(config.data, 48, val_share=config.val_share)
    return Trainer(folder, resolve(config), data, None)


def steps(trainer, count):
    """Take training steps; return their metrics, and the weights after them."""
    trainer.set_rates(learning_rates(trainer.recipe, 0))
    transform, seed = trainer.transform, trainer.config.seed
    params = sample_augment_params(
        len(trainer.data.train), transform.max_offset, trainer.recipe, seed, 0
    )
    found = []
    for i in range(count):
        batch = trainer.load_batch(None, params, i)
        found.append(trainer.train_step(*trainer.to_network_input(batch, True)))
    return torch.stack(found), trainer.model.state_dict()


@pytest.mark.parametrize("recipe", ["paper", "source2012", "caffe"])
@pytest.mark.parametrize("pieces", [2, 3, 8])
def test_steps_in_pieces_are_those_of_the_whole_batch(tmp_path, asked, recipe, pieces):
    """In float64, with dropout, crops and colors; the third batch is short."""
    settings = asked | dict(recipe=recipe)
    whole = steps(make(tmp_path / "whole", settings), 3)
    settings |= dict(grad_accum_steps=pieces)
    added = steps(make(tmp_path / "pieces", settings), 3)
    assert torch.allclose(added[0], whole[0], rtol=1e-10, atol=0)
    for name, expected in whole[1].items():
        assert torch.allclose(added[1][name], expected, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("float32", 1e-5), ("bfloat16", 0.05), ("float16", 0.01)],
)
def test_every_precision_adds_pieces(tmp_path, asked, precision, tolerance):
    settings = asked | dict(precision=precision)
    whole = steps(make(tmp_path / "whole", settings), 2)
    trainer = make(tmp_path / "pieces", settings | dict(grad_accum_steps=4))
    added = steps(trainer, 2)
    assert torch.allclose(added[0][:, 0], whole[0][:, 0], rtol=tolerance)
    before = trainer.make_model().state_dict()
    for name, expected in whole[1].items():
        moved, expected = added[1][name] - before[name], expected - before[name]
        difference = (moved - expected).norm() / expected.norm().clamp(min=1e-12)
        assert difference < 10 * tolerance, name


def test_the_network_sees_one_piece_at_a_time(tmp_path, asked):
    """In training and in validation; that is what saves the memory."""
    settings = asked | dict(grad_accum_steps=3, val_share=0.25)
    trainer = make(tmp_path / "run", settings)
    sizes = []
    trainer.model.conv1.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(output))
    )
    run_training(trainer)
    # batches of 8, 8 and 2 images, and six for validation
    assert sizes == 2 * [2, 3, 3, 2, 3, 3, 1, 1, 3, 3]


def test_a_run_in_pieces_is_the_run(tmp_path, asked):
    """Metrics on file, of training and validation, epoch by epoch."""
    for pieces in (1, 4):
        settings = asked | dict(grad_accum_steps=pieces)
        run_training(make(tmp_path / str(pieces), settings))
    whole, added = metrics(tmp_path / "1"), metrics(tmp_path / "4")
    assert [row["step"] for row in added] == [row["step"] for row in whole]
    for row, expected in zip(added, whole, strict=True):
        for name in ("loss", "top1", "top5", "lr"):
            assert row[name] == pytest.approx(expected[name], rel=1e-9)


def test_pieces_cover_a_batch_once():
    for n in range(1, 12):
        for pieces in range(1, 15):
            parts = piece_rows(n, pieces)
            assert [i for rows in parts for i in range(n)[rows]] == list(range(n))
            sizes = [rows.stop - rows.start for rows in parts]
            assert len(parts) == min(n, pieces)
            assert max(sizes) - min(sizes) <= 1


def test_gradients_are_averaged_after_the_last_piece():
    """As DDP does: a step exchanges its gradients once, whatever its pieces."""
    events = []

    class Averaging(torch.nn.Linear):
        def no_sync(self):
            events.append("without")
            return torch.autograd.set_grad_enabled(True)

        def forward(self, x):
            events.append("forward")
            return super().forward(x)

    def loss(model, images, labels, rows):
        logits = model(images)
        return torch.nn.functional.cross_entropy(logits, labels), logits

    model = Averaging(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer, torch.ones(6, 3), torch.ones(6).long(), loss, None, 3)
    assert events == ["without", "forward", "without", "forward", "forward"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(grad_accum_steps=0), "got 0, expected a number above 0"),
        (dict(grad_accum_steps=9), "got 9, expected at most 8, one image for each"),
        (dict(grad_accum_steps=5, gpus=2, data_parallel=True), "got 5, .* at most 4"),
        (dict(grad_accum_steps=1.5), "got 1.5, expected a whole number"),
    ],
)
def test_a_piece_has_an_image(settings, words):
    with pytest.raises(ValueError, match=f"^grad_accum_steps: {words}"):
        parse_parameters(dict(batch_size=8) | settings)


@pytest.mark.distributed
@pytest.mark.parametrize("data_parallel", [False, True])
def test_two_processes_add_pieces(tmp_path, asked, data_parallel):
    """Columns exchange activations piece by piece; replicas average their sums."""
    run_training(make(tmp_path / "one", asked))
    settings = asked | dict(gpus=2, data_parallel=data_parallel, grad_accum_steps=3)
    folder = train(Config(out_dir=str(tmp_path / "two"), **settings))
    expected = metrics(tmp_path / "one")
    for row, one in zip(metrics(folder), expected, strict=True):
        assert row["loss"] == pytest.approx(one["loss"], rel=1e-8)
        assert row["top1"] == pytest.approx(one["top1"])
