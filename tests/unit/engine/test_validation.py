"""The validation of a run measures every image once."""

import pytest
import torch
from torch.nn import functional as F

from alexnet_nb.engine.validation import measure_validation
from alexnet_nb.learning import error_rates
from helpers.runs import begin


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("limit", [None, 100])
def test_it_equals_one_pass_over_all_images(tmp_path, digits, limit, on_device):
    trainer = begin(tmp_path, digits, batch_size=70)
    if on_device:  # the way of a GPU
        trainer.transform.crops_on_device = True
        trainer.make_buffers()
    n = limit or len(digits.val)
    images = torch.tensor(digits.val.images[:n])
    labels = torch.tensor(digits.val.labels[:n])
    with torch.no_grad():
        trainer.model.fc8.weight.mul_(1000)  # so that the errors are not all chance
        logits = trainer.model.eval()(trainer.transform.test_crops(images, 1)[0])
    found = measure_validation(trainer, limit)
    assert trainer.model.training
    assert found[0] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert found[1:3] == pytest.approx(error_rates(logits, labels))
    assert found[3] == n
