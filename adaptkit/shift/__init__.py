"""How far two domains lie apart, one metric a file."""

from adaptkit.shift.symmetric_kl import symmetric_kl

__all__ = ["symmetric_kl"]
