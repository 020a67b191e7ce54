"""Programs of torch.export, read without their source and without running code in them."""

from adaptkit.program.archive import is_program
from adaptkit.program.program import Program, program_bytes, read_program

__all__ = ["Program", "is_program", "program_bytes", "read_program"]
