"""MJCF models of the diffenvs tasks, one file per task.

The models of Hopper, HalfCheetah and Ant state the same physics as Gymnasium's models of those
names (a test compares them number by number), in files of our own. Read them as package data::

    from importlib.resources import files

    xml = files("envs_assets").joinpath("ant.xml").read_text()
"""
