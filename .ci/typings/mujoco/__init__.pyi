# MuJoCo's classes and functions are compiled and come without type information.
from typing import Any

def __getattr__(name: str) -> Any: ...
