"""The MODEL patch that guides any sampler."""
