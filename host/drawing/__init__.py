"""Pictures and charts, drawn with Pillow alone.

fonts.py            the font of a text in any script
pictures.py         labelled sheets of pictures; conversion to the host's IMAGE
group_sheet.py      groups of images, a block of pictures for each
palettes.py         colours from typical to rare
rarity_overlay.py   patch scores as colours over an image
axes.py             what charts share
labels.py           where labels of dots have room
rarity_chart.py     the chart of many images: rarity, and quality against it
trace_chart.py      the chart of a guided run
"""
