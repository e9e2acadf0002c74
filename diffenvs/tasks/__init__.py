"""The tasks, one file each; `diffenvs.TASKS` lists them and `diffenvs.task` says what one is."""
