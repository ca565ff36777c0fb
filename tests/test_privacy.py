"Clipping, noise and the account at a site."
import json, math
import numpy as np, pytest, torch
from conftest import client_data
from fedai.config import ConfigError, FedConfig
from fedai.models import get_model
from fedai.remote.flower import central, meet
from fedai.remote.privacy import BudgetSpent, Privacy
from fedai.remote.trainer import Trainer
from fedai.train.live import LiveState

pytest.importorskip('opacus')

@pytest.fixture(scope='module')
def rows():
    live = LiveState(get_model(FedConfig(model='tiny', r=4)))
    gen = torch.Generator().manual_seed(0)
    trained = live.row.clone()
    for t in live.layout.views(trained).values(): t += .01*torch.randn(t.shape, generator=gen)
    return live,live.row.clone(),trained

def update(live, a, b): return {n: live.layout.views(b)[n].double() - live.layout.views(a)[n].double() for n in live.tensors}

@pytest.mark.parametrize('clip', [.05,.3,5.])
def test_clipping_in_float64(rows, clip):
    live,sent,trained = rows
    u = update(live, sent, trained)
    length = math.sqrt(sum(t.square().sum().item() for t in u.values()))
    got = update(live, sent, Privacy(clip)(sent, trained, live.layout, set(live.tensors)))
    for n in u: assert (got[n] - u[n]*min(1, clip/length)).abs().max() < 1e-7
    assert math.sqrt(sum(t.square().sum().item() for t in got.values())) <= clip*(1 + 1e-5) or length <= clip

def test_only_what_was_trained_leaves_changed(rows):
    live,sent,trained = rows
    names = {n for n in live.tensors if 'lora_B' in n}
    got = update(live, sent, Privacy(1., .01, most=100.)(sent, trained, live.layout, names))
    assert all((got[n] != 0).any() == (n in names) for n in got)

def test_noise_is_gaussian_and_new_each_time(rows):
    live,sent,trained = rows
    clipped = Privacy(.5)(sent, trained, live.layout, set(live.tensors))
    p = Privacy(.5, .2, most=100.)
    def drawn():
        new = update(live, clipped, p(sent, trained, live.layout, set(live.tensors)))
        return torch.cat([t.flatten() for t in new.values()]).numpy()
    noise = np.stack([drawn() for _ in range(20)])/(.5*.2)
    n = noise.size
    assert abs(noise.mean()) < 5/n**.5
    assert abs(noise.var() - 1) < 5*(2/n)**.5
    assert abs((noise**4).mean() - 3) < 5*(96/n)**.5
    assert abs((np.abs(noise) > 1.959964).mean() - .05) < 5*(.0475/n)**.5
    C = np.corrcoef(noise)
    assert np.abs(C[~np.eye(20, dtype=bool)]).max() < 5/noise.shape[1]**.5
    state = torch.get_rng_state(),np.random.get_state()[1].copy()
    p(sent, trained, live.layout, set(live.tensors))
    # drawn from nothing that a seed decides
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()

def test_the_account_outlives_the_process(rows, tmp_path):
    live,sent,trained = rows
    path = tmp_path/'account.json'
    def release(p): return p(sent, trained, live.layout, set(live.tensors))
    p = Privacy(1., .1, path=path)
    release(p)
    release(p)
    q = Privacy(1., .15, path=path, epsilon=p.spent() + Privacy(1., .15).spent(2) )
    release(q)
    assert json.loads(path.read_text())['steps'] == [[.1,2],[.15,1]] and q.spent() > p.spent() > Privacy(1., .1).spent(1) > 0
    tight = Privacy(1., .15, path=path, epsilon=q.spent(1)*1.0001)
    release(tight)
    before = path.read_bytes()
    with pytest.raises(BudgetSpent, match='and the budget is'): release(tight)
    assert path.read_bytes() == before   # nothing left, nothing is charged
    with pytest.raises(ConfigError, match='`epsilon`: expected more than'): Privacy(1., .15, path=path, epsilon=tight.epsilon)
    path.write_text('{"steps": [[0.1, ')
    with pytest.raises(ConfigError, match='`privacy`: expected an account that can be read'): Privacy(1., .1, path=path)

def test_two_that_use_one_account(rows, tmp_path):
    "As two federations with one site's key: what either releases counts for both, and a file that says less takes nothing back."
    live,sent,trained = rows
    path = tmp_path/'account.json'
    def release(p): return p(sent, trained, live.layout, set(live.tensors))
    a,b = (Privacy(1., .1, path=path, epsilon=Privacy(1., .1).spent(5)*1.0001) for _ in range(2))
    for p in (a,b,b,a): release(p)
    assert json.loads(path.read_text())['steps'] == [[.1,4]]
    path.write_text('{"steps": [[0.1, 1]]}')
    release(a)
    path_says = json.loads(path.read_text())['steps']
    with pytest.raises(BudgetSpent): release(b)
    assert path_says == [[.1,5]] == json.loads(path.read_text())['steps']
    (tmp_path/'file').touch()
    with pytest.raises(ConfigError, match='`privacy`: expected an account in a folder that can be written'):
        Privacy(1., .1, path=tmp_path/'file'/'account.json')

def test_charged_before_it_leaves(rows, tmp_path, monkeypatch):
    live,sent,trained = rows
    path = tmp_path/'account.json'
    p = Privacy(1., .1, path=path)
    monkeypatch.setattr('fedai.remote.privacy.secrets.randbits', lambda n: 1/0)   # stopped right after
    with pytest.raises(ZeroDivisionError): p(sent, trained, live.layout, set(live.tensors))
    assert json.loads(path.read_text())['steps'] == [[.1,1]]

@pytest.mark.parametrize('args,why', [
    (dict(clip=0), '`clip`'), (dict(clip=math.nan), '`clip`'), (dict(clip=True), '`clip`'),
    (dict(clip=1., noise=-1), '`noise`'), (dict(clip=1., noise='1'), '`noise`'), (dict(clip=1., noise=1., delta=1.), '`delta`'),
    (dict(clip=1., epsilon=1.), '`epsilon`: expected noise above 0'), (dict(clip=1., noise=1., epsilon=0), '`epsilon`'),
    (dict(clip=1., most=0), '`most`')])
def test_wrong_settings(args, why):
    with pytest.raises(ConfigError, match=why): Privacy(**args)

def test_in_a_run(make_cfg, tmp_path):
    "A site with noise that drowns its update, or no budget left, is left out; clipped ones move by C at most."
    from test_flower import Grid
    data = client_data(3)
    privacies = [Privacy(.01), Privacy(1., 2.), Privacy(1., .1, epsilon=Privacy(1., .1).spent(1)*1.01, path=tmp_path/'a.json')]
    grid = Grid({10+k: Trainer(d, FedConfig(device='cpu'), privacy=p) for k,(d,p) in enumerate(zip(data, privacies))})
    clients = [dict(name=f's{k}', node=10+k) for k in range(3)]
    meet(grid, clients, 0)
    s = central(make_cfg(num_clients=3, rounds=2, name='local', lr=1e-2), clients, grid, [])
    h = s.fit()
    assert [r['selected'] for r in h] == [[0,2],[0]]
    assert h[0]['failed'] == {'1': 'ConfigError at the site, whose log says more'}
    assert h[1]['failed']['2'] == 'BudgetSpent at the site, whose log says more'
    start,a,b = (s.store.layout.views(r) for r in (s.store.load_row(0, 0), s.store.load_row(0, 1), s.store.load_row(0, 2)))
    def distance(old, new): return math.sqrt(sum((new[n].double() - old[n].double()).square().sum().item() for n in new))
    for old,new in ((start,a),(a,b)): assert distance(old, new) == pytest.approx(.01, rel=1e-3)
