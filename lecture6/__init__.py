"""Towards Understanding SGD: the code behind the course.

Read the modules in the order in which they import each other: ``data`` and ``models``, then
``train``, ``objective``, ``sharpness``, ``landscape``, ``report``, ``figures``, ``widgets``.
"""

__version__ = "0.1.0"
