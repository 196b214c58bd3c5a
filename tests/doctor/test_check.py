"""A check that raises becomes a result."""

import pytest

from hpcdistill.doctor.check import Result, Status, run_check

pytestmark = pytest.mark.alone


def test_a_check_that_raises_fails_with_its_message() -> None:
    def check() -> Result:
        raise OSError("the disk is gone\nand more")

    assert run_check(check, "buy a disk") == Result(Status.FAIL, "OSError: the disk is gone", "buy a disk")
