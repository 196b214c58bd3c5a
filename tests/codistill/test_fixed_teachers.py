"""Teachers that do not change."""

import pytest
import torch
from torch import nn

from hpcdistill.codistill.fixed_teachers import FixedTeachers

pytestmark = pytest.mark.alone


def test_models_and_constants_teach() -> None:
    model, inputs = nn.Linear(2, 3), torch.randn(4, 2)
    teachers = FixedTeachers([model], constants=[lambda target: torch.zeros(*target.shape, 3)])
    with pytest.raises(ValueError, match=r"call predict\(..., target=target\)"):
        teachers.predict(inputs)
    first, second = teachers.predict(inputs, target=torch.zeros(4, dtype=torch.int64))
    assert torch.equal(first, model(inputs))
    assert not first.requires_grad
    assert torch.equal(second, torch.zeros(4, 3))
