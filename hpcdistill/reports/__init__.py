"""Tables, curves and pages about runs. Imports: storage, errors."""
