"""Kernels in C++ for the CPU: compiled once a machine by its own compiler, without the headers of torch or Python."""
