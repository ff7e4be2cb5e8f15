"""Two small generators as models of the host: the demo generator and D-JEPA.

demo.py          the class-conditional UNet that comes with the pack, for the host's samplers
djepa.py         loading and sampling a D-JEPA
djepa_menu.py    names in the D-JEPA loader's menu, and their files
autoencoder.py   the autoencoders of both, as a VAE of the host
"""
