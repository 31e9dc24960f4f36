"""Save a model as a folder for a model hub, and upload it: methods of VideoModel."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast, get_args

from internvideo.errors import RecipeError
from internvideo.inference import hub_folder, transformers_folder
from internvideo.weights.fetch import push

Layout = Literal["internvideo", "transformers"]
"""Which library's files `save_pretrained` writes."""


class HubModel:
    """Mixin for classes with the attributes of `hub_folder.Savable`."""

    def save_pretrained(self, folder: str | Path, *, layout: Layout = "internvideo") -> Path:
        """Write a folder with config.json, model.safetensors and a model card README.md.

        Args:
            folder: created if absent; other files in it are not changed.
            layout: "internvideo", for `load` and sentence-transformers, or "transformers", for that library and `load`
                (only VideoMAE and CLIP).

        Raises:
            RunError: the folder cannot be written. RecipeError: an unknown layout, or a model that transformers does
                not have.
        """
        if layout not in get_args(Layout):
            raise RecipeError("layout", repr(layout), ", ".join(get_args(Layout)))
        writer = hub_folder.save if layout == "internvideo" else transformers_folder.save
        return writer(cast(hub_folder.Savable, self), Path(folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        layout: Layout = "internvideo",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload the model with internvideo",
    ) -> str:
        """Upload the files of `save_pretrained` to a repository of the Hugging Face hub, which is created if absent.

        Args:
            repo_id: ORGANISATION/NAME. layout: see `save_pretrained`. private: whether a new repository is private.
            token: by default that of `hf auth login`. revision: branch, by default main.

        Returns:
            URL of the commit; `load("hf://ORGANISATION/NAME")` loads the model.

        Raises:
            RecipeError, RunError: as `save_pretrained`. WeightsError: the hub refused it.
        """
        with TemporaryDirectory() as folder:
            written = self.save_pretrained(Path(folder) / "model", layout=layout)
            return push(written, repo_id, private, token, revision, commit_message)
