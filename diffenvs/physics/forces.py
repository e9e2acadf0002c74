"""Forces of a physics step under MuJoCo's names."""

import warp as wp

FORCES = {
    # name: (dtype, size of the model that gives its columns)
    "qfrc_actuator": (float, "nv"),
    "qfrc_constraint": (float, "nv"),
    "cfrc_ext": (wp.spatial_vector, "nbody"),
}
