"""Publishing on the Hugging Face hub: safetensors, config.json and model card in timm's layout."""

import dataclasses
import os
import pathlib
import tempfile

from densenet_jax import atomic_files
from densenet_jax.export import bundle as bundles
from densenet_jax.export import card, formats
from densenet_jax.export.bundle import ExportError, need
from densenet_jax.weights import timm_config
from densenet_jax.weights.published import WEIGHTS_FILE


def push_to_hub(
    workdir: str | os.PathLike[str],
    repo_id: str,
    *,
    checkpoint: str = "best",
    licence: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Weights, configuration and model card",
) -> str:
    """Publishes a checkpoint of a run; `load_pretrained("hf-hub:" + repo_id)` loads it.

    Args:
      workdir: the run's directory.
      repo_id: the repository, `owner/name`; created if it does not exist.
      checkpoint: `best`, `latest` or a step number.
      licence: of the weights, with the hub's identifier (`apache-2.0`); None: the card has none.
      private: whether a repository that is created is private.
      revision: the branch; None: the main branch.
      token: the hub's access token; None: the one stored by `hf auth login`.
      message: of the commit.

    Returns:
      The URL of the commit.

    Raises:
      ExportError: huggingface_hub is missing, `repo_id` is not `owner/name`, or the hub refuses
        or cannot be reached.
      CheckpointError: there is no such run or checkpoint.
    """
    client = need("huggingface_hub")
    if repo_id.count("/") != 1:  # the card and the upload need the owner
        raise ExportError(f"{repo_id!r} is not the name of a repository; write it as owner/name.")
    bundle = bundles.of_run(os.fspath(workdir), checkpoint)
    if licence:
        bundle = dataclasses.replace(bundle, licence=licence)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(bundle, folder, repo_id)
        api = client.HfApi(token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message
            )
        except (client.errors.HTTPError, ValueError, OSError) as e:
            # The first two lines of the hub's message name the error and its reason.
            lines = [line.strip(" .") for line in str(e).splitlines() if line.strip()]
            reason = ": ".join(lines[:2]) or type(e).__name__
            raise ExportError(
                f"The hub did not accept {repo_id} ({reason}); log in with `hf auth login`, or "
                "check the name (owner/name) and the network."
            ) from e
    return str(getattr(done, "commit_url", done))


def write_folder(bundle: bundles.Bundle, folder: str | os.PathLike[str], repo_id: str) -> None:
    """Writes the files of a hub repository into a folder: weights, config.json and model card."""
    target = formats.Target(pathlib.Path(folder))
    formats.write_hub_files(bundle, target, target.folder / WEIGHTS_FILE)
    source = f"hf-hub:{repo_id}"
    timm = source if timm_config.fits_timm(bundle.model) else ""
    text = card.render(
        bundle, "safetensors", source=source, timm=timm, spec=timm_config.CONFIG_FILE
    )
    atomic_files.write(target.folder / "README.md", text)
