"""Towards Understanding SGD: the code behind the course.

The core is read in the order of README's table, and the wings ``parallel``, ``studies`` and
``course`` stand on it.
"""

__version__ = "0.2.0"
