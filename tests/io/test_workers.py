"""Jobs on several processes."""
import os

import pytest

from fitkit.errors import FitkitError
from fitkit.io.workers import run_jobs


def square(number):
    return number * number


def vanish(number):
    os._exit(3)


def refuse(number):
    raise FitkitError(f"job {number} cannot be done")


@pytest.mark.parametrize("workers", [1, 2])
def test_all_jobs_are_done(workers):
    assert sorted(run_jobs(square, [1, 2, 3], workers)) == [1, 4, 9] and list(run_jobs(square, [], workers)) == []


def test_what_goes_wrong_in_a_worker_reaches_the_caller():
    with pytest.raises(FitkitError, match="job 1 cannot be done"):
        list(run_jobs(refuse, [1, 1], 2))
    with pytest.raises(FitkitError, match=r"a worker process ended by force \(out of memory\?\); use fewer --workers"):
        list(run_jobs(vanish, [1, 2], 2))
