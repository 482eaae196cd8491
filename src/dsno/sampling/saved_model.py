"""What the operator and its teacher have in common as models of diffusers: how they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from diffusers import ConfigMixin, ModelMixin

from dsno.backbones.misfits import mismatch_sentence
from dsno.backbones.safe_loading import (
    DIFFUSERS_STEM,
    best_variant,
    check_model,
    weight_variants,
)
from dsno.sampling.folder import forget_origins, read_config, require_variant
from dsno.sampling.loading import (
    check_options,
    loading,
    local_folder,
    require_folder,
    require_safetensors,
)
from dsno.support.errors import InputError
from dsno.support.files import read_json


class SavedModel(ModelMixin, ConfigMixin):
    """A model whose folder is checked before a library reads it, and holds safetensors only."""

    what: ClassVar[str] = "model"
    """It is, for errors."""

    @classmethod
    def _read_config(cls, folder: Path) -> Mapping[str, Any]:
        return read_config(folder, cls.what)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a model saved by `save_pretrained`.

        Args:
            pretrained_model_name_or_path: folder with config.json and safetensors, or `owner/name`
                on the Hub.
            kwargs: `subfolder`, `variant`, `dtype` (or `torch_dtype`), and of a download
                `revision`, `token`, `cache_dir`, `local_files_only` and `force_download`.

        Raises:
            InputError: if it is not such a folder, a file of it is damaged or does not fit, or an
                option is not known.
        """
        check_options(kwargs, ("subfolder", "output_loading_info"))
        top = local_folder(pretrained_model_name_or_path, kwargs)
        path = top / (kwargs.pop("subfolder", None) or "")
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("low_cpu_mem_usage", False)  # tables are made as the model is built
        variant = kwargs.pop("variant", None)
        if variant is None:
            variant = best_variant(path, DIFFUSERS_STEM)
        else:
            require_variant(path, variant, weight_variants(path, DIFFUSERS_STEM))
        with loading(path):
            config = cls._read_config(path)
            check_model(path, config, lambda: cls.from_config(config), cls.what, variant)
            kwargs |= {"variant": variant, "use_safetensors": True, "output_loading_info": True}
            model, info = super().from_pretrained(path, **kwargs)
        sentence = mismatch_sentence(
            str(path), missing=info["missing_keys"], extra=info["unexpected_keys"], misshaped=[]
        )
        if sentence:
            raise InputError(sentence)
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """Save weights and configuration.

        Args:
            save_directory: folder to write.
            safe_serialization: True; other formats would not be loaded again.
            variant: part of the names of the weights' files, such as "fp16".
            max_shard_size: of one file of weights; more are written beyond it.
            kwargs: passed to `ModelMixin.save_pretrained`.

        Raises:
            InputError: for pickled weights, or a file in the folder's place.
        """
        require_safetensors(safe_serialization, kwargs)
        require_folder(save_directory)
        super().save_pretrained(
            save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs
        )
        _drop_stale_indices(Path(save_directory))
        forget_origins(Path(save_directory))


def _drop_stale_indices(folder: Path) -> None:
    """Remove lists of shards that a model of fewer files has replaced: the library leaves them."""
    for index in folder.glob(f"{DIFFUSERS_STEM}*.safetensors.index*.json"):
        names = set(read_json(index, "list of shards", "save it again")["weight_map"].values())
        if not all((folder / name).exists() for name in names):
            index.unlink()
