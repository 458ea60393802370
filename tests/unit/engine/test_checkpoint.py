"""A checkpoint is whole and finite, and enough to repeat what would have been done."""

import json
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file

from alexnet_nb.engine import checkpoint, loop
from alexnet_nb.engine.loop import run_training, train_loop
from alexnet_nb.engine.run_dir import RunDir
from helpers.runs import Killed, begin, dies, metrics

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(run, whole):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(run) == metrics(whole)


def kill_in_validation(trainer, patch):
    """The process goes away while it validates, after the last step of an epoch."""
    patch.setattr(loop, "measure_validation", dies)


def kill_before_checkpoint(trainer, patch):
    """It goes away when the validation is recorded.

    The checkpoint of the epoch is not there yet.
    """
    patch.setattr(checkpoint, "write_tensors", dies)


@pytest.fixture(scope="module")
def plateau():
    """The printed recipe, whose learning rate follows the validation errors.

    Four steps an epoch.
    """
    return dict(recipe="paper", epochs=10, batch_size=360)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits, plateau):
    folder = tmp_path_factory.mktemp("whole")
    run_training(begin(folder, digits, **plateau))
    rates = {row["lr"] for row in metrics(folder)}
    assert len(rates) >= 3, "the learning rate must drop, or the test shows nothing"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kill", [None, kill_in_validation, kill_before_checkpoint])
def test_stopped_after_every_epoch_the_plateau_rule_forgets_nothing(
    tmp_path, monkeypatch, digits, plateau, undisturbed, kill
):
    for epoch in range(1, 11):
        if kill:
            worker = begin(tmp_path, digits, **plateau)
            with monkeypatch.context() as patch:
                kill(worker, patch)
                with pytest.raises(Killed):
                    train_loop(worker, epoch * worker.steps_per_epoch)
        worker = begin(tmp_path, digits, **plateau)
        RunDir(tmp_path).truncate_metrics(worker.step)
        train_loop(worker, epoch * worker.steps_per_epoch)
    run_training(begin(tmp_path, digits, **plateau))
    assert_same(tmp_path, undisturbed)


def test_a_run_killed_in_its_last_validation_makes_up_for_it(
    tmp_path, monkeypatch, digits
):
    worker = begin(tmp_path, digits)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure_validation", dies)
        with pytest.raises(Killed):
            run_training(worker)
    run_training(begin(tmp_path, digits))
    assert [row["split"] for row in metrics(tmp_path)].count("val") == 1


def test_a_checkpoint_without_its_validation_is_refused(tmp_path, digits):
    """As an earlier version wrote them.

    Another run would come of it, without a word.
    """
    run_training(begin(tmp_path, digits))
    state = RunDir(tmp_path).checkpoints()[-1] / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"val_errors": []}))
    with pytest.raises(
        ValueError, match="got 0 validation errors, expected 1, one an epoch; remove it"
    ):
        begin(tmp_path, digits)


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, digits):
    """The good checkpoint before stays, and a resumed run goes on from it."""
    worker = begin(tmp_path, digits)
    train_loop(worker, 4)
    step = torch.optim.SGD.step

    def overflow(self, *arguments):
        step(self, *arguments)
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.fill_(torch.inf)

    words = r"not finite after step 5, .* nothing was saved"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", overflow)
        with pytest.raises(FloatingPointError, match=words):
            train_loop(worker, 12)
    assert RunDir(tmp_path).checkpoints()[-1].name == "step-0000004"
    run_training(begin(tmp_path, digits))
    assert all(
        weight.isfinite().all()
        for weight in load_file(tmp_path / "model.safetensors").values()
    )


def test_a_checkpoint_in_the_background_holds_what_was_at_its_step(
    tmp_path, monkeypatch, digits
):
    """The training goes on meanwhile, and changes the weights in place."""
    trainer = begin(tmp_path, digits, batch_size=360)
    train_loop(trainer, 1)
    may_write = threading.Event()
    write = checkpoint.write_tensors

    def wait_then_write(path, *tensors):
        assert may_write.wait(60)
        write(path, *tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", wait_then_write)
    shutil.rmtree(tmp_path / "checkpoints")
    expected = {n: t.clone() for n, t in trainer.model.state_dict().items()}
    checkpoint.save_checkpoint(trainer, background=True)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.zero_()
    assert not RunDir(tmp_path).checkpoints()
    may_write.set()
    checkpoint.wait_for_checkpoint(trainer)
    (path,) = RunDir(tmp_path).checkpoints()
    stored = load_file(path / "weights.safetensors")
    assert all(torch.equal(stored[name], t) for name, t in expected.items())
    assert checkpoint.read_checkpoint(path, {})["step"] == 1


def test_an_error_in_the_background_ends_the_run(tmp_path, monkeypatch, digits):
    def full(path, *tensors):
        raise OSError("No space left on device")

    monkeypatch.delenv("ALEXNET_NB_SAVE")  # there is one checkpoint, the last
    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        run_training(begin(tmp_path, digits))
    assert not RunDir(tmp_path).checkpoints()
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(("elapsed", "saved"), [(1, [4, 16]), (31, [4, 8, 12, 16])])
def test_epochs_of_a_moment_share_a_checkpoint(
    tmp_path, monkeypatch, digits, elapsed, saved
):
    """One is written after the first, after half a minute, and at the end."""
    monkeypatch.delenv("ALEXNET_NB_SAVE")
    trainer = begin(tmp_path, digits, batch_size=360, epochs=4)
    save, steps = checkpoint.save_checkpoint, []

    def count(trainer, background):
        steps.append(trainer.step)
        save(trainer, background=background)

    monkeypatch.setattr(loop, "save_checkpoint", count)
    begin_epoch = loop.begin_epoch

    def later(trainer, epoch):
        trainer.last_save -= elapsed
        begin_epoch(trainer, epoch)

    monkeypatch.setattr(loop, "begin_epoch", later)
    train_loop(trainer, 16)
    assert steps == saved
