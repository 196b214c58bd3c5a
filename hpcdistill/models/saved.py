"""Trained models, as checkpoints hold them: with the average of the weights if there is one."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from hpcdistill.config.schema import Config
from hpcdistill.data.store import Store
from hpcdistill.errors import UserError
from hpcdistill.models.factory import FactoryConfig
from hpcdistill.models.registry import OtherKindOfDataError, build_model, config_class
from hpcdistill.storage.checkpoints import KIND
from hpcdistill.storage.state_file import State, load_state


@dataclass(frozen=True)
class SavedModel:
    """Model in a checkpoint."""

    path: Path
    config: Config
    """Configuration of the run that wrote the checkpoint."""
    _weights: State

    @classmethod
    def load(cls, path: Path, trust: bool = False) -> SavedModel:
        """Read the checkpoint at `path`.

        Args:
            path: the checkpoint.
            trust: run the code that the checkpoint names (`model.factory`) even if another user owns the file.

        Raises:
            UserError: the file is not a checkpoint, is damaged, has a configuration that this version does not know, or
                names code without being trusted.
        """
        content = load_state(path, KIND)
        try:
            state = content["state"]
            config = config_class()(**state["config"])
            prefix, average = "module.", state.get("average", {})
            shown = {name.removeprefix(prefix): weight for name, weight in average.items() if name.startswith(prefix)}
            model = cls(path, config, shown or state["model"])
            model._shapes()
        except ValidationError as error:
            reason = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise UserError(f"checkpoint {path} is of another version of hpcdistill: {reason}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"checkpoint {path} holds no model ({error}); name one that `train` has made") from None
        if isinstance(config.model, FactoryConfig) and not trust:
            _require_own(path, config.model.factory)
        return model

    def build(self, store: Store) -> nn.Module:
        """Build the saved model, in eval mode, without gradients, on the CPU.

        Raises:
            UserError: the model does not fit the data.
        """
        try:
            model = build_model(self.config.model, store).eval().requires_grad_(False)
        except OtherKindOfDataError:
            raise self._is_for_other_data(store, f"model.name = {self.config.model.name!r} there") from None
        theirs = self._shapes()
        mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if mine != theirs:
            name = next(name for name in [*mine, *theirs] if mine.get(name) != theirs.get(name))
            raise self._is_for_other_data(store, f"{name} is {theirs.get(name)} there, and {mine.get(name)} here")
        model.load_state_dict(self._weights)
        return model

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._weights.items()}

    def _is_for_other_data(self, store: Store, why: str) -> UserError:
        return UserError(
            f"checkpoint {self.path} is of a model for other data than {store.setting}, which is {store.KIND}: {why}; "
            f"name the data it was trained on ({self.config.data.source}), or data prepared in the same way"
        )


def _require_own(path: Path, factory: str) -> None:
    """Check that the file belongs to this user: its owner chooses the code that is run.

    Raises:
        UserError: another user owns it.
    """
    owner = path.stat().st_uid
    if owner == os.geteuid():
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"user {owner}"
    raise UserError(
        f"checkpoint {path} belongs to {name}, and names code that would run with your permissions: model.factory = "
        f"{factory!r}; add --trust if you trust both"
    )
