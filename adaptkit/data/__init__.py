"""Something on disk to batches of tensors."""

from adaptkit.data.decode import decode
from adaptkit.data.folder import Listing, list_images
from adaptkit.data.loader import ImageLoader, image_folder
from adaptkit.data.names import class_names

__all__ = ["ImageLoader", "Listing", "class_names", "decode", "image_folder", "list_images"]
