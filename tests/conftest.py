import os
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import matplotlib
matplotlib.use('agg')
import pytest
from hypothesis import settings
from fedai.config import FedConfig

# the same examples in every run, so that a failure can be repeated; `HYPOTHESIS_PROFILE=default` draws new ones
settings.register_profile('same', derandomize=True)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'same'))

TASKS = {'gcd': dict(min_value=2, max_value=30), 'products': dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1)}

def sums(k, n=12, start=0):
    "Examples that no other client has, without reasoning-gym."
    return [dict(instruction=f'{i} + {100*k} =', output=str(i + 100*k), task=f'plus{k%2}') for i in range(start, start+n)]

def client_data(num_clients): return [{'train': sums(k), 'test': sums(k, 4, start=50)} for k in range(num_clients)]

@pytest.fixture
def make_cfg(tmp_path):
    "Configs for runs of the tiny model, each in a folder of its own unless told otherwise."
    count = iter(range(1000))
    def make(**kwargs):
        base = dict(model='tiny', device='cpu', num_clients=4, rounds=2, local_step=2, batch_size=3, max_new_tokens=4, r=4,
                    output_dir=str(tmp_path/f'run{next(count)}'))
        return FedConfig(**{**base, **kwargs})
    return make
