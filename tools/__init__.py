"""Tools of the developers; not published."""
