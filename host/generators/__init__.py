"""Models that draw: the demo generator and D-JEPA, as models of the host."""
