"""More variety from one prompt. Each file is one method, named after its paper; none needs a gradient or another network.

cads.py    noise on the conditioning, annealed away over the run
boost.py   a start with boosted noise, past the first steps
patch.py   both as patches of a MODEL
"""
