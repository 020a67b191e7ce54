"""adaptkit inside other libraries, one a module, imported only by who uses it."""
