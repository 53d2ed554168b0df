"""The screens and the command line over `engine`."""
