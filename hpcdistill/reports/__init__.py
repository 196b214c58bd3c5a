"""Tables, figures and pages about runs. Imports: storage, errors."""
