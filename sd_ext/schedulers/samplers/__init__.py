"""The samplers, one file per family: a function from noise levels to a table, the scheduler classes under Diffusers'
names where the sampler is the same, and what is known about each.

auto         the recommended sampler
first_order  DDIM, Euler, Euler a               ddpm        DDPM with its variances
heun         Heun, Heun++, DPM2, DPM2 a         adams       PLMS, PNDM, iPNDM, gradient estimation
dpm_solver   DPM-Solver(++) multistep and SDE   singlestep  DPM-Solver(++) singlestep, DPM fast
exponential_rk  DPM++ 2S a and SDE, SEEDS, RES  res_multistep  RES multistep
deis         LMS, DEIS
etd_rk       exponential Runge-Kutta, Lawson          exponential_adams  ABNorsett
runge_kutta  midpoint to RK4 and Dormand-Prince      bdia        BDIA
inverse      from a picture to noise: DDIM, DPM-Solver++
unipc        UniPC                              sa_solver   SA-Solver and its PECE form
er_sde       ER-SDE                             restart     Restart
consistency  LCM, TCD                           flow        Euler and Heun for flow matching
cfg_plus_plus  CFG++ forms, of two fields
churn        what Euler and Heun with churn and Restart share

A family is its file, with its scheduler classes in `__all__` and its samplers in `SAMPLERS`, and its line below.
"""

from types import ModuleType

# In the order in which `list_samplers` lists them.
# isort: off
from .auto import *
from .ddpm import *
from .first_order import *
from .heun import *
from .runge_kutta import *
from .adams import *
from .deis import *
from .dpm_solver import *
from .singlestep import *
from .exponential_rk import *
from .etd_rk import *
from .res_multistep import *
from .exponential_adams import *
from .unipc import *
from .sa_solver import *
from .er_sde import *
from .restart import *
from .inverse import *
from .bdia import *
from .consistency import *
from .flow import *
from .cfg_plus_plus import *
# isort: on

_names = list(globals())
_modules = [value for value in globals().values() if isinstance(value, ModuleType) and hasattr(value, "SAMPLERS")]

FAMILIES = sorted(_modules, key=lambda family: _names.index(family.__all__[0]))
"""The modules above, in that order: a module may be here before its line, loaded by another, its classes are not."""

__all__ = [name for family in FAMILIES for name in family.__all__]  # pyright: ignore[reportUnsupportedDunderAll]
