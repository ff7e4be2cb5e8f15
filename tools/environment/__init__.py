"""The environment that dev.py makes and runs its commands in. Standard library only."""
