"""What can only go together: the channels that several layers share, and whole residual branches.

found = channels(model); units = found.reduce(scores); found.expand({group: s > 0.1 for group, s in units.items()})
"""

from pai_lab.catalog import register
from pai_lab.coupled.branches import blocks
from pai_lab.coupled.tracing import channels
from pai_lab.coupled.units import Coupled

__all__ = ["Coupled", "blocks", "channels"]

register(
    "structure", "channel", structure="a channel with all that is coupled: bias, BatchNorm, inputs of the next layers",
    family="structured", year=2023, paper="Fang et al., DepGraph", defaults={"coupled": True},
)(channels)  # fmt: skip
register(
    "structure", "block", structure="a whole residual branch F of x + F(x)", family="structured", year=2016,
    paper="Huang et al., Deep networks with stochastic depth", defaults={"coupled": True},
)(blocks)  # fmt: skip
