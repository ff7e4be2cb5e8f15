"""Developer tools; none of this is published."""
