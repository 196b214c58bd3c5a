"""The training program: loop, step, restart, records. Imports: codistill and all below it."""
