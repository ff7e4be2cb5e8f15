"""Scores of batches of images, and of the patches of one image.

scores.py       scoring and ranking a batch
reference.py    scores of reference images, percentiles among them
rarity_map.py   patch scores at every pixel
"""
