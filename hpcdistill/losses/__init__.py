"""The losses: public functions, checks of their arguments, and torch operators. Imports: kernels."""
