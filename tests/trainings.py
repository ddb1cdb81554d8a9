"""A training of a network in a test: its losses, step by step, and an interruption."""

import pytest
import torch

from fitkit.train.regressor import train_regressor


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder, model, data, settings, resume=False, stop=0):
    """Losses by step and the path of the weights; stop: the step after which Ctrl-C comes, 0 = never."""
    losses = {}

    def done(step, values):
        losses[step] = values
        if step == stop:
            raise KeyboardInterrupt

    path = train_regressor(settings, folder, resume=resume, model=model, datasets=data, step_done=done)
    return losses, path
