"A run killed at any moment and started again ends as if it had never stopped; a full disk and a second process do no harm."
import json, os, subprocess, sys
import pytest, torch
from pathlib import Path
from conftest import client_data
from fedai.cli import main
from fedai.servers import Server_mira
from fedai.store.adapters import AdapterStore
from fedai.store.rows import StoreError
from fedai.evaluate.tracking import Callback

HERE = Path(__file__).parent

def killed(tmp_path, *args):
    r = subprocess.run([sys.executable, 'crash_runner.py', str(tmp_path), *args], cwd=HERE, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-3000:]
    return json.loads(r.stdout.splitlines()[-1])

def test_killed_at_chosen_calls(tmp_path):
    r = killed(tmp_path, 'calls', ','.join(str(7 + 23*i) for i in range(10)))
    assert r['kills'] >= 10 and r['calls'] > 100, r

def test_killed_at_random_times(tmp_path):
    assert killed(tmp_path, 'times', '6')['kills'] >= 3

OTHERS = {'clusters': dict(name='ifca', selection='power_of_choice', server_optimizer='momentum'),
          'base': dict(name='fedex', server_optimizer='none', ranks=[]),
          'fresh': dict(name='flora', server_optimizer='none', ranks=[1,2,2,1]),
          'graph': dict(graph='learned', graph_args=dict(every=2, top_k=2), ranks=[2,1,2,1])}

@pytest.mark.parametrize('kind', OTHERS)
def test_killed_with_more_to_keep(tmp_path, kind):
    "What is kept beside the rows, a selection and a graph that depend on the rounds before."
    assert killed(tmp_path, 'calls', ','.join(str(11 + 61*i) for i in range(3)), json.dumps(OTHERS[kind]))['kills'] >= 3

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['', *OTHERS])
def test_killed_at_every_call(tmp_path, kind):
    r = killed(tmp_path, 'calls', 'all', *([json.dumps(OTHERS[kind])] if kind else []))
    print(r)
    assert r['kills'] >= r['calls']

@pytest.mark.slow
def test_killed_at_a_hundred_random_times(tmp_path):
    r = killed(tmp_path, 'times', '120')
    print(r)
    assert r['kills'] >= 100

FULL = """
import resource, sys; sys.path.insert(0, {here!r})
from conftest import client_data
from fedai.config import FedConfig
from fedai.servers import Server_mira
from fedai.store.rows import StoreError
from fedai.evaluate.tracking import Callback
class Fill(Callback):
    "After the first round no file may be larger than a few kilobytes."
    def after_round(self, server, record): resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
s = Server_mira(FedConfig(**{cfg!r}), client_data(4), callbacks=[Fill()])
try: s.fit()
except StoreError as e: print('StoreError:', e)
"""

@pytest.mark.parametrize('limit', [10, 3000])
def test_a_full_disk_leaves_the_last_commit(make_cfg, limit):
    cfg = make_cfg(rounds=3)
    r = subprocess.run([sys.executable, '-c', FULL.format(here=str(HERE), limit=limit, cfg=cfg.asdict())], capture_output=True, text=True)
    assert 'StoreError:' in r.stdout and 'the run stands at round 1, as committed' in r.stdout, r.stdout + r.stderr
    assert AdapterStore(cfg.output_dir).round == 1 and AdapterStore(cfg.output_dir).check() == []
    assert len(Server_mira(cfg, client_data(4), callbacks=[]).fit()) == 3

def test_after_a_failed_write_the_same_server_goes_on(make_cfg, monkeypatch):
    import errno
    a,b = make_cfg(rounds=3),make_cfg(rounds=3)
    Server_mira(a, client_data(4), callbacks=[]).fit()
    s = Server_mira(b, client_data(4), callbacks=[])
    real,writes = os.pwrite,[0]
    def full(fd, buf, at):
        writes[0] += s.store.round == 1
        if writes[0] == 3: raise OSError(errno.ENOSPC, 'No space left on device')
        return real(fd, buf, at)
    monkeypatch.setattr(os, 'pwrite', full)
    said = r'the mixed states of round 2: No space left on device \(.*local_output_2.*\); the run stands at round 1'
    with pytest.raises(StoreError, match=said): s.fit()
    monkeypatch.setattr(os, 'pwrite', real)
    s.fit()
    for i in range(4): assert torch.equal(s.store.load_row(i), AdapterStore(a.output_dir).load_row(i))

HOLD = """
import time
from fedai.store.adapters import AdapterStore
with AdapterStore({root!r}).locked():
    print('held', flush=True)
    time.sleep(60)
"""

def test_a_second_process_is_refused_and_a_dead_ones_lock_is_not_in_the_way(make_cfg):
    cfg = make_cfg(rounds=1)
    p = subprocess.Popen([sys.executable, '-c', HOLD.format(root=cfg.output_dir)], stdout=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline() == 'held\n'
        with pytest.raises(StoreError, match='in use by another process'): Server_mira(cfg, client_data(4), callbacks=[])
        assert sorted(o.name for o in Path(cfg.output_dir).iterdir()) == ['.lock']
    finally:
        p.kill()
        p.wait()
    assert len(Server_mira(cfg, client_data(4), callbacks=[]).fit()) == 1

def test_fit_refuses_what_another_server_is_fitting(make_cfg):
    cfg = make_cfg(rounds=1)
    a,b = [Server_mira(cfg, client_data(4), callbacks=[]) for _ in range(2)]
    class Other(Callback):
        def after_client(self, server, comm_round, id, metrics):
            with pytest.raises(StoreError, match='in use'): b.fit()
    a.callbacks = [Other()]
    a.fit()
    assert b.fit() == a.history   # it finds the finished run

def damaged(cfg, how):
    root = Path(cfg.output_dir)
    f = root/'2'/'local_output_1'/'adapter_model.safetensors'
    if how == 'cut': f.write_bytes(f.read_bytes()[:-9])
    if how == 'altered': f.write_bytes(f.read_bytes()[:-9] + b'\0\0\0\0' + f.read_bytes()[-5:])
    if how == 'missing': f.unlink()
    if how == 'config': (root/'2'/'local_output_1'/'adapter_config.json').write_text('{}')
    if how == 'start': (root/'0'/'adapter_model.safetensors').write_bytes(b'x'*100)
    if how == 'history': (root/'history.jsonl').write_text('')
    if how == 'state': (root/'state.json').write_text('{"round": 1')
    if how == 'future': (root/'state.json').write_text((root/'state.json').read_text().replace('"round": 2', '"round": 1'))

SAID = {'cut': 'local_output_1/adapter_model.safetensors: expected', 'altered': 'local_output_1/adapter_model.safetensors: altered',
        'missing': 'local_output_1/adapter_model.safetensors: not there', 'config': 'local_output_1/adapter_config.json: altered',
        'start': '0/adapter_model.safetensors', 'history': 'history.jsonl', 'state': 'state.json: damaged', 'future': 'state.json: damaged'}

@pytest.mark.parametrize('how', ['none','cut','altered','missing','config','start','history','state','future'])
def test_check_names_what_is_damaged_and_it_is_never_trained_on(make_cfg, capsys, how):
    cfg = make_cfg(rounds=2, keep_rounds=1)
    Server_mira(cfg, client_data(4), callbacks=[]).fit()
    damaged(cfg, how)
    code = main(['check', cfg.output_dir])
    out = capsys.readouterr()
    assert code == (how != 'none')
    if how == 'none': assert 'round 2, 4 clients, 5 states: all whole' in out.out
    else: assert SAID[how] in out.out + out.err
    if how in ('none','config'): return
    with pytest.raises(StoreError):
        s = Server_mira(cfg.replace(rounds=3), client_data(4), callbacks=[])
        s.fit()
    assert how in ('start','state','future') or AdapterStore(cfg.output_dir).round <= 2

def test_client_ids_are_numbers_and_nothing_else(tmp_path):
    store = AdapterStore(tmp_path/'run')
    with store.locked(): store.start({'w': torch.zeros(2)})
    for id in ('../../x', '1/../../x', None):
        with pytest.raises((ValueError,TypeError)): store.save_trained(1, id, {'w': torch.zeros(2)})
    assert sorted(o.name for o in tmp_path.iterdir()) == ['run']

def test_what_did_not_fit_on_the_disk_is_named(tmp_path, make_cfg):
    cfg = make_cfg(rounds=1)
    Server_mira(cfg, client_data(4), callbacks=[]).fit()
    run = f'''
import resource, signal
from fedai.ship import export_adapter
from fedai.utils import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
for f in (lambda: write_text({str(tmp_path/'long.txt')!r}, 'x'*50000),
          lambda: export_adapter({cfg.output_dir!r}, 0, {str(tmp_path/'out')!r}, merge=True)):
    try: f()
    except Exception as e: print(type(e).__name__, e)
'''
    out = subprocess.run([sys.executable, '-c', run], capture_output=True, text=True)
    full = 'Error while serializing: I/O error: File too large (os error 27)'
    assert out.stdout.splitlines() == [f"OSError [Errno 27] File too large: '{tmp_path/'long.txt'}'",
                                       f"RunError {tmp_path/'out'}: not written ({full})"], out
    assert not list(tmp_path.rglob('*.tmp')) and not (tmp_path/'out').exists()
