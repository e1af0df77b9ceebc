"""quantvane."""
