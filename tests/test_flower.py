"Sites that are hostile, lost or late, over a grid in one process; the gate; and a real federation on loopback."
import hashlib, importlib.util, json, os, pickle, re, signal, socket, ssl, subprocess, sys, threading, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from safetensors.numpy import save
from conftest import client_data, sums
from fedai.algorithms import get_server, import_user_code
from fedai.hooks import algorithm_classes
from fedai.config import ConfigError, FedConfig
from fedai.data.clients import get_client_data
from fedai.remote.federation import _Control, read_clients
from fedai.remote.flower import central, meet
from fedai.remote.keys import make_server_keys, make_site_key
from fedai.remote.messages import pack, unpack
from fedai.remote.sites import run_site
from fedai.remote.trainer import Trainer

pytestmark = pytest.mark.skipif(importlib.util.find_spec('flwr') is None, reason='needs Flower')

class Grid:
    "Hands messages to trainers in this process; `spoil` may change a node's reply, or lose it."
    def __init__(self, trainers, spoil=None):
        from flwr.supercore.task_identity import TaskIdentity
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.trainers,self.spoil,self.sent,self.replies = trainers,spoil or (lambda node, kind, data: data),[],{}
    def get_node_ids(self): return list(self.trainers)
    def push_messages(self, messages):
        out = []
        for m in messages:
            node,data = m.metadata.dst_node_id,bytes(m.content['fedai']['message'].numpy())
            self.sent.append((node,data))
            out.append(f'{len(self.sent)}')
            self.replies[out[-1]] = self.spoil(node, m.metadata.message_type, self.trainers[node](data))
        return out
    def pull_messages(self, ids):
        for k in ids:
            r = self.replies[k]
            if r is None: continue
            if isinstance(r, bytes): r = content(np.frombuffer(r, np.uint8))
            m = SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=k), has_error=lambda r=r: isinstance(r, str), content=r)
            if isinstance(r, str): m.error = SimpleNamespace(code=5, reason=r)
            yield m

def content(a):
    from flwr.app import Array, ArrayRecord, RecordDict
    return RecordDict({'fedai': ArrayRecord({'message': a if isinstance(a, Array) else Array(a)})})

def federation(cfg, data, spoil=None, **site):
    grid = Grid({10+k: Trainer(d, FedConfig(device='cpu', **site), secret=bytes([k])*32) for k,d in enumerate(data)}, spoil)
    clients = [dict(name=f's{k}', node=10+k) for k in range(len(data))]
    meet(grid, clients, 0)
    return central(cfg, clients, grid, []),grid

def same_rows(a, b):
    return a.store.latest == b.store.latest and all(torch.equal(a.store.load_row(i), b.store.load_row(i)) for i in a.store.latest)

without_data = ('cfl','ditto','fedavg','fedex','fedprox','fedsa','ffa','flora','hetlora','local','mira','rolora')   # at the server

@pytest.mark.parametrize('name', [n for n in sorted(algorithm_classes) if n in without_data])
def test_the_same_bits_as_in_one_place(make_cfg, name):
    data = client_data(3)
    data[1]['train'] = data[1]['train'][:7]   # weighs less
    more = dict(ranks=[1,2,4]) if name == 'hetlora' else {}
    home = get_server(make_cfg(name=name, engine='sequential', num_clients=3, rounds=3, **more), data, callbacks=[])
    home.fit()
    away,_ = federation(make_cfg(name=name, num_clients=3, rounds=3, **more), data)
    away.fit()
    assert same_rows(home, away)
    drop = lambda h: [{k: v for k,v in r.items() if k != 'data'} for r in h]
    assert drop(home.history) == drop(away.history)
    a,b = home.test(baselines=True),away.test(baselines=True)
    for i in a:
        numbers = {k: v for k,v in a[i].items() if k in b[i] and k != 'task'}
        assert {k: v for k,v in b[i].items() if k != 'task'} == pytest.approx(numbers, rel=1e-6)
    for p in ('base','average'):
        assert (p in home.scorecard) == (p in away.scorecard)
        if p in home.scorecard: assert home.scorecard[p]['mean']['loss'] == pytest.approx(away.scorecard[p]['mean']['loss'], rel=1e-6)

def test_what_leaves_a_site(make_cfg):
    "No word of the data, and a checksum that somebody who has the same data can't make."
    data = client_data(2)
    for d in data:
        for e in d['train'] + d['test']:
            e.update(instruction='A patient called Ephraim, ' + e['instruction'], output=e['output'] + ' sesterces')
    said = []
    s,grid = federation(make_cfg(num_clients=2, rounds=1), data, lambda node, kind, r: said.append(r) or r)
    s.fit()
    s.test(baselines=True)
    assert len(said) > 6 and not any(w in r for r in said for w in (b'Ephraim', b'sesterces'))
    metrics = [ms for r in said if isinstance(ms := unpack(r)[0].get('metrics'), dict)]
    marks = [m['data'] for ms in metrics for m in ms.values() if isinstance(m, dict)]
    home = get_server(make_cfg(num_clients=2, rounds=0), data, callbacks=[])
    mine = [home.client_list[i].fingerprint for i in (0,1)]
    assert len(set(marks)) == 2 and not set(marks) & set(mine)
    assert not set(marks) & {hashlib.blake2b(m.encode(), digest_size=16).hexdigest() for m in mine}   # what anybody could try
    assert not (Path(s.cfg.output_dir)/'generations.jsonl').exists()

def altered(change):
    "A spoiler for what node 11 says after training: what it says, and its arrays, changed."
    def spoil(node, kind, r):
        if node != 11 or kind != 'train': return r
        say,arrays = unpack(r)
        out = change(say, arrays)
        return pack(say, **arrays) if out is None else None if out is ... else out
    return spoil

def poison(value, at=0):
    def change(say, arrays):
        a = arrays['row/1'].copy()
        a.view(np.float32)[at] = value
        arrays['row/1'] = a
    return change

def told(**metrics): return lambda say, arrays: say['metrics']['1'].update(metrics)

def other_array(**kwargs):
    from flwr.app import Array
    return content(Array(**kwargs))

hostile = {
    'NaN': (poison(np.nan, 5), 'not finite'), 'infinity': (poison(-np.inf, -1), 'not finite'),
    'short row': (lambda say, arrays: arrays.update({'row/1': arrays['row/1'][:-4]}), 'row: expected'),
    'long row': (lambda say, arrays: arrays.update({'row/1': np.tile(arrays['row/1'], 2)[:arrays['row/1'].size + 4]}), 'row: expected'),
    'another type': (lambda say, arrays: arrays.update({'row/1': arrays['row/1'].view(np.float32)}), 'row: expected'),
    'another shape': (lambda say, arrays: arrays.update({'row/1': arrays['row/1'][None]}), 'row: expected'),
    "another client's row": (lambda say, arrays: arrays.update({'row/0': arrays.pop('row/1')}), 'expected rows'),
    'a row too many': (lambda say, arrays: arrays.update({'row/0': arrays['row/1'][:8]}), 'expected rows'),
    'a path for a name': (lambda say, arrays: arrays.update({'../../../etc/passwd': arrays.pop('row/1')}), 'expected rows'),
    'no row': (lambda say, arrays: arrays.clear(), 'expected rows'),
    'another round': (lambda say, arrays: say.update(round=7), 'expected rows'),
    'metrics for others': (lambda say, arrays: say['metrics'].update({'0': say['metrics']['1']}), 'expected rows'),
    'no metrics': (lambda say, arrays: say.update(metrics=None), 'expected rows'),
    'loss NaN': (told(loss=float('nan')), 'loss: expected'), 'loss text': (told(loss='0'), 'loss: expected'),
    'loss true': (told(loss=True), 'loss: expected'), 'tokens negative': (told(tokens=-5), 'tokens: expected'),
    'tokens huge': (told(tokens=10**400), 'tokens: expected'), 'a further metric': (told(evil=1), 'expected loss'),
    'a path for a mark': (told(data='../x'), 'data: expected'), 'other data': (told(data='0'*32), 'other data'),
    'no bytes': (lambda *_: b'', 'no message'), 'noise': (lambda *_: os.urandom(1000), 'no message'),
    'pickle': (lambda *_: b'\x80\x04\x95' + b'x'*50, 'no message'), 'cut off': (lambda say, arrays: pack(say, **arrays)[:-1], 'no message'),
    'nested': (lambda *_: save({'say': np.frombuffer(b'['*10**4, np.uint8)}), 'no message'),
    'far too long': (lambda *_: bytes(10**6), r'1,000,128 bytes, of at most'),
    'an error': (lambda *_: pack(dict(error='Oh no!\n\x1b[31m' + 'x'*500)), r'Ohno31mx+ at the site'),
    'Flower fails': (lambda *_: 'broken \x1b[31m', r'error 5: broken \[31m'), 'nothing': (lambda *_: ..., 'no reply within'),
    'another record': (lambda *_: {'other': 1}, 'no message'),
    'objects': (lambda *_: other_array(dtype='object', shape=(1,), stype='numpy.ndarray', data=pickle.dumps([1])), 'no array'),
    'another serialisation': (lambda *_: other_array(dtype='uint8', shape=(3,), stype='torch', data=b'abc'), 'no array'),
    'floats': (lambda *_: content(np.zeros(9, np.float32)), 'no bytes'),
}

@pytest.mark.parametrize('how', hostile)
def test_a_hostile_site_is_named_and_never_mixed(make_cfg, how):
    change,why = hostile[how]
    data,rounds = client_data(3),[]
    def spoil(node, kind, r):
        if kind == 'train': rounds.append(node)
        return altered(change)(node, kind, r) if how != 'other data' or len(rounds) > 3 else r   # that is seen from the second round on
    cfg = make_cfg(num_clients=3, rounds=2, keep_trained=True, keep_rounds=9, name='fedavg', timeout_s=.3 if how == 'nothing' else 60)
    s,_ = federation(cfg, data, spoil)
    h = s.fit()
    first = 1 if how == 'other data' else 0
    for r in h[first:]:
        assert list(r['failed']) == ['1'] and re.search(why, r['failed']['1']) and r['failed']['1'].isprintable(), r.get('failed')
        assert r['selected'] == [0,2]
    if how != 'other data':   # the others' run is as if it weren't there
        path = Path(cfg.output_dir)
        rows = [np.fromfile(path/str(t)/f'trained_{i}'/'adapter_model.safetensors', np.uint8) for t in (1,2) for i in (0,2)]
        assert not list(Path(cfg.output_dir).glob('*/trained_1')) and len(rows) == 4
        from safetensors.torch import load_file
        f = Path(cfg.output_dir)/'2'
        old = [load_file(f/f'trained_{i}'/'adapter_model.safetensors') for i in (0,2)]
        new = load_file(f/'local_output_0'/'adapter_model.safetensors')
        for n in new: assert (new[n].double() - (old[0][n].double() + old[1][n].double())/2).abs().max() < 1e-7
    assert s.store.check() == []
    others = sorted(o.name for o in Path(cfg.output_dir).iterdir() if not o.name.isdecimal())
    assert others == ['.lock','config.yaml','history.jsonl','names.json','state.json']

def test_a_site_has_its_own_adapter(make_cfg, tmp_path):
    """As a folder that peft loads: what the server has of it; where the algorithm added to the base model, with that, and with nothing of
    an earlier run's."""
    from peft import PeftModel
    from fedai.models import get_model
    from safetensors.torch import load_file
    for name in ('flora','mira'):
        data,cfg = client_data(2),make_cfg(num_clients=2, rounds=2, name=name, keep_rounds=9)
        grid = Grid({10+k: Trainer(d, FedConfig(device='cpu'), folder=tmp_path/f's{k}') for k,d in enumerate(data)})
        clients = [dict(name=f's{k}', node=10+k) for k in range(2)]
        meet(grid, clients, 0)
        s = central(cfg, clients, grid, [])
        s.fit()
        s.test(baselines=True)   # the base model and the mean are tested there as well, and are nobody's own
        for k in range(2):
            f = tmp_path/f's{k}'
            server_has = s.store.path(*s.store.where(k))/'adapter_model.safetensors'
            assert (f/'adapter_model.safetensors').read_bytes() == server_has.read_bytes()
            kept = ['kept_base.safetensors'] if name == 'flora' else []
            assert sorted(o.name for o in f.iterdir()) == ['adapter_config.json','adapter_model.safetensors',*kept]
            base = get_model(cfg).unload()
            got = PeftModel.from_pretrained(base, f)
            want = load_file(f/'adapter_model.safetensors')
            loras = {n: t for n,t in got.state_dict().items() if 'lora_' in n}
            assert all(torch.equal(t, want[n.replace('.default.', '.')]) for n,t in loras.items()) and len(want) == len(loras)
            if name == 'flora':
                as_lists = lambda tensors: {n: t.tolist() for n,t in tensors.items()}
                assert as_lists(load_file(f/'kept_base.safetensors')) == as_lists(s.store.kept('base'))

def test_a_site_whose_data_changed_is_told_so(make_cfg, capsys):
    "It is left out, and its log says what is the matter."
    data = client_data(3)
    def change(node, kind, r):
        if kind == 'train' and node == 12:
            fewer = {**data[1], 'train': data[1]['train'][:-1]}
            grid.trainers[11] = Trainer(fewer, FedConfig(device='cpu'), secret=bytes([1])*32)
        return r
    s,grid = federation(make_cfg(num_clients=3, rounds=2), data, change)
    h = s.fit()
    assert [r.get('failed', {}) for r in h] == [{}, {'1': 'ConfigError at the site, whose log says more'}]
    said = capsys.readouterr().err
    assert '`data`: expected what this site trained on in earlier rounds' in said and 'Traceback' not in said

@pytest.mark.parametrize('what,why', [('key', 'a private key of'), ('ca', "the federation's ca.crt"), ('superlink', 'host:port alone')])
def test_what_a_site_is_started_with(tmp_path, what, why):
    "A public key for the private one, a key for the certificate, an address with https://: refused before anything starts."
    make_server_keys(tmp_path/'fed', ['localhost'])
    make_site_key(tmp_path/'a')
    (tmp_path/'a.pub').chmod(0o600)
    wrong = dict(key=tmp_path/'a.pub', ca=tmp_path/'a.key', superlink='https://localhost:9092')
    args = {**dict(key=tmp_path/'a.key', ca=tmp_path/'fed'/'ca.crt', superlink='localhost:9092'), what: wrong[what]}
    with pytest.raises(ConfigError, match=why): run_site(client_data(1)[0], **args)

def test_who_can_not_be_tested_is_named(make_cfg):
    data = client_data(3)
    for d in data: d['test'] = d['test'][:2]
    def spoil(node, kind, r): return pack(dict(metrics=dict(loss=float('nan')))) if kind == 'evaluate' and node == 11 else r
    s,_ = federation(make_cfg(num_clients=3, rounds=1, eval_every=1), data, spoil)
    h = s.fit()
    assert list(h[0]['test_loss']) == ['0','2']
    s.test(baselines=True)
    assert s.scorecard['untested'] == {'1': 'refused: metrics: loss: expected a finite number, got nan'}
    assert list(s.scorecard['clients']) == list(s.scorecard['base']['clients']) == ['0','2']
    from fedai.evaluate.scorecard import score_table
    assert 'client 1 could not be tested' in score_table({k: v for k,v in s.scorecard.items() if k != 'names'})
    s,_ = federation(make_cfg(num_clients=3, rounds=0), data, lambda node, kind, r: 'gone' if kind == 'evaluate' else r)
    with pytest.raises(RuntimeError, match='no client could be tested: client 0: error 5: gone; client 1'): s.test()

def test_a_reply_is_taken_once(make_cfg):
    "Replies to earlier messages come again with each pull."
    data = client_data(2)
    s,grid = federation(make_cfg(num_clients=2, rounds=2), data)
    pull,old = grid.pull_messages,[]
    def replay(ids):
        new = list(pull(ids))
        yield from old + new
        old.extend(new)
    grid.pull_messages = replay
    s.fit()
    home = get_server(make_cfg(num_clients=2, rounds=2, engine='sequential'), data, callbacks=[])
    home.fit()
    assert same_rows(home, s) and not any('failed' in r for r in s.history)

def test_a_site_minds_its_own_affairs(make_cfg, tmp_path, capsys):
    "The server can't name a site's files, code or devices; its log says what the server doesn't hear."
    data = client_data(1)[0]
    t = Trainer(data, FedConfig(device='cpu', output_dir=str(tmp_path/'mine')))
    fields = {**make_cfg().asdict(), 'imports': ['/tmp/evil.py'], 'output_dir': '/etc/evil', 'device': 'cuda:7', 'data': '/etc/passwd'}
    cfg = t.settings(fields)
    assert (cfg.imports,cfg.output_dir,cfg.device,cfg.data) == ([],str(tmp_path/'mine'),'cpu','reasoning-gym')
    for model in (str(tmp_path), 'weights.gguf'):
        with pytest.raises(ConfigError, match='the server names a file'): t.settings({**fields, 'model': model})
    assert Trainer(data, FedConfig(device='cpu'), model='tiny').settings({**fields, 'model': '/etc'}).model == 'tiny'
    assert unpack(t(pack(dict(op='__init__'))))[0] == dict(error='ValueError') and 'expected one of hello, train' in capsys.readouterr().err
    assert unpack(t(b'noise'))[0] == dict(error='ValueError')
    s,_ = federation(make_cfg(num_clients=2, r=2), client_data(2))
    other = pack(s.engine.say(0, 'test', n=0, scores=False) | dict(layout='0'*32))
    assert unpack(t(other))[0] == dict(error='ConfigError')
    assert not (tmp_path/'mine').exists()

def test_what_can_not_be_done_on_flower_is_said(make_cfg):
    def put(**kwargs): return federation(make_cfg(num_clients=2, **kwargs), client_data(2))
    with pytest.raises(ConfigError, match='`name`: expected an algorithm whose server needs no data'): put(name='ifca')
    with pytest.raises(ConfigError, match='measure'): put(graph='learned', graph_args=dict(measure='data'))
    with pytest.raises(ConfigError, match='`graph`'): put(graph='tasks')
    with pytest.raises(ConfigError, match="another than 'flower'"): get_server(make_cfg(engine='flower'), client_data(4), callbacks=[])
    grid = Grid({10: Trainer(client_data(1)[0], FedConfig())})
    with pytest.raises(TimeoutError, match='never connected: s1'): meet(grid, [dict(name='s0', node=10), dict(name='s1', node=11)], 0)

@pytest.mark.parametrize('file,text,why', [
    ('clients.json', b'[{', 'a clients.json as the server wrote it'), ('clients.json', b'[1]', 'a clients.json as the server wrote it'),
    ('server.pem', b'x', 'the certificate server.pem'), ('clients/b.pub', b'\xff\xfe\x00', 'public keys of')])
def test_a_folder_with_something_else_in_it(tmp_path, file, text, why):
    "Said in one line."
    make_server_keys(tmp_path/'fed', ['localhost'])
    make_site_key(tmp_path/'fed'/'clients'/'a')
    assert read_clients(tmp_path/'fed') == [dict(name='a')]
    (tmp_path/'fed'/file).write_bytes(text)
    with pytest.raises(ConfigError, match=why):
        for c in read_clients(tmp_path/'fed'):
            if c['name'] == 'b': _Control.register(None, tmp_path/'fed'/'clients'/f"{c['name']}.pub")

def test_killed_between_replies_and_started_again(make_cfg):
    data = client_data(3)
    home = get_server(make_cfg(num_clients=3, rounds=3, engine='sequential'), data, callbacks=[])
    home.fit()
    cfg,trained = make_cfg(num_clients=3, rounds=3),[]
    class Killed(BaseException): pass
    def spoil(node, kind, r):
        if kind == 'train': trained.append(node)
        return r
    s,_ = federation(cfg, data, spoil)
    real = s.save_trained
    def save_trained(id, t, metrics=None, state=None):
        if (t,id) == (1,1): raise Killed
        real(id, t, metrics, state)
    s.save_trained = save_trained
    with pytest.raises(Killed): s.fit()
    del trained[:]
    s,_ = federation(cfg, data, spoil)
    s.fit()
    assert same_rows(home, s) and trained == [11,12,10,11,12]   # what had come isn't asked for again

# a real federation on loopback

FEDAI = [sys.executable, '-c', 'import sys; from fedai.cli import main; sys.exit(main())']

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def test_the_gate(tmp_path):
    import anyio, httpx
    from fedai.remote.gate import gate
    make_server_keys(tmp_path/'fed', ['x'])
    app = gate('https://127.0.0.1:9', tmp_path/'fed'/'ca.crt', most=1000)   # where nobody is
    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='https://x') as c:
            paths = (('/v1/fleet/push-object', 1000), ('/v1/fleet/push-object', 1001), ('/v1/control/start-run', 5), ('/v1/fleet/', 5),
                     ('/v1/fleet/x/y', 5), ('/v1/fleet/x?y=/v1/control', 5))
            posted = [(await c.post(p, content=bytes(n))).status_code for p,n in paths]
            return posted + [(await c.get('/v1/fleet/get-run')).status_code]
    assert anyio.run(ask) == [502,413,404,404,404,502,404]
    app = gate('https://127.0.0.1:9', tmp_path/'fed'/'ca.crt', most=1000, most_all=2000)
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
    async def push():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='https://x') as c:
            sent = (('push-messages',500,'a'), ('push-object',800,'a'), ('pull-messages',900,'a'), ('push-object',701,'a'),
                    ('push-object',1000,'b'), ('push-messages',900,'a'), ('push-object',1000,'a'))
            return [(await c.post(f'/v1/fleet/{p}', content=bytes(n), headers={FLEET_HTTP_PUBLIC_KEY_HEADER: who})).status_code
                    for p,n,who in sent]
    assert anyio.run(push) == [502,502,502,413,502,502,502]

class Federation:
    "Its folder, and what was started for it."
    def __init__(self, tmp):
        self.tmp,self.started,self.port = tmp,{},free_port()
        self.env = {**os.environ, 'OMP_NUM_THREADS': '1', 'FEDAI_CACHE': str(tmp/'cache')}
    def start(self, name, *args):
        command = [*FEDAI, 'flower', *map(str, args)]
        with open(self.tmp/f'{name}.log', 'a') as log:
            p = subprocess.Popen(command, cwd=self.tmp, env=self.env, stdout=log, stderr=log, start_new_session=True)
        self.started[name] = p
        return p
    def site(self, name):
        return self.start(name, 'client', '--data', f'{name}.jsonl', '--superlink', f'127.0.0.1:{self.port}', '--ca', 'fed/ca.crt',
                          '--key', f'{name}.key', '--device', 'cpu', '--imports', 'own.py')
    def server(self):
        return self.start('server', 'server', 'run.yaml', '--folder', 'fed', '--listen', f'127.0.0.1:{self.port}', '--wait', 60)
    def log(self, name): return (self.tmp/f'{name}.log').read_text()
    def wait_for(self, what, name, seconds=90):
        end = time.monotonic() + seconds
        while what not in self.log(name):
            assert time.monotonic() < end and self.started[name].poll() is None, self.log(name)[-3000:]
            time.sleep(.1)
    def kill(self, name, sig=signal.SIGKILL):
        "This process alone; what it started must end by itself."
        p = self.started.pop(name)
        p.send_signal(sig)
        p.wait(20)
    def close(self):
        for p in self.started.values(): p.send_signal(signal.SIGTERM)   # all at once
        for p in self.started.values(): p.wait(20)

class Eve:
    "A registered site whose trainer is played by this process: greets as it should, and answers training with something else every time."
    def __init__(self, f):
        from fedai.remote.sites import _SuperNode
        self.node = _SuperNode(f'127.0.0.1:{f.port}', f.tmp/'eve.key', f.tmp/'fed'/'ca.crt', self.answer, print)
        threading.Thread(target=self.node.serve, daemon=True).start()
    def answer(self, data):
        say,arrays = unpack(data)
        if say['op'] == 'hello': return pack(dict(examples=10**6, test=1))
        if say['op'] == 'train' and say['round'] == 0:
            row = arrays['row/0'].copy()
            row.view(np.float32)[7] = np.nan
            metrics = dict(loss=0., tokens=1, padded=1, examples=1, dropped=0, cut=0, data='ab')
            return pack(dict(round=say['round'], metrics={'0': metrics}), **{'row/0': row})
        if say['op'] == 'train' and say['round'] == 1: return os.urandom(10**6)
        raise EOFError   # and then nothing
    def close(self): self.node.close()

def ours(tmp):
    "Processes that were started for a folder: its name is in their arguments or their environment."
    out = []
    for p in os.listdir('/proc'):
        if not p.isdecimal() or int(p) == os.getpid(): continue
        try: there = (Path('/proc')/p/'cmdline').read_bytes() + (Path('/proc')/p/'environ').read_bytes()
        except OSError: continue
        if str(tmp).encode() in there:
            line = Path('/proc')/p/'cmdline'
            out.append((p, line.read_bytes()[:100] if line.exists() else b''))
    return out

@pytest.mark.xdist_group('machines')
def test_a_federation_on_loopback(tmp_path):
    """TLS and keys; one that isn't registered, and one that is and means harm; a site killed and the server killed, and both started again;
    a second server refused."""
    f,eve = Federation(tmp_path),None
    make_server_keys(tmp_path/'fed', ['127.0.0.1'])
    for k,name in enumerate(['s0','s1','eve','stranger']):
        make_site_key(tmp_path/name)
        (tmp_path/f'{name}.jsonl').write_text('\n'.join(map(json.dumps, sums(k, 12 + 4*k))) + '\n')
        if name != 'stranger': (tmp_path/'fed'/'clients'/f'{name}.pub').write_text((tmp_path/f'{name}.pub').read_text())
    (tmp_path/'own.py').write_text('from fedai.servers import Server_mira\n\nclass Server_own(Server_mira, name="own"):\n'
                                   '    "Another algorithm."\n    def step_size(self, comm_round): return .4\n')
    fields = dict(model='tiny', rounds=3, local_step=2, batch_size=3, r=4, max_new_tokens=4, graph='complete', name='own', timeout_s=15)
    (tmp_path/'run.yaml').write_text(json.dumps({**fields, 'imports': ['own.py'], 'output_dir': 'away'}))
    try:
        for n in ('s0','s1','stranger'): f.site(n)
        f.server()
        f.wait_for('clients registered', 'server')
        eve = Eve(f)   # a SuperNode that came too early asks again ever more seldom
        f.wait_for('the SuperNode ended: the server refuses this key', 'stranger')
        f.wait_for('connected to', 's0')
        f.kill('stranger', signal.SIGTERM)
        f.wait_for('round 1/3', 'server')
        f.kill('s1')
        # nothing but what nodes say gets through the gate, and that with TLS and a key only
        import httpx
        context = ssl.create_default_context(cafile=str(tmp_path/'fed'/'ca.crt'))
        with httpx.Client(base_url=f'https://127.0.0.1:{f.port}', verify=context) as c:
            hidden = ('control/start-run', 'control/register-node', 'runtime/pull-task', 'fleet/../control/start-run',
                      'fleet/%2e%2e/control/start-run')
            assert [c.get('/health').status_code, c.get('/docs').status_code] == [404]*2
            assert [c.post(f'/v1/{path}').status_code for path in hidden] == [404]*5
            assert c.post('/v1/fleet/pull-messages').status_code in (400,401,415,422)
        with pytest.raises(httpx.HTTPError): httpx.get(f'http://127.0.0.1:{f.port}/health')
        with pytest.raises(httpx.ConnectError): httpx.get(f'https://127.0.0.1:{f.port}/health')   # an authority that nobody knows
        # and who doesn't know its secret gets nothing from a site's SuperNode
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
        signed = SuperExecAuthHttpInterceptor(master_secret=bytes(32), protected_methods=['/flwr.proto.Runtime/AcquireTask'])
        guess = eve.node._client(signed)
        with pytest.raises(httpx.HTTPStatusError, match='401'):
            guess.AcquireTask(AcquireTaskRequest(supported_task_types=['flwr-clientapp']))
        second = f.start('second', 'server', 'run.yaml', '--folder', 'fed', '--listen', f'127.0.0.1:{free_port()}')
        assert second.wait(30) == 2 and 'one in which no server is running' in f.log('second')
        f.wait_for('round 2/3', 'server')   # without the site that was killed
        f.kill('server')
        f.site('s1')
        f.server()
        assert f.started['server'].wait(100) == 0, f.log('server')[-3000:]
        for o in ('eve is left out of round 1: refused: ','eve is left out of round 2: refused: 1,0','s1 is left out of round 2: ',
                  '2 of 3 rounds are done, going on','eve is left out of round 3: error','eve could not be tested: error'):
            assert o in f.log('server')
        history = [json.loads(l) for l in (tmp_path/'away'/'history.jsonl').read_text().splitlines()]
        assert [r['selected'] for r in history] == [[1,2],[1],[1,2]]
        assert [list(r['failed']) for r in history] == [['0'],['0','2'],['0']]
        card = json.loads((tmp_path/'away'/'scorecard.json').read_text())
        assert list(card['untested']) == ['0'] and list(card['clients']) == ['1','2']
        # what comes of it in one process, where clients are counted by name
        def only(n): return get_client_data(FedConfig(data=str(tmp_path/f'{n}.jsonl'), partition='iid', num_clients=1))[0]
        sites = {n: only(n) for n in ('eve','s0','s1')}
        rounds,threads = [],torch.get_num_threads()
        def lost(node, kind, r):
            if kind != 'train': return r
            if node == 10: rounds.append(node)   # asked first in every round
            return 'gone' if node == 10 or node == 12 and len(rounds) == 2 else r
        torch.set_num_threads(1)
        import_user_code([tmp_path/'own.py'])
        home,_ = federation(FedConfig(**fields, output_dir=str(tmp_path/'home'), device='cpu'), [*sites.values()], lost)
        home.fit()
        torch.set_num_threads(threads)
        for i in (1,2):
            a,b = home.store.path(i),tmp_path/'away'/'3'/f'local_output_{i}'
            assert (a/'adapter_model.safetensors').read_bytes() == (b/'adapter_model.safetensors').read_bytes()
        clients = json.loads((tmp_path/'fed'/'clients.json').read_text())
        assert [(c['name'],c['examples']) for c in clients] == [('eve',10**6), *((n, len(sites[n]['train'])) for n in ('s0','s1'))]
    finally:
        algorithm_classes.pop('own', None)
        if eve: eve.close()
        f.close()
    for _ in range(100):
        if not (left := ours(tmp_path)): break
        time.sleep(.1)
    assert not left

def test_what_runs_at_the_server_ends_with_the_process_that_started_it(tmp_path):
    "Also where that process is killed hard, in the middle of whatever goes on."
    starter = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    code = ("from fedai.remote.flower import serve\nimport time\nclass Grid:\n    def get_node_ids(self): time.sleep(600)\n"
            f"serve(Grid(), 'run.yaml', {str(tmp_path)!r}, starter={starter.pid})")
    (tmp_path/'clients.json').write_text('[{"name": "a", "node": 1}]')
    app = subprocess.Popen([sys.executable, '-c', code])
    try:
        with pytest.raises(subprocess.TimeoutExpired): app.wait(8)
        starter.kill()
        starter.wait()
        assert app.wait(5) == 1
    finally:
        for p in (starter,app): p.kill()
