"""Pictures and charts, drawn with Pillow alone.

pictures.py         labelled sheets of pictures; conversion to the host's IMAGE
rarity_overlay.py   patch scores as colours over an image
trace_chart.py      the chart of a guided run
"""
