"""The axes of a RAS volume (x right, y anterior, z superior). Without PyTorch, so that workers start without it."""

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis along which each kind of slice is stacked."""
