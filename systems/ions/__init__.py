"""Charges in periodic cells: what virtual nodes with Fourier modes are measured on."""
