"""Studies that come with eosin: one YAML a published experiment, nothing else."""
