"Sums of which the server sees the sum only: the algebra, the protocol, and whole runs beside those that have all adapters in one place."
import importlib.util, json, re, shutil
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from conftest import client_data
from fedai.algorithms import get_server
from fedai.config import ConfigError, FedConfig
from fedai.graphs import average_matrix, complete_graph, mira_matrix
from fedai.remote.flower import central, meet
from fedai.remote.messages import pack, unpack
from fedai.remote.privacy import Privacy
from fedai.remote.secure import Member, checked_keys, sum_of
from fedai.remote.sums import even_groups
from fedai.remote.trainer import Trainer
from fedai.store.rows import read_row
from test_flower import Grid

pytestmark = pytest.mark.skipif(importlib.util.find_spec('flwr') is None, reason='needs Flower')

# which graphs

@st.composite
def blocks(draw):
    "Sizes of groups, one weight for each, and an order of the clients."
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    return sizes,[draw(st.floats(.01, 1)) for _ in sizes],draw(st.permutations(range(sum(sizes))))

@given(blocks(), st.floats(.001, .15))
@settings(max_examples=60, deadline=None)
def test_clients_make_the_same_step_from_sums(case, s):
    "a W_k + (1-a) Σ w_l W_l, by hand, is M W; for MIRA on evenly joined groups in any order."
    sizes,weights,order = case
    A,at = np.zeros((len(order),)*2),0
    for n,g in zip(sizes, weights):
        A[at:at+n,at:at+n] = g*(1 - np.eye(n))
        at += n
    M = mira_matrix(A[np.ix_(order, order)], s)
    groups,W = even_groups(M),np.random.default_rng(0).normal(size=(len(order), 3))
    assert sorted(len(at) for at,_,_ in groups) == sorted(sizes)
    assert sorted(i for at,_,_ in groups for i in at) == list(range(len(order)))
    out = np.full_like(W, np.nan)
    for at,w,a in groups:
        mean = sum(w[k]*W[i] for k,i in enumerate(at))
        for i in at: out[i] = a*W[i] + (1-a)*mean
    assert np.allclose(out, M@W, rtol=0, atol=1e-10)

@given(st.integers(3, 6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_uneven_graphs_are_refused(n, seed):
    rng = np.random.default_rng(seed)
    A = complete_graph(n)*.3
    i,j = rng.choice(n, 2, replace=False)
    A[i,j] = A[j,i] = rng.choice([0, .29, .31, 1.])
    with pytest.raises(ValueError, match='joined unevenly'): even_groups(mira_matrix(A, .1))
    M = average_matrix(rng.uniform(1, 9, n))
    M[0] = np.roll(M[0], 1)
    with pytest.raises(ValueError, match='joined unevenly'): even_groups(M)
    uneven = .5*np.eye(n) + .5*average_matrix(np.arange(1, n+1))   # a of one's own, and weights: then nobody knows the mean of the results
    with pytest.raises(ValueError, match='joined unevenly'): even_groups(uneven)

# the protocol

class Net:
    "Members and what they say; `gone`: client -> the message from which on it is lost."
    def __init__(self, values, w, gone=None):
        self.values,self.w,self.gone,self.log = values,w,gone or {},{}
        self.members = {i: Member(i) for i in range(len(values))}
    order = ('shares','mask','open')
    def exchange(self, op, says, check):
        got = {}
        for i,o in says.items():
            if self.order.index(op) >= self.order.index(self.gone.get(i, 'open')) and i in self.gone: continue
            o,m = json.loads(json.dumps(o)),self.members[i]
            num = lambda d: {int(k): v for k,v in d.items()}
            if op == 'shares': say,arrays = dict(shares=m.shares(num(o['keys']), o['least'])),{}
            elif op == 'mask': say,arrays = {},dict(masked=m.masked(num(o['shares']), self.values[i], o['weight']))
            else: say,arrays = m.open(o['there']),{}
            self.log[op,i] = say,arrays
            got[i] = check(i, json.loads(json.dumps(say)), arrays)
        return got
    def run(self): return sum_of({i: m.keys for i,m in self.members.items()}, self.w, self.values.shape[1], self.exchange)

@given(st.integers(3, 7), st.data())
@settings(max_examples=15, deadline=None)
def test_the_sum_is_that_of_who_is_there(n, data):
    "Against numpy in float64, whoever is lost at whichever message."
    gone = {i: data.draw(st.sampled_from(Net.order)) for i in data.draw(st.sets(st.integers(0, n-1), max_size=n-max(3, n//2+1)))}
    rng = np.random.default_rng(n)
    values,w = rng.normal(size=(n, 50))*rng.choice([1e-4,1,100]),dict(enumerate(rng.uniform(.1, 1, n)))
    there,mean = Net(values, w, gone).run()
    assert there == [i for i in range(n) if gone.get(i, 'open') == 'open']
    assert np.allclose(mean, np.average(values[there], axis=0, weights=[w[i] for i in there]), rtol=0, atol=n*2**-40)

def test_too_few_are_no_sum():
    values,w = np.ones((4, 5)),dict.fromkeys(range(4), .25)
    for op in Net.order:
        net = Net(values, w, {0: op, 2: op})
        with pytest.raises(ValueError, match=f'2 clients are left for a sum, of at least 3 .{op}'): net.run()
        assert not [k for k in net.log if k[0] == 'open'] or op == 'open'
    with pytest.raises(ValueError, match='2 clients are left for a sum, of at least 3$'): Net(values[:2], w).run()

def test_masks_hide():
    "The same values twice have nothing in common; and a client that is counted as lost can't be unmasked with what the others then say."
    values,w = np.random.default_rng(0).normal(size=(5, 20_000)),dict.fromkeys(range(5), .2)
    a,b = Net(values, w),Net(values, w, {4: 'mask'})
    a.run(); b.run()
    x,y = (n.log['mask',0][1]['masked'].view(np.uint8).astype(float) for n in (a,b))
    assert abs(np.corrcoef(x, y)[0,1]) < .02 and np.abs(np.bincount(x.astype(int), minlength=256)/len(x) - 1/256).max() < .001
    late = b.members[4].masked({i: b.log['shares',i][0]['shares'][4] for i in range(4)}, values[4], .2)   # comes after all
    assert all('4' not in map(str, b.log['open',i][0]['there']) and 4 in b.log['open',i][0]['lost'] for i in range(4))
    from fedai.remote.secure import _crypto, _mask
    shamir,enc,_,_,asym = _crypto()
    private = asym.bytes_to_private_key(shamir.combine_shares([bytes.fromhex(b.log['open',i][0]['lost'][4]) for i in range(3)]))
    for i in range(4):   # all that the server can take away
        late = late - _mask(enc.generate_shared_key(private, asym.bytes_to_public_key(b.members[i].keys[0].encode())), 20_000)
    assert abs(np.corrcoef(late.astype(float), values[4])[0,1]) < .03 and np.abs(late.view(np.int64)/2**40).max() > 1e5
    for i in range(4):
        with pytest.raises(ValueError, match='came before'): b.members[i].open([0,1,2,3,4])

def test_what_a_member_refuses():
    def ready(n=4):
        ms = [Member(i) for i in range(n)]
        keys = {m.me: m.keys for m in ms}
        return ms,keys
    ms,keys = ready()
    for bad in ({i: k for i,k in keys.items() if i}, {**keys, 0: keys[1]}, {**keys, 1: keys[2]}, {**keys, 1: [keys[1][0]]*2}):
        with pytest.raises(ValueError, match='keys: expected those of all'): ms[0].shares(bad, 3)
    for least in (2, 5):
        with pytest.raises(ValueError, match='least: expected'): ms[0].shares(keys, least)
    six = ready(6)[0][0]
    theirs = {**{i: Member(i).keys for i in range(1, 6)}, 0: six.keys}
    with pytest.raises(ValueError, match='least: expected'): six.shares(theirs, 3)   # half of them could open both of two sums
    two,both = ready(2)
    with pytest.raises(ValueError, match='least: expected 3 or more'): two[0].shares(both, 2)
    sealed = {m.me: m.shares(keys, 3) for m in ms}
    with pytest.raises(ValueError, match='came before'): ms[0].shares(keys, 3)
    with pytest.raises(ValueError, match='expected those of at least 2 others'): ms[0].masked({1: sealed[1][0]}, np.zeros(2), 1.)
    stranger = {7: sealed[1][0], 1: sealed[1][0], 2: sealed[2][0]}
    with pytest.raises(ValueError, match='expected those of at least 2 others'): ms[0].masked(stranger, np.zeros(2), 1.)
    with pytest.raises(Exception): ms[1].masked({0: sealed[0][2], 2: sealed[2][1]}, np.zeros(2), 1.)   # sealed for another
    ms,keys = ready()
    sealed = {m.me: m.shares(keys, 3) for m in ms}
    got = {i: sealed[i][0] for i in (1,2,3)}
    from fedai.remote.secure import _crypto
    _,enc,join,*_ = _crypto()
    for src,dst in ((2, 0), (1, 3)):   # what 1 sealed for 0, but it says otherwise
        false = enc.encrypt(ms[1].sealing[0], join(src, dst, b'b'*52, b'k'*52)).decode()
        with pytest.raises(ValueError, match='shares: expected those of 1 for 0'): ms[0].masked({**got, 1: false}, np.zeros(2), 1.)
        ms[0].held = {0: ms[0].held[0]}
    for v in (np.array([np.nan]), np.array([1024.]), np.array([-np.inf])):
        me = SimpleNamespace(held={0: 0}, pairs={1: b'', 2: b'', 3: b''}, least=3, sealing=ms[0].sealing, me=0, seed=b'')
        with pytest.raises(ValueError, match='expected finite numbers'): Member.masked(me, got, v, 1.)
    ms[0].masked(got, np.zeros(2), 1.)
    with pytest.raises(ValueError, match='came before'): ms[0].masked(got, np.zeros(2), 1.)
    for there in ([1,2,3], [0,1], [0,1,9]):
        with pytest.raises(ValueError, match='there: expected at least 3'): ms[0].open(there)
    no_key = '-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n'
    for bad in (None, [], ['x','y'], [1,2], keys[0][:1], [no_key]*2, ['x'*10**6]*2):
        with pytest.raises(ValueError, match='keys: expected two'): checked_keys(bad)
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric import ec
    weak = ec.generate_private_key(ec.SECP192R1()).public_key()
    weak = weak.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(ValueError, match='P-384'): checked_keys([weak, weak])

# runs

def federation(cfg, data, folder, spoil=None, **site):
    site = {'only_sums': True, **site}
    def trainer(k, d): return Trainer(d, FedConfig(device='cpu'), secret=bytes([k])*32, folder=folder/f's{k}', **site)
    grid = Grid({10+k: trainer(k, d) for k,d in enumerate(data)}, spoil)
    clients = [dict(name=f's{k}', node=10+k) for k in range(len(data))]
    meet(grid, clients, 0)
    return central(cfg.replace(secure_aggregation=True), clients, grid, []),grid

def numbers(row): return row.numpy().view(np.float32).astype(float)
def at_site(folder, k, store): return numbers(read_row(folder/f's{k}'/'adapter_model.safetensors', store.layout)[1])

groups = np.kron(np.eye(2), np.ones((3,3))) - np.eye(6)
runs = {
    'mira': dict(graph='complete', coupling=.4), 'two groups': dict(n=6, coupling=.3, A=groups),
    'a group and two alone': dict(n=5, coupling=.3, A=np.pad(groups[:3,:3], (0,2))),
    'only some take part': dict(n=6, graph='complete', coupling=.5, m=.5, rounds=4),
    'row': dict(graph='complete', normalise='row', lambda_=.3), 'schedule': dict(graph='complete', lambda_=.3, lr_schedule='linear'),
    'fedavg': dict(name='fedavg'), 'some of fedavg': dict(name='fedavg', n=5, m=.6, rounds=4), 'fedprox': dict(name='fedprox'),
    'fedsa': dict(name='fedsa'), 'ffa': dict(name='ffa'), 'rolora': dict(name='rolora'),
    'local': dict(name='local'), 'fedavg_ft': dict(name='fedavg_ft'), 'adam': dict(name='fedavg', server_optimizer='adam'),
    'ranks': dict(graph='complete', coupling=.4, ranks=[1,2,4]), 'ranks of one model': dict(name='fedavg', ranks=[1,2,4]),
}

@pytest.mark.parametrize('how', runs)
def test_the_adapters_at_the_sites_are_those_of_one_place(make_cfg, tmp_path, how):
    kw = dict(runs[how])
    n,A = kw.pop('n', 3),kw.pop('A', None)
    if A is not None:
        np.save(tmp_path/'A.npy', A)
        kw['graph'] = str(tmp_path/'A.npy')
    data = client_data(n)
    data[1]['train'] = data[1]['train'][:7]
    # Adam makes much of what rounding leaves of gradients that are next to nothing
    cfg = {**dict(num_clients=n, rounds=3, eval_every=2, optimizer='SGD', lr=.1), **kw}
    home = get_server(make_cfg(engine='sequential', **cfg), data, callbacks=[])
    home.fit()
    s,_ = federation(make_cfg(**cfg), data, tmp_path)
    s.fit()
    a,b = home.test(baselines=True),s.test(baselines=True)
    for i in range(n):
        own = at_site(tmp_path, i, home.store)
        assert np.abs(own - numbers(home.test_row(home.client_list[i]))).max() < 1e-6
        assert b[i]['loss'] == pytest.approx(a[i]['loss'], rel=1e-5)
    for r,q in zip(home.history, s.history):
        assert r['selected'] == q['selected'] and r['pull'] == q['pull'] and 'failed' not in q
        assert list(r['loss'].values()) == pytest.approx(list(q['loss'].values()), rel=1e-4)
        assert r.get('mean_test_loss', 0) == pytest.approx(q.get('mean_test_loss', 0), rel=1e-4)
    unknown = ('a group and two alone','only some take part','fedsa','local','fedavg_ft','ranks')   # the mean over what only the sites have
    assert ('average' in s.scorecard) == ('average' in home.scorecard and how not in unknown)
    if 'average' in s.scorecard:
        assert s.scorecard['average']['mean']['loss'] == pytest.approx(home.scorecard['average']['mean']['loss'], rel=1e-5)
    if how in ('mira','two groups'):   # it is not the server's
        assert max(np.abs(at_site(tmp_path, i, home.store) - numbers(s.store.load_row(i))).max() for i in range(n)) > 1e-4

def test_no_adapter_leaves_a_site(make_cfg, tmp_path):
    "Nothing of what was trained, in no message and in no file of the server; of the mean, everything."
    data,said = client_data(3),[]
    cfg = make_cfg(num_clients=3, rounds=2, graph='complete', coupling=.3, keep_trained=True, keep_rounds=9)
    s,_ = federation(cfg, data, tmp_path, lambda node, kind, r: said.append(r) or r)
    trained,real = [],s.engine.grid.trainers
    for t in real.values():
        keep = t._keep
        def spy(d, say, row, keep=keep):
            trained.append(np.array(row))
            keep(d, say, row)
        t._keep = spy
    s.fit()
    s.test(baselines=True)
    pieces = [r[k:k+64].tobytes() for r in trained for k in range(0, len(r)-64, 64)]
    assert len(trained) == 6 and len(set(pieces)) > 100
    zero = (s.store.path(0, 0)/'adapter_model.safetensors').read_bytes()
    pieces = [p for p in set(pieces) if p not in zero]   # what training changed
    files = [p.read_bytes() for p in Path(s.cfg.output_dir).rglob('*') if p.is_file()]
    assert len(pieces) > 50 and not any(p in b for p in pieces for b in [*said, *files])
    mean = np.mean([r.view(np.float32).astype(float) for r in trained[3:]], axis=0)
    assert np.abs(numbers(s.store.load_row(0)) - mean).max() < 1e-7

def losing(node, op, reply=None):
    "A spoiler: this node's answer to one kind of message, in round 1, is lost or changed."
    def spoil(grid_node, kind, r):
        say = unpack(r)[0] if r else {}
        has = {'train': 'keys', 'shares': 'shares', 'open': 'lost'}.get(op, 'round') in say and (op != 'mask' or set(say) == {'round'})
        is_it = grid_node == node and kind == 'train' and say.get('round') == 1 and has
        return (reply(*unpack(r)) if reply else 'lost') if is_it else r
    return spoil

@pytest.mark.parametrize('op', ['train','shares','mask','open'])
def test_one_is_lost_at_any_message(make_cfg, tmp_path, op):
    "The others go on without it, as they do where all is in one place; lost at the last message it is in the sum all the same."
    data = client_data(4)
    cfg = dict(num_clients=4, rounds=3, graph='complete', coupling=.4, optimizer='SGD', lr=.1)
    s,_ = federation(make_cfg(**cfg), data, tmp_path, losing(11, op))
    h = s.fit()
    home = get_server(make_cfg(engine='sequential', **cfg), data, callbacks=[])
    if op != 'open':
        from fedai.engines import Failure
        real = home.engine.train
        home.engine.train = lambda gs, t: (Failure(r.id, 'lost') if (r.id,t) == (1,1) else r for r in real(gs, t))
        assert h[1]['failed'] == {'1': 'error 5: lost'}
    else: assert not any('failed' in r for r in h)
    home.fit()
    s.test()
    for i in range(4): assert np.abs(at_site(tmp_path, i, home.store) - numbers(home.store.load_row(i))).max() < 1e-6

def noise(shape): return np.random.default_rng(0).integers(0, 2**64, shape, np.uint64)

hostile = {
    'no keys': ('train', lambda say, arrays: pack({k: v for k,v in say.items() if k != 'keys'}), 'keys: expected two', 0),
    'a key twice': ('train', lambda say, arrays: pack({**say, 'keys': say['keys'][:1]*2}), 'Error at the site', 3),
    'its adapter': ('train', lambda say, arrays: pack(say, **{'row/1': np.zeros(8, np.uint8)}), 'expected rows', 0),
    'no shares': ('shares', lambda say, arrays: pack(dict(round=1)), 'shares: expected a text', 0),
    'shares for others': ('shares', lambda say, arrays: pack({**say, 'shares': {**say['shares'], '1': 'x'}}), 'shares: expected a text', 0),
    'a long share': ('shares', lambda say, arrays: pack({**say, 'shares': dict.fromkeys(say['shares'], 'x'*10_000)}),
                     'shares: expected a text', 0),
    'shares that are none': ('shares', lambda say, arrays: pack({**say, 'shares': dict.fromkeys(say['shares'], 'x'*100)}),
                             'at the site|left for a sum', 3),
    'another length': ('mask', lambda say, arrays: pack(say, masked=arrays['masked'][:-1]), 'masked: expected', 0),
    'floats': ('mask', lambda say, arrays: pack(say, masked=arrays['masked'].astype(np.float64)), 'masked: expected', 0),
    'nothing masked': ('mask', lambda say, arrays: pack(say), 'masked: expected', 0),
    'noise': ('mask', lambda say, arrays: pack(say, masked=noise(arrays['masked'].shape)), 'a sum that can not be', 3),
    'far too long': ('mask', lambda say, arrays: bytes(10**6), 'of at most', 0),
    'no shares to open': ('open', lambda say, arrays: pack(dict(round=1, there={}, lost={})), None, 0),
    'wrong shares': ('open', lambda say, arrays: pack({**say, 'there': {k: v[:8] + '0'*len(v[8:]) for k,v in say['there'].items()}}),
                     '.', 3),
    'no hex': ('open', lambda say, arrays: pack({**say, 'there': dict.fromkeys(say['there'], 'zz')}), '.', 3),
}

@pytest.mark.parametrize('how', hostile)
def test_a_hostile_site_in_a_sum(make_cfg, tmp_path, how):
    "It is named, or the sum is refused; never is there something else in the states than a mean of adapters. The run goes on."
    op,reply,why,all = hostile[how]
    cfg = make_cfg(num_clients=7, rounds=3, name='mira', graph=str(_graph(tmp_path)), coupling=.3)
    s,_ = federation(cfg, client_data(7), tmp_path, losing(11, op, reply))
    h = s.fit()
    failed = h[1].get('failed', {})
    if why is None: assert not failed
    elif not all: assert list(failed) == ['1'] and re.search(why, failed['1']), failed
    else: assert set(failed) == {'0','1','2','3'} and re.search(why, failed['0']), failed
    assert h[1]['selected'] == [i for i in range(7) if str(i) not in failed] and 'failed' not in h[2]
    assert max(np.abs(numbers(s.store.load_row(i))).max() for i in range(7)) < 1

def _graph(tmp_path):
    A = np.zeros((7,7))
    A[:4,:4] = A[4:,4:] = 1
    np.fill_diagonal(A, 0)
    np.save(tmp_path/'A.npy', A)
    return tmp_path/'A.npy'

class Killed(BaseException): pass

def test_the_server_killed_between_the_sum_and_the_commit(make_cfg, tmp_path, capsys):
    "The same bits with all there; without one of them no second sum is opened, until it is back."
    data,cfg = client_data(4),dict(num_clients=4, rounds=3, graph='complete', coupling=.4)
    whole,_ = federation(make_cfg(**cfg), data, tmp_path/'whole')
    whole.fit()
    mine = make_cfg(**cfg)
    def begin(spoil=None): return federation(mine, data, tmp_path/'mine', spoil)[0]
    s = begin()
    real = s.save_trained
    def save_trained(id, t, *args):
        if t == 1 and id == 1: raise Killed
        real(id, t, *args)
    s.save_trained = save_trained
    with pytest.raises(Killed): s.fit()
    s = begin(lambda node, kind, r: 'gone' if node == 13 and kind == 'train' else r)
    capsys.readouterr()
    with pytest.raises(RuntimeError, match='round 2: 0 of 4 clients replied.*s0: ValueError at the site'): s.fit()
    assert 'the sum over clients [0, 1, 2, 3] of this round was opened before' in capsys.readouterr().err
    s = begin()
    s.fit()
    assert all(torch.equal(s.store.load_row(i), whole.store.load_row(i)) for i in range(4))
    s.test(); whole.test()
    for i in range(4): assert np.array_equal(at_site(tmp_path/'mine', i, s.store), at_site(tmp_path/'whole', i, s.store))

def test_a_site_that_lost_its_states_is_named(make_cfg, tmp_path, capsys):
    data,cfg = client_data(4),make_cfg(num_clients=4, rounds=1, graph='complete', coupling=.4)
    federation(cfg, data, tmp_path)[0].fit()
    shutil.rmtree(tmp_path/'s2')
    s,_ = federation(cfg.replace(rounds=2), data, tmp_path)
    capsys.readouterr()
    assert list(s.fit()[1]['failed']) == ['2']
    assert 'the state of round 1 is not in' in capsys.readouterr().err
    s.test()
    assert list(s.scorecard['untested']) == ['2']

def test_a_site_may_insist(make_cfg, tmp_path, capsys):
    """With `only_sums` it doesn't send what the server asks of it in the clear; without a folder it can't take part in sums; a server can't
    name its files."""
    t = Trainer(client_data(1)[0], FedConfig(device='cpu'), folder=tmp_path/'x', only_sums=True)
    e = federation(make_cfg(num_clients=3, graph='complete'), client_data(3), tmp_path)[0].engine
    say = e.say(0, 'train', ids=[0])
    row = e.server.store.load_row(0).numpy()
    def reply(say, trainer=None, **arrays):
        "What the site says, and what stands in its log."
        return unpack((trainer or t)(pack(say, **arrays)))[0],capsys.readouterr().err
    said,written = reply(say, **{'row/0': row})
    assert said == dict(error='ValueError') and 'with `--only-sums` at this site' in written
    assert 'keys' in reply({**say, 'sum': dict(took=None, own=0.)}, **{'row/0': row})[0]
    for took in ('../../../etc/x', -1, 1.5, True):
        said,written = reply({**say, 'sum': dict(took=took, own=0.)}, **{'row/0': row})
        assert 'error' in said and 'expected a number' in written
    said,written = reply(dict(op='mask', round=5, weight=1., shares={}))
    assert 'error' in said and 'no sum of this one' in written
    said,written = reply(dict(op='mask', round=0, weight=7., shares={}))
    assert 'error' in said and 'weight: expected' in written
    bare = Trainer(client_data(1)[0], FedConfig(device='cpu'))
    said,written = reply({**say, 'sum': dict(took=None, own=0.)}, bare, **{'row/0': row})
    assert 'error' in said and '`folder`' in written

def test_noise_before_the_sum(make_cfg, tmp_path):
    "A site's update is clipped before it is masked; what it goes on from is what it sent."
    data = client_data(3)
    s,_ = federation(make_cfg(num_clients=3, rounds=1, name='fedavg', lr=.05), data, tmp_path, privacy=Privacy(clip=.01))
    s.fit()
    start = numbers(s.store.load_row(0, 0))
    assert 1e-4 < np.linalg.norm(numbers(s.store.load_row(0)) - start) <= .01 + 1e-6
    mine = numbers(read_row(next((tmp_path/'s0'/'.rounds').glob('*_0.safetensors')), s.store.layout)[1])
    assert np.linalg.norm(mine - start) == pytest.approx(.01, rel=1e-3)

@pytest.mark.parametrize('kw,why', [
    (dict(graph='ring', num_clients=4), r'`graph`: expected one on which clients are joined evenly'),
    (dict(graph='random', num_clients=5), 'joined evenly'), (dict(graph='complete', num_clients=2), 'at least 3 clients in a sum'),
    (dict(name='fedavg', num_clients=2), 'at least 3 clients'), (dict(name='fedavg', num_clients=4, m=.25), 'at least 3 clients'),
    (dict(name='ditto', num_clients=3), 'false for ditto, whose rounds are more'), (dict(name='fedex', num_clients=3), 'false for fedex'),
    (dict(name='flora', num_clients=3), 'false for flora'), (dict(name='hetlora', num_clients=3), 'looks at single adapters'),
    (dict(name='cfl', num_clients=3), 'false for cfl'),
    (dict(graph='learned', num_clients=3), 'looks at single adapters'), (dict(graph='complete', num_clients=3, space='product'), '`space`'),
    (dict(graph='complete', num_clients=3, server_optimizer='adam'), '`server_optimizer`'),
])
def test_what_needs_single_adapters_is_refused(make_cfg, tmp_path, kw, why):
    with pytest.raises(ConfigError, match=why): federation(make_cfg(rounds=2, **kw), client_data(kw['num_clients']), tmp_path)
    assert not list(tmp_path.rglob('state.json'))

def test_the_settings_are_refused_before_anything_starts(make_cfg):
    from fedai.remote.flower import check_config
    for kw,why in ((dict(graph='ring'), 'all together: 4 clients'), (dict(), 'joined evenly'), (dict(name='ditto'), 'false for ditto'),
                   (dict(name='fedavg', num_clients=2), 'at least 3')):
        with pytest.raises(ConfigError, match=why): check_config(make_cfg(secure_aggregation=True, **{'num_clients': 4, **kw}))
    check_config(make_cfg(secure_aggregation=True, graph='complete'))

def test_only_in_a_federation(make_cfg, tmp_path):
    with pytest.raises(ConfigError, match='`secure_aggregation`: expected false but in a federation'):
        get_server(make_cfg(secure_aggregation=True), client_data(4), callbacks=[])
    data,cfg = client_data(3),make_cfg(num_clients=3, rounds=1, graph='complete')
    s,_ = federation(cfg, data, tmp_path)
    s.fit()
    with pytest.raises(ConfigError, match='secure_aggregation'):   # the folder has means, and no client's adapter
        get_server(cfg.replace(secure_aggregation=True), data, callbacks=[])
