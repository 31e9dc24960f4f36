"""Save a model as a folder of a model hub, and upload it: methods of VideoModel"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast, get_args

from internvideo.errors import RecipeError
from internvideo.inference import hub_folder, transformers_folder
from internvideo.weights.fetch import push

Layout = Literal["internvideo", "transformers"]
"""Of the files that `save_pretrained` writes."""


class HubModel:
    """Mixin for classes with the attributes of `hub_folder.Savable`."""

    def save_pretrained(self, folder: str | Path, *, layout: Layout = "internvideo") -> Path:
        """Write a folder with config.json, model.safetensors and a model card README.md.

        Args:
            folder: created when absent; other files in it are kept.
            layout: "internvideo", which `load` and sentence-transformers read, or "transformers", which that library
                and `load` read: only VideoMAE and CLIP exist there.

        Raises:
            RunError: it cannot be written. RecipeError: an unknown layout, or a model that transformers does not have.
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
        """Upload what `save_pretrained` writes to a repository of the Hugging Face hub, made when absent.

        Args:
            repo_id: ORGANISATION/NAME. layout: of the files. private: of a new repository.
            token: by default that of `hf auth login`. revision: branch, by default main.

        Returns:
            Address of the commit; `load("hf://ORGANISATION/NAME")` reads it back.

        Raises:
            RecipeError, RunError: as `save_pretrained`. WeightsError: the hub refused it.
        """
        with TemporaryDirectory() as folder:
            written = self.save_pretrained(Path(folder) / "model", layout=layout)
            return push(written, repo_id, private, token, revision, commit_message)
