"A default stands in one place: what the help says of it in words, and parameters that mean the same, agree with it."
import inspect, re, subprocess, sys
import pytest, torch, yaml
from importlib import import_module
from pathlib import Path
from fedai.config import FedConfig, dump_config, field_help, load_config, server_optimizers
from fedai.engines import group_limit
from fedai.evaluate.metrics import text_scores
from fedai.servers import Server_mira
from fedai.store.steps import server_step
from fedai.train.tasks import round_lr
from conftest import client_data

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import rooms

HELP = field_help()
def text(k): return HELP[k][3]
def number(pattern, k): return float(re.search(pattern.replace('#', r'([\d.]+)'), text(k))[1])

def test_coupling_when_neither_is_given(make_cfg):
    default = FedConfig.__dataclass_fields__['coupling'].metadata['if_neither']
    assert number('# when neither is given', 'coupling') == HELP['coupling'][2] == default
    cfg = make_cfg()
    for c in (cfg, make_cfg(lambda_=None, coupling=None)): assert (c.lambda_,c.coupling) == (None,default)
    s,t = [Server_mira(c, client_data(4), callbacks=[]) for c in (cfg, make_cfg(coupling=default))]
    assert (s.mixing_matrix(range(4), 0) == t.mixing_matrix(range(4), 0)).all()

def test_a_config_on_disk_has_what_was_used(tmp_path):
    for kw,said in ((dict(), dict(lambda_=None, coupling=HELP['coupling'][2])), (dict(lambda_=.3), dict(lambda_=.3, coupling=None))):
        (tmp_path/'c.yaml').write_text(dump_config(FedConfig(**kw)))
        plain = yaml.safe_load((tmp_path/'c.yaml').read_text())   # by anybody's YAML
        assert {k: plain[k] for k in said} == said and list(plain) == list(HELP)
        assert load_config(tmp_path/'c.yaml') == FedConfig(**kw)

def test_the_servers_optimisers():
    "Defaults that `server_step` has, as the help has them."
    given = {k: p.default for k,p in inspect.signature(server_step).parameters.items()}
    said = dict(re.findall(r'`(\w+)` \[([\d.]+)\]', text('server_optimizer_args')))
    assert {k: float(v) for k,v in said.items()} == {k: given[k] for k in said}
    assert set(said) == {k for ks in server_optimizers.values() for k in ks}
    for kind in server_optimizers:
        def step(**kw): return server_step(kind, {'w': torch.tensor([.5])}, **kw)[0]['w']
        lr = number('# for momentum' if kind == 'momentum' else '# for the adaptive ones', 'server_lr')
        assert step() == step(lr=lr) != step(lr=2*lr)
        for k in server_optimizers[kind]: assert k in given
    for k in said:   # "`tau` for adagrad, yogi and adam": those that take it, or no word of them for what all take
        named = re.search(rf'`{k}` \[[^]]*\](?: for ([^;]*))?', text('server_optimizer_args'))[1] or ' '.join(server_optimizers)
        assert set(re.findall(r'\w+', named)) - {'and'} == {kind for kind,ks in server_optimizers.items() if k in ks}

def test_other_numbers_in_words():
    assert group_limit(FedConfig(memory_gb=100.), torch.device('cpu'), 4) == number('up to #,', 'clients_per_batch')
    for kind in ('linear','cosine'):   # "a tenth of `lr`"
        assert round_lr(FedConfig(lr=1., lr_schedule=kind, rounds=7), 6) == pytest.approx(.1)
    metrics = set(FedConfig.__dataclass_fields__['cross'].metadata['choices'])
    assert metrics - {'','loss','accuracy','score','choice_accuracy','choice_accuracy_norm'} == set(text_scores(['7'], ['7']))

SAME = ('max_alive','template','system_prompt','max_length','on_bad','seed','keep_rounds','keep_trained','renormalize')

def functions():
    "Exported functions and the methods of exported classes."
    for name in rooms.modules():
        mod = import_module(f'fedai.{name}')
        for s in mod.__all__:
            o = getattr(mod, s)
            if inspect.isfunction(o): yield f'{name}.{s}',o
            if not inspect.isclass(o) or o is FedConfig: continue
            for k,v in vars(o).items():
                if inspect.isfunction(v): yield f'{name}.{s}.{k}',v

def test_parameters_that_mean_what_a_field_does():
    found = {(n,p.name): p.default for n,f in functions() for p in inspect.signature(f).parameters.values()
             if p.name in SAME and p.default is not p.empty}
    assert {k for _,k in found} == set(SAME)   # each is there, or there is nothing to compare
    assert found == {(n,k): HELP[k][2] for n,k in found}

def test_the_config_loads_nothing_heavy():
    code = "import sys, fedai.config as c; c.field_help(); print({'torch','numpy','transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == 'set()'
