"""Scores of batches of images, and of the parts of one."""
