"One frozen language model, a LoRA of its own for every client, and a graph that says who learns from whom."
__version__ = "0.1.0"

def __getattr__(name):
    "Anything a module exports, imported when it is first asked for: `from fedai import FedConfig` loads no torch."
    from importlib import import_module
    from fedai._modidx import d
    if name == '__all__': return [o for o in __dir__() if not o.startswith('_')]
    for module,symbols in d['syms'].items():
        if f'{module}.{name}' in symbols: return getattr(import_module(module), name)
    raise AttributeError(f"module 'fedai' has no attribute {name!r}")

def __dir__():
    from fedai._modidx import d
    names = {s.removeprefix(f'{module}.').split('.')[0] for module,symbols in d['syms'].items() for s in symbols}
    return sorted({o for o in names if not o.startswith('_')} | set(globals()))
