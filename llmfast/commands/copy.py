"""The command ``llmfast copy``."""

from pathlib import Path

from llmfast.remote import download, is_address, upload


def copy(source: str, target: str) -> None:
    """Copy a folder, such as a run, a model or prepared data, from this machine to an address, or back.

    Addresses are those that fsspec knows: ``s3://bucket/folder`` (with the library s3fs), ``gs://`` (gcsfs), ``az://``
    (adlfs), ``hf://`` (huggingface_hub), ``sftp://`` (paramiko) and others. A run is resumed from a copy of it here.

    Args:
        source: Folder or address to copy from.
        target: Address or new folder to copy to. What is at an address becomes as the folder is: checkpoints that the
            folder no longer has are removed there, and those that are there already are not sent again.

    Raises:
        ValueError: not one of each kind, a folder that exists already, or storage that cannot be used.
    """
    if is_address(source) == is_address(target):
        raise ValueError(f"one of {source} and {target} must be an address, such as s3://bucket/run, and one a folder")
    if is_address(source):
        if (folder := Path(target)).exists():
            raise ValueError(f"{folder} exists already; choose another folder")
        download(source, folder)
    else:
        if not (folder := Path(source)).is_dir():
            raise ValueError(f"there is no folder {folder}")
        upload(folder, target)
    print(f"copied      {source} to {target}")
