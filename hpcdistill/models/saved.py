"""Trained models, as checkpoints hold them: with the average of the weights if there is one."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor, nn

from hpcdistill.config.schema import Config
from hpcdistill.data.store import Store
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.errors import UserError
from hpcdistill.models.factory import FactoryConfig
from hpcdistill.models.huggingface_config import build_from_text, config_text
from hpcdistill.models.registry import OtherKindOfDataError, build_model, config_class, require_data_for
from hpcdistill.storage.checkpoints import KIND
from hpcdistill.storage.state_file import State, load_state


@dataclass(frozen=True)
class SavedModel:
    """Model in a checkpoint."""

    path: Path
    config: Config
    """Configuration of the run that wrote the checkpoint."""
    step: int
    """Number of steps after which it was written."""
    weights: dict[str, Tensor]
    """State dict, on the CPU: the average of the weights if there is one. Tied tensors share their memory."""
    tied: dict[str, str]
    """Names of tied tensors, each with the name of the first tensor that it is."""
    huggingface_config: str | None
    """Configuration of a Hugging Face model, as `config_text` returns it; None for others."""
    _trusted: bool

    @classmethod
    def load(cls, path: Path, trust: bool = False) -> SavedModel:
        """Read the checkpoint at `path`. No code is run that the checkpoint names.

        Args:
            path: the checkpoint.
            trust: let code that the checkpoint names (`model.factory`, `data.factory`) run even if another user owns
                the file.

        Raises:
            UserError: the file is not a checkpoint, is damaged, or has a configuration that this version does not know.
        """
        content = load_state(path, KIND)
        try:
            state = content["state"]
            config = config_class()(**state["config"])
            prefix, average = "module.", state.get("average", {})
            shown = {name.removeprefix(prefix): weight for name, weight in average.items() if name.startswith(prefix)}
            weights, tied = shown or state["model"], state.get("tied", {})
            weights = {name: weights[tied.get(name, name)] for name in weights}
            model = cls(path, config, state.get("step", 0), weights, tied, state.get("huggingface_config"), trust)
            model._shapes()
            return model
        except ValidationError as error:
            reason = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise UserError(f"checkpoint {path} is of another version of hpcdistill: {reason}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"checkpoint {path} holds no model ({error}); name one that `train` has made") from None

    def build(self, store: Store) -> nn.Module:
        """Build the saved model, in eval mode, without gradients, on the CPU.

        A model of transformers is built from the configuration in the checkpoint, so its folder need not be there.

        Raises:
            UserError: the model does not fit the data, or its code belongs to another user and is not trusted.
        """
        if isinstance(self.config.model, FactoryConfig):
            self.require_trusted(f"model.factory = {self.config.model.factory!r}")
        try:
            require_data_for(self.config.model, store)
            if self.huggingface_config and not isinstance(self.config.model, FactoryConfig):
                model = self._build_huggingface(store, self.huggingface_config)
            else:
                model = build_model(self.config.model, store)
        except OtherKindOfDataError:
            raise self._is_for_other_data(store, f"model.name = {self.config.model.name!r} there") from None
        theirs = self._shapes()
        mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if mine != theirs:
            name = next(name for name in [*mine, *theirs] if mine.get(name) != theirs.get(name))
            raise self._is_for_other_data(store, f"{name} is {theirs.get(name)} there, and {mine.get(name)} here")
        model.load_state_dict(self.weights)
        return model.eval().requires_grad_(False)

    def require_trusted(self, code: str) -> None:
        """Check that code which the checkpoint names may run: it belongs to this user, or is trusted.

        Args:
            code: key that names the code, with its value.

        Raises:
            UserError: the checkpoint belongs to another user and is not trusted.
        """
        if not self._trusted:
            _require_own(self.path, code)

    def _build_huggingface(self, store: Store, text: str) -> nn.Module:
        model = build_from_text(text)
        tokens = model.config.get_text_config().vocab_size if isinstance(store, TokenStore) else 0
        if isinstance(store, TokenStore) and tokens < store.vocabulary:
            raise self._is_for_other_data(store, f"its vocabulary is {tokens} there, and {store.vocabulary} here")
        built: nn.Module = model
        return built

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.weights.items()}

    def _is_for_other_data(self, store: Store, why: str) -> UserError:
        return UserError(
            f"checkpoint {self.path} is of a model for other data than {store.setting}, which is {store.KIND}: {why}; "
            f"name the data it was trained on ({self.config.data.source}), or data prepared in the same way"
        )


def describe_model(model: nn.Module) -> State:
    """Return what a checkpoint holds of a model beside its state dict: `tied` and `huggingface_config` of `SavedModel`.

    Tensors are tied if they are one and the same memory.
    """
    first: dict[tuple[object, ...], str] = {}
    tied = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue  # a module's extra state
        place = (tensor.data_ptr() or name, tensor.dtype, tensor.shape, tensor.stride())
        if first.setdefault(place, name) != name:
            tied[name] = first[place]
    text = config_text(model)
    return ({"tied": tied} if tied else {}) | ({"huggingface_config": text} if text else {})


def _require_own(path: Path, code: str) -> None:
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
        f"checkpoint {path} belongs to {name}, and names code that would run with your permissions: {code}; add "
        "--trust if you trust both"
    )
