"""Towards Understanding SGD: the code behind the course.

Read the modules in the order in which they import each other: ``data`` and ``models``, then
``train``, ``train_many``, ``parallel``, ``sample_gradients``, ``objective``, ``toys``,
``sharpness``, ``curvature``, ``landscape``, ``noise``, ``equilibrium``, ``sde``,
then ``report``, ``studies``, ``results``, ``figures``, ``widgets``, ``explorables``,
``exercises``.
"""

__version__ = "0.2.0"
