"""One YAML a published slide-level task: classes, counts, where labels come from."""
