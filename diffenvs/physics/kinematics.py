"""Kinematics of a state, with their adjoint: where bodies are, and how they move.

    (qpos, qvel) -> xpos, xipos, site_xpos, subtree_com, cinert, cvel

under MuJoCo's names and in its conventions. After a step, `mujoco.MjData` holds those of the last
forward pass, which began before the state was advanced; here they are those of the state itself.

The tree is walked as a chain of nodes: each body is one node, its frame in its parent's, followed
by one node per joint of it. The pose of a body is that of its last node.

The adjoint is the one that Warp generates for the kernels below. They are written for that: every
entry of an array is written once, so that the backward pass finds the values that the forward pass
read, and variables that a loop changes are sums. Cotangents of `qpos` are gradients by its
components; a quaternion is read through `q / |q|`, so its gradient is orthogonal to it.

Not covered: poses of mocap bodies are those of the model.
"""

from __future__ import annotations

from collections.abc import Iterable

import mujoco
import mujoco_warp as mjw
import numpy as np
import warp as wp

from .spatial import vec3_at, vec4_at, vec10

_FRAME = wp.constant(-1)  # the node of a body, as the others are of a type of joint
_FREE = wp.constant(int(mujoco.mjtJoint.mjJNT_FREE))
_BALL = wp.constant(int(mujoco.mjtJoint.mjJNT_BALL))
_SLIDE = wp.constant(int(mujoco.mjtJoint.mjJNT_SLIDE))

FIELDS = {
    # name: (dtype, size of the model that gives its columns)
    "xpos": (wp.vec3, "nbody"),
    "xipos": (wp.vec3, "nbody"),
    "site_xpos": (wp.vec3, "nsite"),
    "subtree_com": (wp.vec3, "nbody"),
    "cinert": (vec10, "nbody"),
    "cvel": (wp.spatial_vector, "nbody"),
}
"""What can be asked for, in MuJoCo's conventions: positions in m, `cinert` and `cvel` (angular
part first) about the centre of mass of the kinematic tree, in world axes."""


@wp.func
def _mul(p: wp.vec4, q: wp.vec4) -> wp.vec4:
    """Product of two quaternions (w, x, y, z)."""
    u, v = wp.vec3(p[1], p[2], p[3]), wp.vec3(q[1], q[2], q[3])
    w = p[0] * q[0] - wp.dot(u, v)
    r = p[0] * v + q[0] * u + wp.cross(u, v)
    return wp.vec4(w, r[0], r[1], r[2])


@wp.func
def _rotate(q: wp.vec4, x: wp.vec3) -> wp.vec3:
    """A vector of the rotated frame in the axes of the other."""
    u = wp.vec3(q[1], q[2], q[3])
    t = 2.0 * wp.cross(u, x)
    return x + q[0] * t + wp.cross(u, t)


@wp.func
def _wxyz(q: wp.quat) -> wp.vec4:
    """A quaternion of the model, whose first component is w."""
    return wp.vec4(q[0], q[1], q[2], q[3])


@wp.func
def _turn(axis: wp.vec3, angle: float) -> wp.vec4:
    """Quaternion of a rotation about a unit vector."""
    s = wp.sin(0.5 * angle)
    return wp.vec4(wp.cos(0.5 * angle), s * axis[0], s * axis[1], s * axis[2])


@wp.kernel
def _poses(
    # Model:
    qpos0: wp.array2d[float],
    body_pos: wp.array2d[wp.vec3],
    body_quat: wp.array2d[wp.quat],
    jnt_qposadr: wp.array[int],
    jnt_pos: wp.array2d[wp.vec3],
    jnt_axis: wp.array2d[wp.vec3],
    node_type: wp.array[int],
    node_id: wp.array[int],
    node_parent: wp.array[int],
    # In:
    qpos_in: wp.array2d[float],
    # Out:
    node_pos_out: wp.array2d[wp.vec3],
    node_quat_out: wp.array2d[wp.vec4],
):
    """Pose of every node."""
    world = wp.tid()
    node_quat_out[world, 0] = wp.vec4(1.0, 0.0, 0.0, 0.0)
    for node in range(1, node_type.shape[0]):
        kind = node_type[node]
        parent = node_parent[node]
        i = node_id[node]
        pos = node_pos_out[world, parent]
        quat = node_quat_out[world, parent]
        if kind == _FRAME:
            offset = body_pos[world % body_pos.shape[0], i]
            turn = _wxyz(body_quat[world % body_quat.shape[0], i])
            node_pos_out[world, node] = pos + _rotate(quat, offset)
            node_quat_out[world, node] = _mul(quat, turn)
        elif kind == _FREE:
            q = jnt_qposadr[i]
            node_pos_out[world, node] = vec3_at(qpos_in, world, q)
            node_quat_out[world, node] = wp.normalize(vec4_at(qpos_in, world, q + 3))
        else:
            q = jnt_qposadr[i]
            anchor = jnt_pos[world % jnt_pos.shape[0], i]
            axis = jnt_axis[world % jnt_axis.shape[0], i]
            if kind == _SLIDE:
                along = qpos_in[world, q] - qpos0[world % qpos0.shape[0], q]
                node_pos_out[world, node] = pos + _rotate(quat, along * axis)
                node_quat_out[world, node] = quat
            elif kind == _BALL:
                turned = _mul(quat, wp.normalize(vec4_at(qpos_in, world, q)))
                shift = _rotate(quat, anchor) - _rotate(turned, anchor)
                node_pos_out[world, node] = pos + shift
                node_quat_out[world, node] = turned
            else:
                angle = qpos_in[world, q] - qpos0[world % qpos0.shape[0], q]
                turned = _mul(quat, _turn(axis, angle))
                shift = _rotate(quat, anchor) - _rotate(turned, anchor)
                node_pos_out[world, node] = pos + shift
                node_quat_out[world, node] = turned


@wp.kernel
def _bodies(
    # Model:
    body_ipos: wp.array2d[wp.vec3],
    body_node: wp.array[int],
    # In:
    node_pos_in: wp.array2d[wp.vec3],
    node_quat_in: wp.array2d[wp.vec4],
    # Out:
    xpos_out: wp.array2d[wp.vec3],
    xipos_out: wp.array2d[wp.vec3],
):
    """Origin and centre of mass of every body."""
    world, body = wp.tid()
    node = body_node[body]
    pos = node_pos_in[world, node]
    xpos_out[world, body] = pos
    offset = body_ipos[world % body_ipos.shape[0], body]
    xipos_out[world, body] = pos + _rotate(node_quat_in[world, node], offset)


@wp.kernel
def _sites(
    # Model:
    site_bodyid: wp.array[int],
    site_pos: wp.array2d[wp.vec3],
    body_node: wp.array[int],
    # In:
    node_pos_in: wp.array2d[wp.vec3],
    node_quat_in: wp.array2d[wp.vec4],
    # Out:
    site_xpos_out: wp.array2d[wp.vec3],
):
    """Position of every site."""
    world, site = wp.tid()
    node = body_node[site_bodyid[site]]
    offset = _rotate(node_quat_in[world, node], site_pos[world % site_pos.shape[0], site])
    site_xpos_out[world, site] = node_pos_in[world, node] + offset


@wp.kernel
def _centers(
    # Model:
    body_mass: wp.array2d[float],
    body_subtreemass: wp.array2d[float],
    body_treeend: wp.array[int],
    # In:
    xipos_in: wp.array2d[wp.vec3],
    # Out:
    subtree_com_out: wp.array2d[wp.vec3],
):
    """Centre of mass of every body with all that hangs on it: the bodies up to `body_treeend`."""
    world, body = wp.tid()
    row = world % body_mass.shape[0]
    total = body_subtreemass[world % body_subtreemass.shape[0], body]
    if total > 0.0:
        com = wp.vec3(0.0)
        for other in range(body, body_treeend[body]):
            com += (body_mass[row, other] / total) * xipos_in[world, other]
        subtree_com_out[world, body] = com
    else:
        subtree_com_out[world, body] = xipos_in[world, body]


@wp.kernel
def _inertias(
    # Model:
    body_rootid: wp.array[int],
    body_mass: wp.array2d[float],
    body_inertia: wp.array2d[wp.vec3],
    body_iquat: wp.array2d[wp.quat],
    body_node: wp.array[int],
    # In:
    node_quat_in: wp.array2d[wp.vec4],
    xipos_in: wp.array2d[wp.vec3],
    subtree_com_in: wp.array2d[wp.vec3],
    # Out:
    cinert_out: wp.array2d[vec10],
):
    """Inertia of every body about the centre of mass of its tree."""
    world, body = wp.tid()
    mass = body_mass[world % body_mass.shape[0], body]
    diagonal = body_inertia[world % body_inertia.shape[0], body]
    turn = _wxyz(body_iquat[world % body_iquat.shape[0], body])
    quat = _mul(node_quat_in[world, body_node[body]], turn)
    x = _rotate(quat, wp.vec3(1.0, 0.0, 0.0))
    y = _rotate(quat, wp.vec3(0.0, 1.0, 0.0))
    z = _rotate(quat, wp.vec3(0.0, 0.0, 1.0))
    d = xipos_in[world, body] - subtree_com_in[world, body_rootid[body]]
    turned = (
        diagonal[0] * wp.outer(x, x) + diagonal[1] * wp.outer(y, y) + diagonal[2] * wp.outer(z, z)
    )
    i = turned + mass * (wp.dot(d, d) * wp.identity(n=3, dtype=float) - wp.outer(d, d))
    if body > 0:
        cinert_out[world, body] = vec10(
            i[0, 0],
            i[1, 1],
            i[2, 2],
            i[0, 1],
            i[0, 2],
            i[1, 2],
            mass * d[0],
            mass * d[1],
            mass * d[2],
            mass,
        )


@wp.kernel
def _velocities(
    # Model:
    jnt_dofadr: wp.array[int],
    jnt_pos: wp.array2d[wp.vec3],
    jnt_axis: wp.array2d[wp.vec3],
    node_type: wp.array[int],
    node_id: wp.array[int],
    node_parent: wp.array[int],
    node_root: wp.array[int],
    # In:
    qvel_in: wp.array2d[float],
    node_pos_in: wp.array2d[wp.vec3],
    node_quat_in: wp.array2d[wp.vec4],
    # Out:
    node_angular_out: wp.array2d[wp.vec3],
    node_linear_out: wp.array2d[wp.vec3],
):
    """Angular velocity of every node, and velocity of its point at the origin of the tree's root.

    The reference point lies near the bodies wherever the tree is, for the sake of rounding.
    """
    world = wp.tid()
    for node in range(1, node_type.shape[0]):
        kind = node_type[node]
        parent = node_parent[node]
        i = node_id[node]
        angular = node_angular_out[world, parent]
        linear = node_linear_out[world, parent]
        origin = node_pos_in[world, node_root[node]]
        if kind == _FRAME:
            node_angular_out[world, node] = angular
            node_linear_out[world, node] = linear
        else:
            dof = jnt_dofadr[i]
            quat = node_quat_in[world, node]
            if kind == _FREE:
                turn = _rotate(quat, vec3_at(qvel_in, world, dof + 3))
                arm = origin - node_pos_in[world, node]
                node_angular_out[world, node] = turn
                node_linear_out[world, node] = vec3_at(qvel_in, world, dof) + wp.cross(turn, arm)
            elif kind == _SLIDE:
                axis = _rotate(quat, jnt_axis[world % jnt_axis.shape[0], i])
                node_angular_out[world, node] = angular
                node_linear_out[world, node] = linear + qvel_in[world, dof] * axis
            else:
                local = jnt_axis[world % jnt_axis.shape[0], i]
                if kind == _BALL:
                    turn = _rotate(quat, vec3_at(qvel_in, world, dof))
                else:
                    turn = qvel_in[world, dof] * _rotate(quat, local)
                anchor = _rotate(quat, jnt_pos[world % jnt_pos.shape[0], i])
                arm = origin - node_pos_in[world, node] - anchor
                node_angular_out[world, node] = angular + turn
                node_linear_out[world, node] = linear + wp.cross(turn, arm)


@wp.kernel
def _body_velocities(
    # Model:
    body_rootid: wp.array[int],
    body_node: wp.array[int],
    node_root: wp.array[int],
    # In:
    node_pos_in: wp.array2d[wp.vec3],
    node_angular_in: wp.array2d[wp.vec3],
    node_linear_in: wp.array2d[wp.vec3],
    subtree_com_in: wp.array2d[wp.vec3],
    # Out:
    cvel_out: wp.array2d[wp.spatial_vector],
):
    """Twist of every body about the centre of mass of its tree."""
    world, body = wp.tid()
    node = body_node[body]
    turn = node_angular_in[world, node]
    arm = subtree_com_in[world, body_rootid[body]] - node_pos_in[world, node_root[node]]
    cvel_out[world, body] = wp.spatial_vector(
        turn, node_linear_in[world, node] + wp.cross(turn, arm)
    )


class Kinematics:
    """Kinematics of `nworld` states of a model, and their adjoint, on memory of their own.

    Args:
        m: the model on the device.
        nworld: number of worlds.
        fields: which of `FIELDS` are wanted; the others are not computed.

    Attributes:
        values: what was asked for, by name: arrays (nworld, nbody or nsite).
        adj: their cotangents, of the same shapes.

    Raises:
        ValueError: a field is not one of `FIELDS`.
    """

    def __init__(self, m: mjw.Model, nworld: int, fields: Iterable[str]) -> None:
        fields = tuple(fields)
        unknown = [field for field in fields if field not in FIELDS]
        if unknown:
            raise ValueError(f"Kinematics: {unknown} are not among {list(FIELDS)}")
        self.m = m
        self.nworld = nworld
        self.device = m.qpos0.device
        with wp.ScopedDevice(self.device):
            self._tree(m)
            needed = set(fields)
            needed |= {"subtree_com"} if needed & {"cinert", "cvel"} else set()
            self._arrays = self._allocate(needed)
            self._adj = self._allocate(needed)
            self._launches = self._plan(needed)
        self.values = {field: self._arrays[field] for field in fields}
        self.adj = {field: self._adj[field] for field in fields}

    def _tree(self, m: mjw.Model) -> None:
        """Lay out the nodes, see the module docstring."""
        parentid, rootid = (x.numpy() for x in (m.body_parentid, m.body_rootid))
        jntnum, jntadr, jnt_type = (x.numpy() for x in (m.body_jntnum, m.body_jntadr, m.jnt_type))
        kinds, ids, parents, roots, last = [int(_FRAME)], [0], [0], [0], [0]
        for body in range(1, m.nbody):
            joints = range(jntadr[body], jntadr[body] + jntnum[body])
            parents += [last[parentid[body]], *range(len(kinds), len(kinds) + len(joints))]
            kinds += [int(_FRAME), *(int(jnt_type[j]) for j in joints)]
            ids += [body, *joints]
            last.append(len(kinds) - 1)
            roots += [last[rootid[body]]] * (1 + len(joints))
        end = np.arange(1, m.nbody + 1)
        for body in reversed(range(1, m.nbody)):
            end[parentid[body]] = max(end[parentid[body]], end[body])
        self.nnode = len(kinds)
        self.node_type, self.node_id, self.node_parent, self.node_root = (
            wp.array(x, dtype=int) for x in (kinds, ids, parents, roots)
        )
        self.body_node = wp.array(last, dtype=int)
        self.body_treeend = wp.array(end, dtype=int)

    def _allocate(self, needed: set[str]) -> dict[str, wp.array]:
        """Arrays of the fields and of what leads to them."""
        shapes = {
            "node_pos": (wp.vec3, self.nnode),
            "node_quat": (wp.vec4, self.nnode),
            "xpos": (wp.vec3, self.m.nbody),
            "xipos": (wp.vec3, self.m.nbody),
        }
        for field in needed:
            dtype, size = FIELDS[field]
            shapes[field] = (dtype, getattr(self.m, size))
        if "cvel" in needed:
            shapes |= {name: (wp.vec3, self.nnode) for name in ("node_angular", "node_linear")}
        return {
            name: wp.zeros((self.nworld, columns), dtype=dtype)
            for name, (dtype, columns) in shapes.items()
        }

    def _plan(self, needed: set[str]) -> list[tuple]:
        """(kernel, dim, model's arguments, names of inputs, names of outputs), in order."""
        m, n = self.m, self.nworld
        nodes = (self.node_type, self.node_id, self.node_parent)
        bodies = (n, m.nbody)
        joints = (m.qpos0, m.body_pos, m.body_quat, m.jnt_qposadr, m.jnt_pos, m.jnt_axis)
        poses = ("node_pos", "node_quat")
        plan: list[tuple] = [
            (_poses, n, (*joints, *nodes), ("qpos",), poses),
            (_bodies, bodies, (m.body_ipos, self.body_node), poses, ("xpos", "xipos")),
        ]
        if "site_xpos" in needed:
            sites = (m.site_bodyid, m.site_pos, self.body_node)
            plan.append((_sites, (n, m.nsite), sites, poses, ("site_xpos",)))
        if "subtree_com" in needed:
            masses = (m.body_mass, m.body_subtreemass, self.body_treeend)
            plan.append((_centers, bodies, masses, ("xipos",), ("subtree_com",)))
        if "cinert" in needed:
            inertias = (m.body_rootid, m.body_mass, m.body_inertia, m.body_iquat, self.body_node)
            reads = ("node_quat", "xipos", "subtree_com")
            plan.append((_inertias, bodies, inertias, reads, ("cinert",)))
        if "cvel" in needed:
            moving = ("node_angular", "node_linear")
            joints = (m.jnt_dofadr, m.jnt_pos, m.jnt_axis, *nodes, self.node_root)
            plan.append((_velocities, n, joints, ("qvel", *poses), moving))
            tree = (m.body_rootid, self.body_node, self.node_root)
            reads = ("node_pos", *moving, "subtree_com")
            plan.append((_body_velocities, bodies, tree, reads, ("cvel",)))
        return plan

    def launch(self, qpos: wp.array, qvel: wp.array) -> None:
        """Compute `values`.

        Args:
            qpos: (nworld, nq); its quaternions need not be normalised.
            qvel: (nworld, nv).
        """
        arrays = self._arrays | {"qpos": qpos, "qvel": qvel}
        for kernel, dim, model, reads, writes in self._launches:
            wp.launch(
                kernel,
                dim=dim,
                inputs=[*model, *(arrays[name] for name in reads)],
                outputs=[arrays[name] for name in writes],
                device=self.device,
            )

    def zero_adj(self) -> None:
        """Begin with cotangents of zero."""
        for array in self._adj.values():
            array.zero_()

    def launch_vjp(
        self, qpos: wp.array, qvel: wp.array, adj_qpos: wp.array, adj_qvel: wp.array
    ) -> None:
        """Add what `adj` means for the state, after `launch` of that state.

        `adj` is used up: call `zero_adj` before it is filled again.

        Args:
            qpos: (nworld, nq).
            qvel: (nworld, nv).
            adj_qpos: cotangent of qpos by its components, (nworld, nq), accumulated.
            adj_qvel: cotangent of qvel, (nworld, nv), accumulated.
        """
        arrays = self._arrays | {"qpos": qpos, "qvel": qvel}
        adj = self._adj | {"qpos": adj_qpos, "qvel": adj_qvel}
        for kernel, dim, model, reads, writes in reversed(self._launches):
            wp.launch(
                kernel,
                dim=dim,
                inputs=[*model, *(arrays[name] for name in reads)],
                outputs=[arrays[name] for name in writes],
                adj_inputs=[*(None for _ in model), *(adj[name] for name in reads)],
                adj_outputs=[adj[name] for name in writes],
                device=self.device,
                adjoint=True,
            )
