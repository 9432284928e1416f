"""Networks with the published parameter names; they import torch and numpy only, so they load on a laptop."""
