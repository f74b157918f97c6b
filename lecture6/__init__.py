"""Towards Understanding SGD: the code behind the course.

The core is read in the order in which its modules import each other: ``checks``, ``data``,
``models``, ``device``, ``team``, ``schedules``, ``evaluation``, ``checkpoints``, ``train``,
``train_many``, ``sample_gradients``, ``objective``, ``toys``, ``curvature``, ``sharpness``,
``landscape``, ``noise_scale``, ``noise``, ``equilibrium``, ``sde``, ``provenance``. The wings
``parallel``, ``studies`` and ``course`` stand on it.
"""

__version__ = "0.2.0"
