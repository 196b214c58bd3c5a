"""The losses: public functions, their checks, and the operators below them. Imports: kernels, errors."""
