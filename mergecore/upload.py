"""An exported checkpoint on the Hugging Face hub; the only place that sends anything, and only when told to."""

from __future__ import annotations

from pathlib import Path

from mergecore.errors import InputError, MergecoreError, first_line
from mergecore.export import FACTS


def upload_checkpoint(folder: Path, repository: str, *, private: bool) -> str:
    """Make the repository if it is missing, and upload every file but how the checkpoint was made on this machine.

    Args:
        folder: what `mergecore.export.export_model` wrote.
        repository: ``owner/name``.
        private: whether only its owner sees a repository that is made now.

    Returns:
        The address of the upload.

    Raises:
        InputError: it is no export of ours, or the hub does not take the name or the account.
        MergecoreError: the hub could not be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    if not (folder / FACTS).is_file():
        raise InputError(f"{str(folder)!r} is no checkpoint that mergecore exported: it has no {FACTS}.")
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=[FACTS],  # it names paths of this machine
            commit_message="Merged by mergecore",
        )
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise InputError(f"The hub refuses {repository!r}: {first_line(error)}.") from None
    except (HfHubHTTPError, OSError) as error:
        raise MergecoreError(f"The upload to {repository!r} failed: {first_line(error)}.") from None
    return str(done.commit_url)
