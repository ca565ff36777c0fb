"Workers on a Ray cluster: lost, late and wrong ones, and a machine that goes away in the middle."
import importlib.util, os, signal, socket, subprocess, sys, time
from pathlib import Path
import psutil, pytest, torch
from conftest import client_data
from fedai.algorithms import get_server
from fedai.clients import BaseClient
from fedai.config import ConfigError, FedConfig

# Ray must not be imported before fedai does
pytestmark = [pytest.mark.xdist_group('machines'), pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason='needs Ray')]
TWO = dict(workers=2, cpus=.5)

class Moody(BaseClient):
    "Does in its training, once, what a file of its name in the folder says."
    def train(self, comm_round):
        sign = Path(os.environ['MOODS'])/f'{self.id}.{comm_round}'
        if sign.exists():
            what = sign.read_text()
            if what != 'always die': sign.unlink()
            if 'die' in what: os.kill(os.getpid(), signal.SIGKILL)
            if what == 'sleep': time.sleep(600)
            raise ZeroDivisionError(f'client {self.id} is wrong')
        return super().train(comm_round)

def listening():
    "Addresses on which this process, and those that it started, can be reached."
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {tuple(c.laddr) for p in ours for c in p.net_connections('inet') if c.status == 'LISTEN'}

@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp('moods')
    os.environ['MOODS'] = str(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)   # as each worker has
    from fedai.remote.ray import _connect, _import_ray
    ray,before = _import_ray(None),listening()
    _connect(ray, None)
    new = listening() - before
    assert new and all(host in ('127.0.0.1','::ffff:127.0.0.1') for host,_ in new), new
    assert os.environ['RAY_AUTH_MODE'] == 'token'
    yield folder
    ray.shutdown()
    torch.set_num_threads(threads)

def test_lost_late_and_wrong_workers(make_cfg, cluster):
    data = client_data(4)
    home = get_server(make_cfg(engine='sequential', rounds=5, keep_rounds=9), client_data(4), client_class=Moody, callbacks=[])
    home.fit()
    cfg = make_cfg(engine='ray', engine_args={**TWO, 'retries': 1}, rounds=5, keep_rounds=9, timeout_s=10)
    away = get_server(cfg, data, client_class=Moody, callbacks=[])
    (cluster/'2.1').write_text('die')          # is trained again
    (cluster/'0.2').write_text('wrong')        # stops the run, as it would at home
    with pytest.raises(ZeroDivisionError, match='client 0 is wrong'): away.fit()
    assert away.store.round == 2
    assert [torch.equal(away.store.load_row(i, 2), home.store.load_row(i, 2)) for i in range(4)] == [True]*4
    (cluster/'1.3').write_text('sleep')        # is left out of that round
    (cluster/'3.4').write_text('always die')   # likewise
    away.fit()
    assert [torch.equal(away.store.load_row(i, 3), home.store.load_row(i, 3)) for i in range(4)] == [True]*4
    assert [r.get('failed') for r in away.history] == [None]*3 + [{'1': 'no reply within 10 s'}, {'3': 'its worker died 2 times'}]
    assert [r['selected'] for r in away.history[3:]] == [[0,2,3],[0,1,2]] and away.store.check() == []
    assert away.test()[1]['loss'] > 0

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def test_a_machine_goes_away(make_cfg, tmp_path):
    "Two nodes, each started by `ray start`; one is killed in the second round."
    env = {**os.environ, 'RAY_USAGE_STATS_ENABLED': '0', 'RAY_AUTH_MODE': 'disabled', 'MOODS': str(tmp_path), 'OMP_NUM_THREADS': '1',
           'RAY_health_check_period_ms': '500', 'RAY_health_check_failure_threshold': '3', 'RAY_health_check_initial_delay_ms': '500'}
    fields = dict(model='tiny', device='cpu', num_clients=4, rounds=3, local_step=2, batch_size=3, r=4, clients_per_batch=1)
    (tmp_path/'run.py').write_text(f'''
import importlib.util, os, signal, sys, time, torch
torch.set_num_threads(1)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import client_data
from fedai.algorithms import get_server
from fedai.config import FedConfig
from fedai.evaluate.tracking import Callback
class Kill(Callback):
    def after_client(self, server, t, id, metrics):
        if t == 1 and not os.path.exists('killed'):
            open('killed', 'w').close()
            os.killpg(int(sys.argv[2]), signal.SIGKILL)
cfg = FedConfig(**{fields!r}, engine='ray', engine_args=dict(address=sys.argv[1], workers=2, cpus=1), output_dir='away')
s = get_server(cfg, client_data(4), callbacks=[Kill()])
s.fit()
assert s.store.check() == [] and not any('failed' in r for r in s.history)
''')
    port,nodes = free_port(),[]
    command = [str(Path(sys.executable).parent/'ray'), 'start', '--block', '--num-cpus=1', '--node-ip-address=127.0.0.1',
               '--object-store-memory=100000000', '--disable-usage-stats']
    def start(*args):
        return subprocess.Popen([*command, *args], env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        nodes.append(start('--head', f'--port={port}', '--include-dashboard=false', '--min-worker-port=0', '--max-worker-port=0'))
        for _ in range(100):
            with socket.socket() as s:
                if s.connect_ex(('127.0.0.1', port)) == 0: break
            time.sleep(.2)
        nodes.append(start(f'--address=127.0.0.1:{port}', '--min-worker-port=0', '--max-worker-port=0'))
        away = subprocess.run([sys.executable, 'run.py', f'127.0.0.1:{port}', str(nodes[1].pid)], cwd=tmp_path, env=env,
                              capture_output=True, text=True, timeout=110)
        assert away.returncode == 0, away.stderr[-3000:]
        assert (tmp_path/'killed').exists()
    finally:
        for n in nodes:
            try: os.killpg(n.pid, signal.SIGKILL)
            except ProcessLookupError: pass
            n.wait()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    get_server(FedConfig(**fields, output_dir=str(tmp_path/'home')), client_data(4), callbacks=[]).fit()
    torch.set_num_threads(threads)
    a,b = ({str(p.relative_to(tmp_path/d)): p.read_bytes() for p in (tmp_path/d).rglob('*.safetensors')} for d in ('away','home'))
    assert a == b and len(a) > 4

@pytest.mark.parametrize('args,why', [
    (dict(worker=2), r"settings of ray, .*did you mean 'workers'"),
    (dict(workers=0), 'workers`: expected a whole number of at least 1, got 0'),
    (dict(cpus='two'), "cpus`: expected a number of at least 0, got 'two'"), (dict(gpus=-1), 'gpus`'), (dict(retries=1.5), 'retries`'),
    (dict(resources=[1]), 'resources`'), (dict(address=5), 'address`'), (dict(cpus=1000), 'what a machine of the cluster has'),
    (dict(resources={'a100': 1}), 'what a machine of the cluster has')])
def test_wrong_settings_are_named(make_cfg, cluster, args, why):
    cfg = make_cfg(engine='ray', engine_args=args)
    with pytest.raises(ConfigError, match='`engine_args.*' + why): get_server(cfg, client_data(4), callbacks=[]).fit()
