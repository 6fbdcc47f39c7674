"""Python's `random` in machines that are forked alive.

Two branches of a machine have the same processes, and with them the same generators: what the
module `random` draws next is the same in both. This lets it start anew whenever the machine's
generation is another one (/run/pando/generation, which the guest's agent changes in a branch and
in its parent before anybody can reach them): that is looked at before each draw.

Installed as a module beside pando_random.pth, which imports it whenever Python starts. It costs a
look at 16 bytes a draw (some tenths of a microsecond), and nothing where `random` is not imported. Where somebody has seeded a
generator by hand, to get the same numbers again, it is left alone until the generation changes.

Only the functions of the module are meant. Instances of random.Random of one's own, numpy and other
libraries keep generators that this cannot know: reseed those in a hook or when the file changes.
"""

import importlib.machinery
import mmap
import os
import sys

GENERATION = os.environ.get("PANDO_GENERATION_FILE", "/run/pando/generation")
LENGTH = 32


def _generation():
    """The generation's bytes as the agent writes them, live; None where there is no agent."""
    try:
        fd = os.open(GENERATION, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(fd).st_size < LENGTH:
            return None
        return mmap.mmap(fd, LENGTH, mmap.MAP_SHARED, mmap.PROT_READ)
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def _watch(module):
    now = _generation()
    if now is None:
        return

    # The first 16 of the hex digits as two numbers: compared without making an object of them.
    digits = memoryview(now).cast("Q")
    random, getrandbits = module.Random.random, module.Random.getrandbits
    gauss, seed = module.Random.gauss, module.Random.seed

    class Generator(module.Random):
        low, high = digits[0], digits[1]

        def _anew(self):
            self.low, self.high = digits[0], digits[1]
            seed(self)

        def random(self):
            if digits[0] != self.low or digits[1] != self.high:
                self._anew()
            return random(self)

        def getrandbits(self, k):
            if digits[0] != self.low or digits[1] != self.high:
                self._anew()
            return getrandbits(self, k)

        def gauss(self, *args, **kwargs):
            # It keeps every second number; seed() forgets that.
            if digits[0] != self.low or digits[1] != self.high:
                self._anew()
            return gauss(self, *args, **kwargs)

    new = Generator()
    old = module._inst
    for name in dir(module):
        value = getattr(module, name)
        if getattr(value, "__self__", None) is old:
            setattr(module, name, getattr(new, name))
    module._inst = new


class _Loader:
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        try:
            _watch(module)
        except Exception:  # a `random` that is not the one we know works as it is
            pass


class _Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "random":
            return None
        sys.meta_path.remove(cls)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader)
        return spec


if "random" in sys.modules:
    _watch(sys.modules["random"])
else:
    sys.meta_path.insert(0, _Finder)
