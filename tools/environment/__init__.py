"""The environment behind dev.py's commands: ComfyUI, packages, a trained encoder.

Standard library only, for Python 3.9 or later: this code runs before anything is installed.
"""
