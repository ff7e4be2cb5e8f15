"""Pictures and charts, drawn with Pillow alone."""
