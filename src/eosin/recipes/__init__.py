"""One YAML a published system."""
