"""Something on disk to batches of tensors."""

from adaptkit.data.decode import decode
from adaptkit.data.folder import list_images
from adaptkit.data.listing import Listing
from adaptkit.data.loader import ImageLoader, image_folder
from adaptkit.data.names import class_names
from adaptkit.data.opening import is_file, listed, open, shape_of  # noqa: A004
from adaptkit.data.place import Place, Remote, place

__all__ = [
    "ImageLoader",
    "Listing",
    "Place",
    "Remote",
    "class_names",
    "decode",
    "image_folder",
    "is_file",
    "list_images",
    "listed",
    "open",
    "place",
    "shape_of",
]
