"""Check of the package on a GPU, within half an hour and without network: packing, and the three commands."""
