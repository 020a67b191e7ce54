"""Models that come with adaptkit."""

from adaptkit.models.small_cnn import SmallCNN

__all__ = ["SmallCNN"]
