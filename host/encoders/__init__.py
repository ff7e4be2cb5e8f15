"""What a JEPA_ENCODER link carries, and the files behind the names in the loaders' menus."""
