"""What a guided step needs, counted before it runs, and the way to compute it that fits.

count.py      the bytes that a computation holds, counted on tensors without data
networks.py   the networks of a run without data, and the calls that the host makes of them
needs.py      what a guided step takes in each way
plan.py       the way that fits, and the next one if memory runs out all the same
"""
