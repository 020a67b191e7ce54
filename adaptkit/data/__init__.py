"""Something on disk to batches of tensors."""

from adaptkit.data.decode import decode
from adaptkit.data.folder import list_images
from adaptkit.data.listing import Listing
from adaptkit.data.loader import ImageLoader, image_folder
from adaptkit.data.names import class_names
from adaptkit.data.opening import listed, open, shape_of  # noqa: A004

__all__ = [
    "ImageLoader",
    "Listing",
    "class_names",
    "decode",
    "image_folder",
    "list_images",
    "listed",
    "open",
    "shape_of",
]
