"""The explorables: pictures that answer while you move a slider; they run in JupyterLab and as saved pages.

pai.explore.playground(method="synflow", sparsity=0.95)
"""

from pai_lab.explore.playground import playground

__all__ = ["playground"]
