"""The store: records of runs in atomic files, provenance, revisions of behaviours, and YAML checked on load."""
