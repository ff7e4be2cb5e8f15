"""What a JEPA_ENCODER link carries, and the files behind the names in the encoder loader's menu.

host_encoder.py   an encoder that the host loads and unloads, weighted sets of encoders, loading from a file
shared.py         one patcher for each file, shared by its loaders
menu.py           names in the menu, their files in models/jepa, downloads from the hub
"""
